"""The loops: one text alone, and many together. They know no ONNX, only what runs over new ids."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from runtime.arrays import Floats, Ids
from runtime.text.generation import Generation

Step = Callable[[Sequence[int]], tuple[int, Floats]]
PREFILL_TOKENS = 512  # more in one run, padding included, is no faster


class Batch(Protocol):
    """Rows side by side; each run gives the most likely next ids [B] and the logits of the rows it ran over.

    Logits are [B, V], or [B, 0] if not wanted.
    """

    rows: int

    def admit(self, prompts: Sequence[Sequence[int]], *, logits: bool = True) -> tuple[Ids, Floats]:
        """Read prompts into new rows after those there are."""

    def step(self, token_ids: Sequence[int], *, logits: bool = True) -> tuple[Ids, Floats]:
        """Add an id to each row."""

    def remove(self, row: int) -> None:
        """Forget a row; the last one takes its place."""


def decode_alone(step: Step, generation: Generation, new_ids: Sequence[int]) -> Iterator[str]:
    """Run over `new_ids`, those of the prompt that no run has seen, then generate; yield text as it is certain."""
    while generation.finish_reason is None:
        shown = len(generation.text)
        new_ids = (generation.take(*step(new_ids)),)
        if len(generation.text) > shown:
            yield generation.text[shown:]


def decode_together(batch: Batch, generations: Iterable[Generation]) -> Iterator[Generation]:
    """Generate side by side, each yielded as it is finished; they are asked for no earlier than there is room.

    A row that is finished leaves at once. Others wait until a quarter of the rows is free: short prompts read together
    cost little more than one of them.
    """
    source, waiting, active = iter(generations), deque[Generation](), list[Generation]()
    while True:
        waiting.extend(islice(source, batch.rows - len(waiting)))
        free = batch.rows - len(active)
        if waiting and free >= max(1, batch.rows // 4 if active else 1):
            admitted = take_prompts(waiting, free)
            prompts = [generation.prompt_ids for generation in admitted]
            take_all(admitted, *batch.admit(prompts, logits=any_reads_logits(admitted)))
            active += admitted
        elif active:
            last_ids = [generation.token_ids[-1] for generation in active]
            take_all(active, *batch.step(last_ids, logits=any_reads_logits(active)))
        else:
            return
        for row in reversed(range(len(active))):
            if active[row].finish_reason:
                yield active[row]
                batch.remove(row)
                active[row] = active[-1]
                active.pop()


def take_prompts(waiting: deque[Generation], most: int) -> list[Generation]:
    """The next ones, at most so many, whose prompts together are worth one run; at least one."""
    taken, width = list[Generation](), 0
    while waiting and len(taken) < most:
        width = max(width, len(waiting[0].prompt_ids))
        if taken and width * (len(taken) + 1) > PREFILL_TOKENS:
            break
        taken.append(waiting.popleft())
    return taken


def longest_first(generations: Iterable[Generation]) -> list[Generation]:
    """By the length of their prompts, so that those read together need little padding."""
    return sorted(generations, key=lambda generation: len(generation.prompt_ids), reverse=True)


def any_reads_logits(generations: Iterable[Generation]) -> bool:
    return not all(generation.plain for generation in generations)


def take_all(generations: Sequence[Generation], next_ids: Ids, logits: Floats) -> None:
    for generation, most_likely, row in zip(generations, next_ids.tolist(), logits, strict=True):
        generation.take(most_likely, row)
