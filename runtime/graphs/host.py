"""KeyValueCache: keys and values in host memory, updated in place; HostGraph: a session bound to them."""

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.arrays import Floats
from runtime.bundle.manifest import Architecture
from runtime.graphs.forward import Answer
from runtime.ort.install import load_onnxruntime


class KeyValueCache:
    """Keys and values [rows, n_head, n_positions, head_size] of each layer.

    Nothing after a row's length is ever read, so nothing needs clearing; memory is touched, and thus taken, only as far
    as a row has grown.
    """

    def __init__(self, architecture: Architecture, rows: int) -> None:
        self.architecture = architecture
        self.rows = rows
        shape = (rows, architecture.n_head, architecture.n_positions, architecture.head_size)
        self.arrays = private_arrays(len(architecture.cache_names("present")), shape)

    def row(self, row: int, length: int) -> dict[str, Floats]:
        """A row's keys and values [1, n_head, length, head_size] by their names as outputs; views, not copies."""
        names = self.architecture.cache_names("present")
        return {name: array[row : row + 1, :, :length] for name, array in zip(names, self.arrays, strict=True)}

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` keys and values of a row to another row."""
        for array in self.arrays:
            array[target, :, :length] = array[source, :, :length]


def private_arrays(count: int, shape: tuple[int, ...]) -> list[Floats]:
    """Arrays in pages of their own: taken when touched, given back as soon as the arrays are dropped.

    malloc keeps what threads free in its arenas: after 20,000 completions in eight threads a process held 257 MB with
    it, and 129 MB with these pages.
    """
    private = (
        {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    )  # after a fork too
    memory = mmap.mmap(-1, 4 * count * math.prod(shape), **private)
    return list(np.frombuffer(memory, np.float32).reshape(count, *shape))


class HostGraph:
    """Runs of one session over some rows of a cache.

    Arrays are bound again only when the shape changes from one run to the next: a loop of one token per run writes its
    inputs in place.
    """

    ran_out = False

    def __init__(self, session: Any, cache: KeyValueCache) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._value = load_onnxruntime().OrtValue.ortvalue_from_numpy  # shares the array's memory on the CPU
        self._cache = cache
        self._total_sequence_length = self._bind_input("total_sequence_length", np.zeros(1, np.int32))
        self._bound_rows: tuple[int, int] | None = None
        self._bound_shape: tuple[int, int, int, bool] | None = None

    def run(
        self,
        first_row: int,
        input_ids: ArrayLike,
        past_lengths: ArrayLike,
        lengths: ArrayLike,
        indices: ArrayLike,
        *,
        logits: bool,
    ) -> Answer:
        """Append ids to the rows from `first_row` on.

        Args:
            first_row: The first of B adjacent rows.
            input_ids: [B, S], padded on the right. S is over 1 only if B is 1 or all rows are empty.
            past_lengths: [B], tokens in each row before the run.
            lengths: [B], tokens in each row after the run, without padding.
            indices: [P], where the next id is wanted, as b * S + s.
            logits: Whether logits are wanted there too. If not, the graph need not compute all of them.
        """
        ids, after = np.asarray(input_ids, np.int64), np.asarray(lengths, np.int32)
        asked = np.asarray(indices, np.int64)
        rows, count = ids.shape
        self._bind_rows(first_row, rows)
        self._bind_shape(rows, count, len(asked), logits)
        self._input_ids[...] = ids
        np.add(np.asarray(past_lengths)[:, None], np.arange(count), out=self._position_ids)  # [B, S]
        np.subtract(after, 1, out=self._seqlens_k)
        self._total_sequence_length[0] = after.max()
        self._indices[...] = asked
        self._session.run_with_iobinding(self._binding)
        return self._answer

    def _bind_rows(self, first: int, rows: int) -> None:
        if self._bound_rows == (first, rows):
            return
        self._bound_rows = None  # in case this fails halfway
        for name, array in zip(self._cache.architecture.cache_names(""), self._cache.arrays, strict=True):
            value = self._value(array[first : first + rows])
            self._binding.bind_ortvalue_input(f"past_key_values{name}", value)
            self._binding.bind_ortvalue_output(f"present{name}", value)
        self._bound_rows = first, rows

    def _bind_shape(self, rows: int, count: int, wanted: int, logits: bool) -> None:
        """Bind arrays for `rows` times `count` ids, and for answers at `wanted` indices."""
        if self._bound_shape == (rows, count, wanted, logits):
            return
        self._bound_shape = None
        self._input_ids = self._bind_input("input_ids", np.empty((rows, count), np.int64))
        self._position_ids = self._bind_input("position_ids", np.empty((rows, count), np.int64))
        self._seqlens_k = self._bind_input("seqlens_k", np.empty(rows, np.int32))
        asked, unasked = ("logits_indices", "token_indices") if logits else ("token_indices", "logits_indices")
        self._indices = self._bind_input(asked, np.empty(wanted, np.int64))
        self._bind_input(unasked, np.empty(0, np.int64))
        shape = (wanted if logits else 0, self._cache.architecture.vocab_size)
        found = self._bind_output("logits", np.empty(shape, np.float32))
        self._answer = Answer(
            self._bind_output("next_token", np.empty((wanted, 1), np.int64))[:, 0],
            found if logits else found.reshape(wanted, 0),
            self._bind_output("tied", np.empty((wanted, 1), np.bool_))[:, 0],
        )
        self._bound_shape = rows, count, wanted, logits

    def _bind_input(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        self._binding.bind_ortvalue_input(name, self._value(array))
        return array

    def _bind_output(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        self._binding.bind_ortvalue_output(name, self._value(array))
        return array
