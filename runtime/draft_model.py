"""Drafts from a smaller model: the same weights in fewer bits."""

from collections.abc import Sequence

from runtime.common_prefix import common_length
from runtime.graphs.state import DecodeState

FEWEST, MOST = 2, 8


class DraftModel:
    """Drafts for one text, greedily. They get longer while they are right.

    Args:
        state: Of the smaller model, for this text alone.
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
