"""Drafts from the text itself: what came behind its last ids where they stood before (Saxena 2023, prompt lookup)."""

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2  # ids that must have stood there before
MOST_DRAFTED = 8  # a run over more costs more than the reading of the weights that it saves
PATIENCE = 3  # drafts in a row that come to nothing, before more ids must have stood there


class PromptLookup:
    """Drafts for one text: few until one was right, then longer while they are, and few again while they are wrong."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # some ids -> the place behind where they stood last
        self._indexed = 0
        self._length = SHORTEST
        self._wrong = PATIENCE  # a novel has pairs of ids that come again, but hardly ever what followed them

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` ids that may follow `ids`; none where nothing speaks for any."""
        self._index(ids)
        shortest = LONGEST if self._wrong >= PATIENCE else SHORTEST
        for count in range(min(LONGEST, len(ids)), shortest - 1, -1):
            end = self._ends.get(tuple(ids[-count:]))
            if end is not None:
                return repeated(ids, end, min(most, self._length))
        return []

    def judge(self, drafted: int, accepted: int) -> None:
        """Learn how many ids of a draft were right."""
        self._wrong = 0 if accepted else self._wrong + 1
        self._length = min(MOST_DRAFTED, 2 * drafted) if accepted == drafted else max(SHORTEST, accepted + 1)

    def _index(self, ids: Sequence[int]) -> None:
        """What ends before the last id, whose own continuation is what is asked for."""
        for end in range(self._indexed + 1, len(ids)):
            for count in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[tuple(ids[end - count : end])] = end
        self._indexed = max(self._indexed, len(ids) - 1)


def repeated(ids: Sequence[int], start: int, count: int) -> list[int]:
    """`count` ids from `start` on; behind the last one it begins again, as what repeats itself does."""
    period = len(ids) - start
    return [ids[start + place % period] for place in range(count)]
