"""LensGraph: what hidden states, or final logits, predict: likeliest ids, log-probabilities and ranks."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Floats, Ids
from runtime.bundle.architecture import Architecture
from runtime.ort.placement import CPU, Placement
from runtime.ort.sessions import check_sizes, make_session

LOGITS_BYTES = 2**25  # bytes of logits per run; more is no faster


class Reading(NamedTuple):
    """For R rows: the k likeliest ids and their log-probabilities [R, k]; the answer's log-probability and rank [R]."""

    top_ids: Ids
    top_logprobs: Floats
    answer_logprobs: Floats
    ranks: Ids


class LensGraph:
    """One session over lens.onnx."""

    def __init__(
        self, path: Path, architecture: Architecture, *, placement: Placement = CPU, threads: int | None = None
    ) -> None:
        self._session = make_session(path, placement=placement, threads=threads, mapped=placement.device == "cpu")
        sizes = {"hidden_states": architecture.n_embd, "final_logits": architecture.vocab_size}
        check_sizes(self._session, path, "lens", sizes)
        self._no_states = np.empty((0, architecture.n_embd), np.float32)
        self._no_logits = np.empty((0, architecture.vocab_size), np.float32)
        self._most_rows = max(1, LOGITS_BYTES // self._no_logits.itemsize // architecture.vocab_size)

    def read_states(self, hidden_states: Floats, answers: Ids, k: int) -> Reading:
        """What hidden states [S, C] predict, `ln_f` and `lm_head` applied; `answers` [S] are ids."""
        return self._read(hidden_states, self._no_logits, answers, k)

    def read_logits(self, logits: Floats, answers: Ids, k: int) -> Reading:
        """What logits [S, V] predict."""
        return self._read(self._no_states, logits, answers, k)

    def logits(self, hidden_states: Floats) -> Floats:
        """Logits [S, V] of hidden states [S, C]."""
        unasked = np.zeros(len(hidden_states), np.int64)
        found: Floats = self._session.run(["logits"], feed(hidden_states, self._no_logits, unasked, 1))[0]
        return found

    def _read(self, hidden_states: Floats, logits: Floats, answers: Ids, k: int) -> Reading:
        """Read a few rows at a time; one of `hidden_states` and `logits` has no rows."""
        names = ["top_ids", "top_logprobs", "answer_logprobs", "ranks"]
        parts = [
            self._session.run(names, feed(hidden_states[rows], logits[rows], answers[rows], k))
            for rows in self._parts(len(answers))
        ]
        top_ids, top_logprobs, answer_logprobs, ranks = map(np.concatenate, zip(*parts, strict=True))
        return Reading(top_ids, top_logprobs, answer_logprobs[:, 0], ranks[:, 0])

    def _parts(self, rows: int) -> Iterator[slice]:
        return (slice(start, start + self._most_rows) for start in range(0, rows, self._most_rows))


def feed(hidden_states: Floats, logits: Floats, answers: Ids, k: int) -> dict[str, NDArray[np.generic]]:
    return {
        "hidden_states": hidden_states,
        "final_logits": logits,
        "answers": answers[:, None],
        "k": np.array([k], np.int64),
    }
