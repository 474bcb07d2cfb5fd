"""The generation loops, without ONNX: one text alone, and many in a batch."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from runtime.arrays import Floats, Ids
from runtime.text.generation import Generation

Step = Callable[[Sequence[int]], tuple[int, Floats]]
PREFILL_TOKENS = 512  # more in one run, padding included, is no faster


class Batch(Protocol):
    """A batch of rows; each run gives the most likely next ids [B] and the logits of the rows it ran over.

    Logits are [B, V], or [B, 0] if not wanted.
    """

    rows: int

    def admit(self, prompts: Sequence[Sequence[int]], *, logits: bool = True) -> tuple[Ids, Floats]:
        """Prefill prompts into new rows after the existing ones."""

    def step(self, token_ids: Sequence[int], *, logits: bool = True) -> tuple[Ids, Floats]:
        """Append an id to each row."""

    def remove(self, row: int) -> None:
        """Drop a row; the last one takes its place."""


def decode_alone(step: Step, generation: Generation, new_ids: Sequence[int]) -> Iterator[str]:
    """Run `new_ids`, the prompt's ids that are not cached, then generate; yield text once it is final."""
    while generation.finish_reason is None:
        shown = len(generation.text)
        new_ids = (generation.take(*step(new_ids)),)
        if len(generation.text) > shown:
            yield generation.text[shown:]


def decode_together(batch: Batch, generations: Iterable[Generation]) -> Iterator[Generation]:
    """Generate in a batch and yield each generation when it finishes; take new ones only when there is room for them.

    A finished row leaves at once. Waiting prompts are admitted once a quarter of the rows is free: several short
    prompts prefilled together cost little more than one of them.
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
    """Take at least one and at most `most` waiting generations whose padded prompts fit into PREFILL_TOKENS."""
    taken, width = list[Generation](), 0
    while waiting and len(taken) < most:
        width = max(width, len(waiting[0].prompt_ids))
        if taken and width * (len(taken) + 1) > PREFILL_TOKENS:
            break
        taken.append(waiting.popleft())
    return taken


def longest_first(generations: Iterable[Generation]) -> list[Generation]:
    """Sort by the length of the prompts, so that those prefilled together need little padding."""
    return sorted(generations, key=lambda generation: len(generation.prompt_ids), reverse=True)


def any_reads_logits(generations: Iterable[Generation]) -> bool:
    return not all(generation.plain for generation in generations)


def take_all(generations: Sequence[Generation], next_ids: Ids, logits: Floats) -> None:
    for generation, most_likely, row in zip(generations, next_ids.tolist(), logits, strict=True):
        generation.take(most_likely, row)
