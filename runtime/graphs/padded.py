"""PaddedGraph: a session of a decode graph whose rows all have as many new ids; PaddedRuns: a mix, as several runs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.graphs.bound import BoundSession
from runtime.graphs.cache import KeyValueCache
from runtime.graphs.work import Answer, Graph, Work, run_parts

Block = Callable[[int, int], tuple[int, int]]


class PaddedGraph(BoundSession):
    """Runs of one session over some rows of a cache.

    Arrays are bound again only when the shape changes from one run to the next: a loop of one token per run writes its
    inputs in place.
    """

    def __init__(self, session: Any, cache: KeyValueCache) -> None:
        super().__init__(session, cache)
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
        self._run_bound()
        return self._answer

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


class Single(NamedTuple):
    """A run of one id per row over B adjacent rows."""

    first_row: int
    input_ids: NDArray[np.int64]  # [B, 1]
    past_lengths: NDArray[np.int64]  # [B]


class PaddedRuns:
    """Runs a mix in as few runs as a graph without `query_seqlens` allows.

    Slots with one new id run side by side. Rows that run along without any get an id that is written after all that
    they hold, and thus never read. Any other work is a run of its own.

    Args:
        written: [rows], tokens that each row may hold.
        capacity: Tokens that a row has room for.
        block: The rows to run, given the first one with work and the one after the last: those, or more. Where one row
            has work, it is that row alone.
    """

    def __init__(
        self,
        graph: Graph,
        written: NDArray[np.int64],
        capacity: int,
        block: Block = lambda first, after: (first, after),
    ) -> None:
        self._graph = graph
        self._written = written
        self._capacity = capacity
        self._block = block

    def run(self, works: Sequence[Work]) -> list[Answer]:
        """Run works, sorted by their slots; answers are copies where there are several runs."""
        parts = self.side_by_side([work for work in works if len(work.token_ids) == 1])
        parts += [[work] for work in works if len(work.token_ids) > 1]
        return run_parts(works, parts, self._run)

    def side_by_side(self, works: Sequence[Work], steps: int = 1) -> list[Sequence[Work]]:
        """Works of one id each, sorted by their slots, in parts beside which no row lacks the room for `steps` ids."""
        ends = self._written + steps
        for work in works:
            ends[work.slot] = max(ends[work.slot], work.past_length + 2 * steps)  # it runs along with another part
        return self._parts(works, ends) if works else []

    def _parts(self, works: Sequence[Work], ends: NDArray[np.int64]) -> list[Sequence[Work]]:
        first, after = self._block(works[0].slot, works[-1].slot + 1)
        others = set(range(first, after)).difference(work.slot for work in works)
        if all(ends[row] <= self._capacity for row in others):
            return [works]
        half = len(works) // 2
        return self._parts(works[:half], ends) + self._parts(works[half:], ends)

    def _run(self, works: Sequence[Work]) -> list[Answer]:
        """Run works of one id each, or one work of several."""
        if len(works[0].token_ids) > 1:
            return [self._run_alone(*works)]
        run = self.single(works)
        indices, logits = range(len(run.input_ids)), any(work.logits for work in works)
        answer = self._graph.run(*run, run.past_lengths + 1, indices, logits=logits)
        self.note(works)
        return [answer_of(answer, work, work.slot - run.first_row) for work in works]

    def _run_alone(self, work: Work) -> Answer:
        count, total = len(work.token_ids), work.past_length + len(work.token_ids)
        asked = range(count - work.answers, count)
        answer = self._graph.run(work.slot, [work.token_ids], [work.past_length], [total], asked, logits=work.logits)
        self.note([work])
        return answer

    def single(self, works: Sequence[Work]) -> Single:
        """The run of a part of works."""
        first, after = self._block(works[0].slot, works[-1].slot + 1)
        ids, past = np.zeros((after - first, 1), np.int64), self._written[first:after].copy()
        for work in works:
            ids[work.slot - first], past[work.slot - first] = work.token_ids, work.past_length
        return Single(first, ids, past)

    def note(self, works: Sequence[Work], steps: int | None = None) -> None:
        """Note what rows hold after a run, or after `steps` runs of one id per row."""
        for work in works:
            self._written[work.slot] = work.past_length + (steps or len(work.token_ids))


def answer_of(answer: Answer, work: Work, row: int) -> Answer:
    """What a work wants of a run of one id per row."""
    part = slice(row, row + work.answers)
    logits = answer.logits[part] if work.logits else np.empty((work.answers, 0), np.float32)
    return Answer(answer.next_ids[part], logits, answer.tied[part])
