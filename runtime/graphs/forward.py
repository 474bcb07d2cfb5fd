"""The interface of a run (Graph, Cache, Answer), and Forward, which picks the decode or the prefill graph."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

MANY = 128  # tokens per row; for fewer, a prefill graph saves 26 ms for GPT-2 small, but costs 0.5 s and 330 MB to load


class Answer(NamedTuple):
    """A run's outputs at P indices; the next run overwrites them.

    Attributes:
        next_ids: The most likely ids [P].
        logits: [P, V], or [P, 0] if not wanted.
        tied: [P], whether another id is so close that summing in another order could make it the most likely.
    """

    next_ids: NDArray[np.int64]
    logits: NDArray[np.float32]
    tied: NDArray[np.bool_]


class Cache(Protocol):
    """Keys and values of some rows."""

    rows: int

    def row(self, row: int, length: int) -> dict[str, NDArray[Any]]:
        """A row's keys and values [1, n_head, length, head_size] by their names as outputs."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` keys and values of a row to another row."""


class Graph(Protocol):
    """Runs over some rows of a cache.

    Attributes:
        ran_out: Whether a run failed for lack of memory, which may be this graph's own.
    """

    ran_out: bool

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
        """Append ids to the rows from `first_row` on."""


class Launcher(Protocol):
    """Runs greedy steps on the device while the host does something else."""

    def launch(self, input_ids: ArrayLike, past_lengths: ArrayLike, steps: int) -> None:
        """Launch `steps` steps: the first runs `input_ids` [B], each later one the ids of the step before."""

    def collect(self) -> NDArray[np.int64]:
        """Wait for the launched steps; return their ids [B, steps]."""


class Forward:
    """The decode and the prefill graph over one cache.

    Args:
        one: The graph for one token per row.
        many: Makes the graph for many tokens per row, or returns None.
        launcher: Launches steps over the same cache, on a device.
    """

    def __init__(
        self, cache: Cache, one: Graph, many: Callable[[], Graph | None], launcher: Launcher | None = None
    ) -> None:
        self.cache = cache
        self.one = one
        self.launcher = launcher
        self._make_many = many
        self._many: Graph | None = None

    def over(self, count: int) -> Graph:
        """The graph for runs over `count` tokens per row."""
        if count < MANY:
            return self.one
        if self._many is None:
            self._many = self._make_many() or self.one
        return self._many
