"""Runs a beam search through the loop: its beams are texts of one step, and go on where their parents' slots are."""

from collections.abc import Iterator, Sequence

import numpy as np

from runtime.arrays import Floats
from runtime.engine.loop import Loop
from runtime.engine.texts import Text
from runtime.graphs.work import Answer, Work
from runtime.text.beams import BeamSearch


class BeamText(Text):
    """Ids after which the logits are wanted once."""

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__(ids)
        self.logits: Floats = np.empty(0, np.float32)

    @property
    def finished(self) -> bool:
        return self.error is not None or len(self.logits) > 0

    @property
    def most_ids(self) -> int:
        return len(self.ids)

    def work(self, slot: int, most: int) -> Work:
        pending = self.ids[self.read : self.read + most]
        ends = self.read + len(pending) == len(self.ids)
        return Work(slot, pending, self.read, int(ends), logits=True)

    def take(self, work: Work, answer: Answer) -> None:
        self.read = work.past_length + len(work.token_ids)
        if work.answers:
            self.logits = answer.logits[-1].copy()  # the next run overwrites it

    def result(self) -> Floats:
        """Logits [V]; raises what kept it from having them."""
        if self.error is not None:
            raise self.error
        return self.logits


def search(loop: Loop, beams: BeamSearch) -> None:
    """Run a search to its end."""
    for texts in steps(beams):
        for text in loop.run_all(texts, len(texts)):
            text.result()


async def search_async(loop: Loop, beams: BeamSearch) -> None:
    """The same for asyncio."""
    for texts in steps(beams):
        async for text in loop.run_all_async(texts, len(texts)):
            text.result()


def steps(beams: BeamSearch) -> Iterator[list[BeamText]]:
    """The texts of each step, whose logits are taken once all of them have run."""
    while not beams.finished:
        texts = [BeamText([*beams.prompt_ids, *beam.ids]) for beam in beams.running]
        yield texts
        beams.advance([text.result() for text in texts])
