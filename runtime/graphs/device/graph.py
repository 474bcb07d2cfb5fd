"""DeviceGraph: runs over a cache that stays on the device; ids are copied to and fro, logits only when asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.graphs.device.cache import DeviceCache, row_bucket
from runtime.graphs.device.runs import DeviceRuns
from runtime.graphs.device.state import DeviceState
from runtime.graphs.forward import Answer


class DeviceGraph:
    """Runs of one session over some rows of a cache, and greedy steps launched on the device.

    Attributes:
        ran_out: Whether a run failed for lack of memory, which may be this graph's own.
    """

    def __init__(self, runs: DeviceRuns, cache: DeviceCache) -> None:
        self._runs = runs
        self._cache = cache
        self.ran_out = False
        self._steps: dict[int, DeviceState] = {}  # by rows; kept, as captured graphs need fixed addresses
        self._under_way: tuple[DeviceState, int, int] | None = None  # state, log position before, steps

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
        """Like `HostGraph.run`; the answer is a copy."""
        ids, past = np.asarray(input_ids, np.int64), np.asarray(past_lengths, np.int64)
        after, asked = np.asarray(lengths, np.int64), np.asarray(indices, np.int64)
        with self._alone():
            if first_row == 0 and ids.shape[1] == 1 and np.array_equal(asked, np.arange(len(ids))):
                state, room = self._ready(ids, past), self._cache.capacity - int(past.max())
                state.log_position(1)
            else:
                state, room = self._state(first_row, len(ids), ids.shape[1], len(asked)), 0
                state.put(
                    int(after.max()),
                    input_ids=ids,
                    position_ids=past[:, None] + np.arange(ids.shape[1]),
                    seqlens_k=after - 1,
                    logits_indices=asked,
                    log_indices=np.arange(len(asked)),
                )
            self._run(state, room)
            next_ids = state.next_ids()
            state.advanced(1, next_ids)
            found = state.logits.read()[: len(asked)] if logits else np.empty((len(asked), 0), np.float32)
        return Answer(next_ids[: len(asked)], found, np.zeros(len(asked), np.bool_))

    def launch(self, input_ids: ArrayLike, past_lengths: ArrayLike, steps: int) -> None:
        """Launch `steps` greedy steps from the first row on, one id per row; `collect` waits for them.

        Args:
            input_ids: [B], the ids that the first step runs.
            past_lengths: [B], tokens in each row before the first step.
            steps: 1 to 32, the size of a row's log; each row has room for them.
        """
        ids, past = np.asarray(input_ids, np.int64), np.asarray(past_lengths, np.int64)
        with self._alone():
            state = self._ready(ids[:, None], past)
            start = state.log_position(steps)
            for step in range(steps):
                self._run(state, self._cache.capacity - int(past.max()) - step, wait=False)
            self._under_way = state, start, steps

    def collect(self) -> NDArray[np.int64]:
        """Wait for the launched steps; return their ids [B, steps]."""
        assert self._under_way is not None
        (state, start, steps), self._under_way = self._under_way, None
        with self._alone():
            state.binding.synchronize_outputs()
            if (done := state.steps_done(start)) != steps:
                state.forget()
                raise RuntimeError(f"the device did {done} steps of {steps}")
            said = state.logged(start, steps)
            state.advanced(steps, said[:, -1])
        return said

    def _ready(self, ids: NDArray[np.int64], past: NDArray[np.int64]) -> DeviceState:
        """The state for single steps over at least the first B rows, with ids [B, 1] and lengths [B] written to it.

        Rows after those are unused; they step along, and start over before they would leave the cache.
        """
        rows = row_bucket(len(ids), self._cache.rows)
        if rows not in self._steps:
            self._steps[rows] = self._state(0, rows, 1, rows)
        state = self._steps[rows]
        others, theirs = state.idle(len(ids), self._cache.capacity)
        positions = np.concatenate([past, theirs])
        state.put(
            self._cache.capacity,
            input_ids=np.concatenate([ids, others]),
            position_ids=positions[:, None],
            seqlens_k=positions.astype(np.int32),
            logits_indices=np.arange(rows),
        )
        return state

    def _state(self, first_row: int, rows: int, count: int, wanted: int) -> DeviceState:
        return DeviceState(self._runs.session, self._cache, first_row, rows, count, wanted)

    def _run(self, state: DeviceState, room: int, *, wait: bool = True) -> None:
        try:
            self._runs.run(state, room=room, wait=wait)
        except BaseException:
            state.forget()
            raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the session's lock; note when memory runs out."""
        with self._runs.lock:
            try:
                yield
            except MemoryError:
                self.ran_out = True
                raise
