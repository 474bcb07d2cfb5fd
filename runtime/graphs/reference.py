"""ReferenceGraph: all logits, hidden states, attention maps, keys and values, as PyTorch returns them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Floats
from runtime.bundle.architecture import Architecture
from runtime.ort.placement import CPU, Placement
from runtime.ort.sessions import check_sizes, make_session

Arrays = Mapping[str, Floats]
MAPS_BYTES = 2**25  # bytes of attention maps that one run may make


class ReferenceGraph:
    """One session over model.onnx."""

    def __init__(
        self, path: Path, architecture: Architecture, *, placement: Placement = CPU, threads: int | None = None
    ) -> None:
        self._session = make_session(path, placement=placement, threads=threads, mapped=placement.device == "cpu")
        self._architecture = architecture
        check_sizes(self._session, path, "reference", sizes_of(architecture))
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(
        self,
        input_ids: NDArray[np.int64],
        *,
        attention_mask: NDArray[np.int64] | None = None,
        past: Arrays | None = None,
        outputs: Sequence[str] | None = None,
    ) -> dict[str, Floats]:
        """Outputs by name.

        Args:
            input_ids: [B, S].
            attention_mask: [B, P+S], 0 where a row is padded on its left; all ones by default.
            past: `present.N.key` and `.value` [B, H, P, D] of the run before; empty by default.
            outputs: Names of the outputs wanted; all by default. The others are still computed and held during the run.

        Returns:
            `logits` [B, S, V], `present.N.key` and `.value` [B, H, P+S, D], `hidden_states.N` [B, S, C] and
            `attentions.N` [B, H, S, P+S].
        """
        past = past or self._empty_past(len(input_ids))
        sequence_length = input_ids.shape[1]
        total = past["present.0.key"].shape[2] + sequence_length
        mask = np.ones((len(input_ids), total), np.int64) if attention_mask is None else attention_mask
        feed = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": position_ids(mask)[:, -sequence_length:],
            **self._renamed(past),
        }
        wanted = self._outputs if outputs is None else list(outputs)
        return dict(zip(wanted, self._session.run(wanted, feed), strict=True))

    def read(self, token_ids: Sequence[int], arrays: Arrays) -> None:
        """Write outputs of one text of S tokens to arrays.

        A long text runs in parts, each with the `past_key_values` of the parts before it, because every run makes the
        attention maps of all layers.

        Args:
            token_ids: S ids.
            arrays: Zeros for what is wanted: `logits` [S, V], `hidden_states.N` [S, C], `attentions.N` [H, S, S].
        """
        ids, past = np.array([token_ids]), self._empty_past(1)
        for rows in self._parts(len(token_ids)):
            kept = past if rows.stop < len(token_ids) else ()
            found = self.run(ids[:, rows], past=past, outputs=[*arrays, *kept])
            for name, array in arrays.items():
                write_rows(array, found[name][0], rows)
            past = {name: found[name] for name in kept}

    def _parts(self, length: int) -> Iterator[slice]:
        row = 4 * self._architecture.n_layer * self._architecture.n_head * length
        most = max(1, MAPS_BYTES // row)
        return (slice(start, min(start + most, length)) for start in range(0, length, most))

    def _renamed(self, past: Arrays) -> Arrays:
        names = (self._architecture.cache_names(prefix) for prefix in ("past_key_values", "present"))
        return {name: past[present] for name, present in zip(*names, strict=True)}

    def _empty_past(self, batch: int) -> Arrays:
        empty = np.zeros((batch, self._architecture.n_head, 0, self._architecture.head_size), np.float32)
        return dict.fromkeys(self._architecture.cache_names("present"), empty)


def sizes_of(architecture: Architecture) -> dict[str, int]:
    """The last dimensions of the inputs and outputs by which reference graphs of different architectures differ."""
    states = {f"hidden_states.{layer}": architecture.n_embd for layer in range(architecture.n_layer + 1)}
    past = dict.fromkeys(architecture.cache_names("past_key_values"), architecture.head_size)
    return {"logits": architecture.vocab_size, **states, **past}


def write_rows(array: Floats, found: Floats, rows: slice) -> None:
    """Copy rows [n, …] of a text to [S, …]; or rows of its maps, [H, n, rows.stop], to [H, S, S]."""
    if found.ndim == 3:
        array[:, rows, : rows.stop] = found
    else:
        array[rows] = found


def position_ids(attention_mask: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions [B, P+S] that count real tokens only; padding gets 1, as in transformers' generate."""
    positions = attention_mask.cumsum(axis=1) - 1
    positions[attention_mask == 0] = 1
    return positions
