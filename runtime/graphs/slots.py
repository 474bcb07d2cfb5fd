"""HostSlots: keys and values in host memory, and the graphs that read and write them."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

from numpy.typing import NDArray

from runtime.graphs.cache import KeyValueCache
from runtime.graphs.work import MANY, Answer, Work, run_parts

SHORT = 16  # ids: as many as one id and its draft can be; more are a part of a prompt


class Runs(Protocol):
    """A graph over a cache."""

    def run(self, works: Sequence[Work]) -> list[Answer]:
        """Run works, sorted by their slots."""


class HostSlots:
    """Slots on the CPU.

    Args:
        runs: Of the decode graph.
        prefill: Makes those of the graph for many ids at once, where there is one.
    """

    launches = False

    def __init__(self, cache: KeyValueCache, runs: Runs, prefill: Callable[[], Runs] | None) -> None:
        self.count = cache.rows
        self._cache = cache
        self._runs = runs
        self._prefill = prefill

    def reserve(self, slot: int, tokens: int) -> None:
        """A row has room for the whole context, and takes memory as it grows."""

    def run(self, works: Sequence[Work]) -> list[Answer]:
        """Append ids to slots, each at most once; give the answers in the same order."""
        in_order = sorted(works, key=lambda work: work.slot)
        long = [work for work in in_order if len(work.token_ids) > SHORT] if self._prefill else []
        if sum(len(work.token_ids) for work in long) < MANY:
            return run_parts(works, [in_order], self._runs.run)
        parts = [long, [work for work in in_order if len(work.token_ids) <= SHORT]]
        return run_parts(works, [part for part in parts if part], self._run)

    def _run(self, works: Sequence[Work]) -> list[Answer]:
        return (self._many if len(works[0].token_ids) > SHORT else self._runs).run(works)

    @cached_property
    def _many(self) -> Runs:
        assert self._prefill
        return self._prefill()

    def steps(self, _works: Sequence[Work]) -> int:
        return 0

    def launch(self, works: Sequence[Work], steps: int) -> None:
        raise NotImplementedError

    def collect(self) -> list[list[int]]:
        raise NotImplementedError

    def copy(self, source: int, target: int, length: int) -> None:
        self._cache.copy(source, target, length)

    def give_back(self, slot: int) -> None:
        self._cache.give_back(slot)

    def cache(self, slot: int, length: int) -> dict[str, NDArray[Any]]:
        """Views, not copies."""
        return self._cache.row(slot, length)
