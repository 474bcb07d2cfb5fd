"""DeviceSlots: keys and values in a device's memory, which grow when a slot is reserved."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from runtime.bundle.architecture import Architecture
from runtime.graphs.device.cache import DeviceCache, block, bucket, row_bucket
from runtime.graphs.device.graph import DeviceGraph
from runtime.graphs.device.runs import DeviceRuns
from runtime.graphs.device.state import LOG
from runtime.graphs.padded import PaddedRuns
from runtime.graphs.work import Answer, Work, run_parts

DTYPES: dict[str, DTypeLike] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
SPARE = 16  # tokens more than reserved, where the context allows it: steps beside a text that has ended have room


class DeviceSlots:
    """Slots on a device. Their memory is taken for a power of two of slots and of tokens, which captured graphs need.

    Args:
        count: The most slots.
    """

    launches = True

    def __init__(self, runs: DeviceRuns, architecture: Architecture, count: int) -> None:
        self.count = count
        self._device = runs
        self._architecture = architecture
        kind = next(value.type for value in runs.session.get_inputs() if value.name.startswith("past_key_values"))
        self._dtype = DTYPES[kind]
        self._reserved: dict[int, int] = {}  # slot -> tokens
        self._cache: DeviceCache | None = None
        self._ran_out = False  # whether a run failed for lack of memory, which may be the cache's
        self._launched: dict[int, tuple[int, int]] = {}  # slot -> which launch has it, and in which row

    def reserve(self, slot: int, tokens: int) -> None:
        """Grow so that the slot has room for so many tokens; MemoryError if the device has none."""
        reserved = {**self._reserved, slot: tokens}
        least = self._size(max(reserved), max(reserved.values()))
        with self._device.lock:
            if self._cache and (slot >= self._cache.rows or tokens > self._cache.capacity):
                self._grow_beyond(slot, tokens, least)
            if not self._cache:
                self._grow(*least)
        self._reserved = reserved

    def _size(self, slot: int, tokens: int) -> tuple[int, int]:
        return row_bucket(slot + 1, self.count), bucket(tokens + SPARE, self._architecture.n_positions)

    def _grow_beyond(self, slot: int, tokens: int, least: tuple[int, int]) -> None:
        """Grow, if there is memory; else make do with the size of what is reserved. If nothing is, free all first."""
        assert self._cache is not None
        if not self._reserved:
            self._drop()
            return
        rows, capacity = self._size(slot, tokens)
        try:
            self._grow(max(rows, self._cache.rows), max(capacity, self._cache.capacity))
            return
        except MemoryError:
            pass  # after this block nothing refers to what was made
        self._grow(*least)

    def _grow(self, rows: int, capacity: int) -> None:
        """Make another cache that holds what the present one does."""
        placement = self._device.placement
        cache = DeviceCache(self._architecture, rows, capacity, dtype=self._dtype, placement=placement)
        if self._cache is not None:
            cache.take_over(self._cache)
        graph = DeviceGraph(self._device, cache)
        runs = PaddedRuns(graph, cache.written, capacity, lambda first, after: block(first, after, rows))
        self._cache, self._graph, self._runs = cache, graph, runs

    def _drop(self) -> None:
        """Free the memory."""
        self._cache, self._ran_out = None, False
        del self._graph, self._runs

    def run(self, works: Sequence[Work]) -> list[Answer]:
        """Append ids to slots, each at most once; give the answers in the same order."""
        with self._noting():
            return run_parts(works, [sorted(works, key=lambda work: work.slot)], self._runs.run)

    def steps(self, works: Sequence[Work]) -> int:
        """The most steps that can be launched: each work's slot has room for them."""
        assert self._cache is not None
        return min(LOG, self._cache.capacity - max(work.past_length for work in works))

    def launch(self, works: Sequence[Work], steps: int) -> None:
        """Launch `steps` greedy steps: the first runs each work's one id, each later one the id of the step before."""
        self._graph.abandon()
        self._launched = {work.slot: (0, 0) for work in works}
        parts = self._runs.side_by_side(sorted(works, key=lambda work: work.slot), steps)
        for number, part in enumerate(parts):
            run = self._runs.single(part)
            with self._noting():
                self._graph.launch(*run, steps)
            self._runs.note(part, steps)
            self._launched |= {work.slot: (number, work.slot - run.first_row) for work in part}

    def collect(self) -> list[list[int]]:
        """Wait for the launched steps; give each work's ids."""
        said = self._graph.collect()
        return [said[number][row].tolist() for number, row in self._launched.values()]

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Note when memory runs out."""
        try:
            yield
        except MemoryError:
            self._ran_out = True
            raise

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a slot's keys and values to another slot, on the device; both are reserved."""
        assert self._cache is not None
        assert max(source, target) < self._cache.rows
        with self._device.lock:
            self._cache.copy(source, target, length)

    def give_back(self, slot: int) -> None:
        """Forget what a slot holds. Memory stays for the next text, unless it has run out and no slot needs it."""
        self._reserved.pop(slot, None)
        if self._cache is not None and slot < self._cache.rows:
            self._cache.written[slot] = 0
        if self._ran_out and not self._reserved:
            self._drop()

    def cache(self, slot: int, length: int) -> dict[str, NDArray[Any]]:
        """Brought to the host."""
        assert self._cache is not None
        with self._device.lock:
            return self._cache.row(slot, length)
