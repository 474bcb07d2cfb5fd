"""What a step runs and what it gives: Work, Answer, and the Slots that run them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

MANY = 128  # ids in a run; for fewer, a prefill graph saves 26 ms for GPT-2 small, but costs 0.5 s and 330 MB to load


class Work(NamedTuple):
    """The new ids of one slot in a step.

    Attributes:
        slot: Which row of the cache.
        token_ids: At least one.
        past_length: Tokens in the slot before them.
        answers: After how many of the last ids an answer is wanted; 0 for a part of a prompt.
        logits: Whether logits are wanted there too. If not, the graph need not compute all of them.
    """

    slot: int
    token_ids: Sequence[int]
    past_length: int
    answers: int = 1
    logits: bool = False


class Answer(NamedTuple):
    """What follows at P positions; the next run overwrites it.

    Attributes:
        next_ids: The most likely ids [P].
        logits: [P, V], or [P, 0] if not wanted.
        tied: [P], whether another id is so close that summing in another order could make it the most likely.
    """

    next_ids: NDArray[np.int64]
    logits: NDArray[np.float32]
    tied: NDArray[np.bool_]


class Slots(Protocol):
    """Rows of a cache, each with the keys and values of a text.

    Attributes:
        count: How many there are.
        launches: Whether greedy steps can be launched on a device: `launch` and `collect`.
    """

    count: int
    launches: bool

    def reserve(self, slot: int, tokens: int) -> None:
        """Make sure that a slot has room for so many tokens; MemoryError if it cannot have it."""

    def run(self, works: Sequence[Work]) -> list[Answer]:
        """Append ids to slots, each at most once; give the answers in the same order."""

    def steps(self, works: Sequence[Work]) -> int:
        """The most steps that can be launched."""

    def launch(self, works: Sequence[Work], steps: int) -> None:
        """Launch `steps` greedy steps: the first runs each work's one id, each later one the id of the step before."""

    def collect(self) -> list[list[int]]:
        """Wait for the launched steps; give each work's ids."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens' keys and values of a slot to another slot."""

    def give_back(self, slot: int) -> None:
        """Give back a slot's memory, where the system allows it; what it held is lost."""

    def cache(self, slot: int, length: int) -> dict[str, NDArray[Any]]:
        """A slot's keys and values [1, n_head, length, head_size] by their names as outputs."""


class Graph(Protocol):
    """Runs over adjacent rows of a cache."""

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


def run_parts(
    works: Sequence[Work], parts: Sequence[Sequence[Work]], run: Callable[[Sequence[Work]], Sequence[Answer]]
) -> list[Answer]:
    """The answers to `works`, which run in parts; copies where there are several, as each run overwrites the last."""
    keep = copied if len(parts) > 1 else lambda answer: answer
    found = {work.slot: keep(answer) for part in parts for work, answer in zip(part, run(part), strict=True)}
    return [found[work.slot] for work in works]


def copied(answer: Answer) -> Answer:
    return Answer(answer.next_ids.copy(), answer.logits.copy(), answer.tied.copy())
