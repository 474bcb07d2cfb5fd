"""DeviceGraph: runs over a cache that stays on the device; ids are copied to and fro, logits only when asked for."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.graphs.device.cache import DeviceCache
from runtime.graphs.device.runs import DeviceRuns
from runtime.graphs.device.state import DeviceState
from runtime.graphs.work import Answer


class DeviceGraph:
    """Runs of one session over some rows of a cache, and greedy steps launched on the device."""

    def __init__(self, runs: DeviceRuns, cache: DeviceCache) -> None:
        self._runs = runs
        self._cache = cache
        self._steps: dict[tuple[int, int], DeviceState] = {}  # by rows; kept, as captured graphs need fixed addresses
        self._under_way: list[tuple[DeviceState, int, int]] = []  # state, log position before, steps

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
        """Like `PaddedGraph.run`; the answer is a copy."""
        ids, past = np.asarray(input_ids, np.int64), np.asarray(past_lengths, np.int64)
        after, asked = np.asarray(lengths, np.int64), np.asarray(indices, np.int64)
        with self._runs.lock:
            self.abandon()
            if ids.shape[1] == 1 and np.array_equal(asked, np.arange(len(ids))):
                state, room = self._ready(first_row, ids, past), self._room(past)
                state.log_position(1)
            else:
                state, room = self._reading(first_row, ids, past, after, asked), 0
            self._run(state, room)
            next_ids = state.next_ids()
            state.advanced(1, next_ids)
            found = state.logits.read() if logits else np.empty((len(next_ids), 0), np.float32)
        count = len(asked)
        return Answer(next_ids[:count], found[:count], np.zeros(count, np.bool_))

    def launch(self, first_row: int, input_ids: ArrayLike, past_lengths: ArrayLike, steps: int) -> None:
        """Launch `steps` greedy steps from `first_row` on, one id per row, after those that were launched before.

        Args:
            first_row: The first of B adjacent rows.
            input_ids: [B, 1], the ids that the first step runs.
            past_lengths: [B], tokens in each row before the first step.
            steps: 1 to 32, the size of a row's log; each row has room for them.
        """
        ids, past = np.asarray(input_ids, np.int64), np.asarray(past_lengths, np.int64)
        with self._runs.lock:
            state = self._ready(first_row, ids, past)
            self._under_way.append((state, state.log_position(steps), steps))
            for step in range(steps):
                self._run(state, self._room(past) - step, wait=False)

    def collect(self) -> list[NDArray[np.int64]]:
        """Wait for all launched steps; return the ids [B, steps] of each launch."""
        with self._runs.lock:
            try:
                said = [self._collect(*launch) for launch in self._under_way]
            except BaseException:
                self.abandon()
                raise
            self._under_way = []
        return said

    def _collect(self, state: DeviceState, start: int, steps: int) -> NDArray[np.int64]:
        state.binding.synchronize_outputs()
        if (done := state.steps_done(start)) != steps:
            raise RuntimeError(f"the device did {done} steps of {steps}")
        said = state.logged(start, steps)
        state.advanced(steps, said[:, -1])
        return said

    def abandon(self) -> None:
        """Wait for launched steps whose ids nobody wants, as after an error or an interrupt."""
        with self._runs.lock:
            for state, _, _ in self._under_way:
                state.forget()
            for state, _, _ in self._under_way:
                state.binding.synchronize_outputs()
            self._under_way = []

    def _room(self, past_lengths: NDArray[np.int64]) -> int:
        """How many ids each row has room for."""
        return int(self._cache.capacity - past_lengths.max())

    def _ready(self, first_row: int, ids: NDArray[np.int64], past: NDArray[np.int64]) -> DeviceState:
        """The state for single steps over some rows, with their ids [B, 1] and lengths [B] written to it."""
        rows = first_row, len(ids)
        if rows not in self._steps:
            self._steps[rows] = self._state(*rows, 1, len(ids))
        state = self._steps[rows]
        state.put(
            self._cache.capacity,
            input_ids=ids,
            position_ids=past[:, None],
            seqlens_k=past.astype(np.int32),
            logits_indices=np.arange(len(ids)),
        )
        return state

    def _reading(
        self,
        first_row: int,
        ids: NDArray[np.int64],
        past: NDArray[np.int64],
        after: NDArray[np.int64],
        asked: NDArray[np.int64],
    ) -> DeviceState:
        """A state for one run over several ids, which asks for one answer at least."""
        indices = asked if len(asked) else np.zeros(1, np.int64)
        state = self._state(first_row, len(ids), ids.shape[1], len(indices))
        state.put(
            int(after.max()),
            input_ids=ids,
            position_ids=past[:, None] + np.arange(ids.shape[1]),
            seqlens_k=after - 1,
            logits_indices=indices,
            log_indices=np.arange(len(indices)),
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
