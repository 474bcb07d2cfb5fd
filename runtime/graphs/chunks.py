"""ChunkedRuns: a text's new ids in chunks, as int8 attention takes longer over many ids at once than over few."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np

from runtime.graphs.ragged import RaggedRuns
from runtime.graphs.work import Answer, Work, copied

CHUNK = 128  # ids: docs/speed.md has what parts of 32 to 512 take


class ChunkedRuns:
    """Ragged runs in each of which a slot has at most so many new ids; the next chunks of all slots run together."""

    def __init__(self, runs: RaggedRuns, most: int = CHUNK) -> None:
        self._runs = runs
        self._most = most

    def run(self, works: Sequence[Work]) -> list[Answer]:
        """Run works, sorted by their slots."""
        if all(len(work.token_ids) <= self._most for work in works):
            return self._runs.run(works)
        found: dict[int, list[Answer]] = {work.slot: [] for work in works}
        for together in zip_longest(*(chunks(work, self._most) for work in works)):
            part = [work for work in together if work]
            for work, answer in zip(part, self._runs.run(part), strict=True):
                found[work.slot].append(copied(answer))  # the next run overwrites it
        return [joined(answers) for answers in found.values()]


def chunks(work: Work, most: int) -> Iterator[Work]:
    """A work as several, in order; those before the wanted answers give none."""
    unasked = len(work.token_ids) - work.answers
    for start in range(0, len(work.token_ids), most):
        ids = work.token_ids[start : start + most]
        asked = min(len(ids), max(0, start + len(ids) - unasked))
        yield work._replace(token_ids=ids, past_length=work.past_length + start, answers=asked)


def joined(answers: Sequence[Answer]) -> Answer:
    """The answers of all chunks of a work as one."""
    return Answer(*map(np.concatenate, zip(*answers, strict=True))) if len(answers) > 1 else answers[0]
