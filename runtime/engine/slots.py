"""SlotTable: which ids each slot holds, and which slot a new text takes."""

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from runtime.engine.drafts import common_length
from runtime.engine.texts import Text

LEAST_SHARED = 16  # tokens; copying the keys and values of fewer saves nothing
MOST_KEPT = 8  # slots whose text has ended and that keep what they have read, up to 75 MB each for GPT-2 small


class Place(NamedTuple):
    """Where a text begins: its slot, how many of its ids that holds, and the slot that they are copied from, if any."""

    slot: int
    shared: int
    source: int | None = None


class SlotTable:
    """The slots' users, and the ids that slots without one have kept.

    Args:
        prefix_cache: Whether a text takes over what another one with the same beginning has read.
    """

    def __init__(self, size: int, *, prefix_cache: bool = True) -> None:
        self._prefix_cache = prefix_cache
        self.users: dict[int, Text] = {}
        self._kept: dict[int, list[int]] = {}
        self._empty = set(range(size))
        self._used: dict[int, int] = {}
        self._clock = count()

    def place(self, ids: Sequence[int]) -> Place | None:
        """Where a text that begins with these ids would run; None if no slot is free.

        What a slot has read counts, whether its text has ended or not.
        """
        if not self._free:
            return None
        source, shared = self._most_shared(ids)
        if source in self._kept and (2 * shared >= len(self._kept[source]) or self._free == 1):
            return Place(source, shared)
        if shared < LEAST_SHARED:
            return Place(self._least_used(), 0)
        return Place(self._least_used(but=source), shared, source)

    @property
    def _free(self) -> int:
        return len(self._kept) + len(self._empty)

    def _least_used(self, but: int | None = None) -> int:
        """The first empty slot, else the one whose text ended first; `but` is needed."""
        return min(self._empty) if self._empty else min(self._kept.keys() - {but}, key=self._used.__getitem__)

    def _most_shared(self, ids: Sequence[int]) -> tuple[int, int]:
        if not self._prefix_cache:
            return -1, 0
        held = {**self._kept, **{slot: text.ids[: text.read] for slot, text in self.users.items()}}
        shared = {slot: common_length(ids, read) for slot, read in held.items()}
        best = max(shared, key=shared.__getitem__, default=-1)
        return (best, shared[best]) if shared else (-1, 0)

    def take(self, slot: int, text: Text) -> None:
        self._empty.discard(slot)
        self._kept.pop(slot, None)
        self.users[slot] = text

    def leave(self, slot: int) -> list[int]:
        """End a slot's use; it keeps what it has read. Returns slots that keep nothing any more."""
        text = self.users.pop(slot)
        self._kept[slot] = text.ids[: text.read] if self._prefix_cache else []
        self._used[slot] = next(self._clock)
        dropped = sorted(self._kept, key=self._used.__getitem__)[: max(0, len(self._kept) - MOST_KEPT)]
        dropped += [slot for slot, ids in self._kept.items() if not ids]
        for each in dropped:
            self._kept.pop(each, None)
            self._empty.add(each)
        return dropped

    def forget_kept(self) -> list[int]:
        """Let no slot keep what it has read after its text has ended; returns those that did."""
        slots = list(self._kept)
        self._kept.clear()
        self._empty.update(slots)
        return slots

    def about_to_read(self, ids: Sequence[int], shared: int) -> bool:
        """Whether a text is going to read more of the beginning of `ids` than the `shared` ones that are to be had."""
        return self._prefix_cache and any(
            self._will_share(text, ids) >= shared + LEAST_SHARED for text in self.users.values()
        )

    def _will_share(self, text: Text, ids: Sequence[int]) -> int:
        """How many of the first `ids` a slot will hold that its text has not read yet; 0 if it has read all of them."""
        shared = common_length(text.ids, ids)
        return shared if text.read < shared else 0
