"""What a run over new ids is asked and says, and which graph runs: one for a token a row, one for many at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

MANY = 128  # tokens a row; a prefill graph saves 26 ms of fewer of GPT-2 small's, and takes 0.5 s and 330 MB to load


class Answer(NamedTuple):
    """What follows at P indices; the next run overwrites it.

    Attributes:
        next_ids: The most likely ids [P].
        logits: [P, V], or [P, 0] where nobody asked.
        tied: [P], whether another id is as likely, as far as sums in another order could tell.
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
        ran_out: Whether there was no memory for a run; what this holds may be what there is no room for.
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
        """Add ids to the rows from `first_row` on."""


class Launcher(Protocol):
    """Takes greedy steps by itself, while the host does something else."""

    def launch(self, input_ids: ArrayLike, past_lengths: ArrayLike, steps: int) -> None:
        """Begin `steps` steps over `input_ids` [B], then over what each step says."""

    def collect(self) -> NDArray[np.int64]:
        """What the steps under way said, [B, steps]; waits for them."""


class Forward:
    """Both graphs over one cache.

    Args:
        one: For a token a row.
        many: Makes the graph for many tokens a row, or gives None.
        launcher: Over the same cache, where there is any.
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
        """The graph for runs over `count` tokens a row."""
        if count < MANY:
            return self.one
        if self._many is None:
            self._many = self._make_many() or self.one
        return self._many
