"""RaggedRuns: a session of the ragged decode graph, which runs any number of ids for each slot at once."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.graphs.bound import BoundSession
from runtime.graphs.cache import KeyValueCache
from runtime.graphs.work import Answer, Work, run_parts


class Shape(NamedTuple):
    """What the arrays' sizes depend on: the first row, the rows' counts of new ids, and (answers, logits) of each."""

    first: int
    counts: tuple[int, ...]
    wanted: tuple[tuple[int, bool], ...]


class RaggedRuns(BoundSession):
    """Runs over the rows of a cache; rows between those that have work are left as they are.

    Arrays are bound again only when the shape changes from one run to the next: a loop of one id per slot writes its
    inputs in place.
    """

    def __init__(self, session: Any, cache: KeyValueCache) -> None:
        super().__init__(session, cache)
        self._bound_shape: Shape | None = None

    def run(self, works: Sequence[Work]) -> list[Answer]:
        """Run works, sorted by their slots."""
        return run_parts(works, list(fitting(works, self._cache.architecture.n_positions)), self._run)

    def _run(self, works: Sequence[Work]) -> list[Answer]:
        shape = shape_of(works)
        self._bind_rows(shape.first, len(shape.counts))
        self._bind_shape(shape)
        ends = [work.past_length + len(work.token_ids) for work in works]  # lists: for so few NumPy takes longer
        self._input_ids[...] = [token for work in works for token in work.token_ids]
        self._position_ids[...] = [
            at for work, end in zip(works, ends, strict=True) for at in range(work.past_length, end)
        ]
        for work, end in zip(works, ends, strict=True):
            self._seqlens_k[work.slot - shape.first] = end - 1
        self._total_sequence_length[0] = max(ends)
        self._run_bound()
        return self._answers

    def _bind_shape(self, shape: Shape) -> None:
        if self._bound_shape == shape:
            return
        self._bound_shape = None
        counts = np.array(shape.counts)  # [B]
        starts, total = np.cumsum(counts) - counts, int(counts.sum())
        rows, offsets = np.repeat(np.arange(len(counts)), counts), np.arange(total) - np.repeat(starts, counts)  # [T]
        packed = np.zeros((len(counts), counts.max()), np.int64)  # [B, S], padded on the right
        packed[rows, offsets] = np.arange(total)
        self._bind_input("packed_indices", packed)
        self._bind_input("row_indices", np.stack([rows, offsets], axis=1))
        self._bind_input("query_seqlens", counts.astype(np.int32))
        self._input_ids = self._bind_input("input_ids", np.empty(total, np.int64))
        self._position_ids = self._bind_input("position_ids", np.empty(total, np.int64))
        self._seqlens_k = self._bind_input("seqlens_k", np.zeros(len(counts), np.int32))
        self._bind_answers(shape.wanted, (starts + counts)[counts > 0])
        self._bound_shape = shape

    def _bind_answers(self, wanted: Sequence[tuple[int, bool]], ends: NDArray[np.int64]) -> None:
        """Bind the outputs, which give the answers with logits first."""
        ranges = [np.arange(end - answers, end) for (answers, _), end in zip(wanted, ends, strict=True)]
        with_logits = [one for one, (_, logits) in zip(ranges, wanted, strict=True) if logits]
        without = [one for one, (_, logits) in zip(ranges, wanted, strict=True) if not logits]
        nothing = np.empty(0, np.int64)
        asked = self._bind_input("logits_indices", np.concatenate([nothing, *with_logits]))
        rest = self._bind_input("token_indices", np.concatenate([nothing, *without]))
        count = len(asked) + len(rest)
        logits = self._bind_output("logits", np.empty((len(asked), self._cache.architecture.vocab_size), np.float32))
        tokens = self._bind_output("next_token", np.empty((count, 1), np.int64))[:, 0]
        tied = self._bind_output("tied", np.empty((count, 1), np.bool_))[:, 0]
        self._answers = []
        ends_of = {True: 0, False: len(asked)}
        for answers, has_logits in wanted:
            start, ends_of[has_logits] = ends_of[has_logits], ends_of[has_logits] + answers
            part = slice(start, start + answers)
            found = logits[part] if has_logits else np.empty((answers, 0), np.float32)
            self._answers.append(Answer(tokens[part], found, tied[part]))


def fitting(works: Sequence[Work], capacity: int) -> Iterator[list[Work]]:
    """The works in runs: all rows of a run are as wide as its longest one, and each has to have room for so many."""
    while works:
        width = max(len(work.token_ids) for work in works)
        yield [work for work in works if work.past_length + width <= capacity]
        works = [work for work in works if work.past_length + width > capacity]


def shape_of(works: Sequence[Work]) -> Shape:
    first = works[0].slot
    counts = [0] * (works[-1].slot + 1 - first)
    for work in works:
        counts[work.slot - first] = len(work.token_ids)
    return Shape(first, tuple(counts), tuple((work.answers, work.logits) for work in works))
