"""Drafts of the next ids: repeats of earlier text (prompt lookup), or greedy ids from a smaller model."""

from collections.abc import Sequence

from runtime.graphs.state import DecodeState

LONGEST, SHORTEST = 4, 2  # ids that must have occurred before
MOST_DRAFTED = 8  # a run over more costs more than the reading of weights that it saves
PATIENCE = 3  # useless drafts in a row, after which a longer match is required


class PromptLookup:
    """Drafts from the text itself: what followed the last ids where they occurred before (Saxena 2023, prompt lookup).

    Drafts start short, grow while they are right, and are short again while they are wrong.
    """

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # some ids -> the index after their last occurrence
        self._indexed = 0
        self._length = SHORTEST
        self._wrong = PATIENCE  # in a novel pairs of ids recur, but what followed them hardly ever does

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` ids that may follow `ids`; none if nothing matches."""
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
        """Index the sequences that end before the last id; the continuation of the last id is still unknown."""
        for end in range(self._indexed + 1, len(ids)):
            for count in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[tuple(ids[end - count : end])] = end
        self._indexed = max(self._indexed, len(ids) - 1)


def repeated(ids: Sequence[int], start: int, count: int) -> list[int]:
    """`count` ids from `start` on, starting over after the last one."""
    period = len(ids) - start
    return [ids[start + index % period] for index in range(count)]


FEWEST, MOST = 2, 8


class DraftModel:
    """Greedy drafts from a smaller model: the same weights in fewer bits. Drafts grow while they are right.

    Args:
        state: A state of the smaller model, for this text alone.
    """

    def __init__(self, state: DecodeState) -> None:
        self._state = state
        self._read: list[int] = []
        self._length = 4

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` ids that may follow `ids`."""
        count = min(most, self._length)
        if count < 1:
            return []
        known = min(common_length(self._read, ids), len(ids) - 1)
        self._state.rewind(known)
        drafted = [self._state.advance(ids[known:])]
        while len(drafted) < count:
            drafted.append(self._state.advance(drafted[-1:]))
        self._read = [*ids, *drafted[:-1]]
        return drafted

    def judge(self, drafted: int, accepted: int) -> None:
        """Learn how many ids of a draft were right."""
        self._length = min(MOST, drafted + 1) if accepted == drafted else max(FEWEST, accepted + 1)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the common prefix."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
