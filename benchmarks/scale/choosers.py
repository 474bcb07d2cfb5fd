"""How a front chooses a replica for a text: by a ring of its prompt's beginning, or the fewer under way of two."""

import hashlib
import random
from bisect import bisect
from collections.abc import Sequence
from itertools import chain
from typing import Generic, Protocol, TypeVar

POINTS = 64  # of each replica on the ring


class Chosen(Protocol):
    """What a front knows of a replica, simulated or live."""

    up: bool
    under_way: int
    slots: int


One = TypeVar("One", bound=Chosen)


class Ring(Generic[One]):
    """Consistent hashing: texts that begin alike come to one replica, and while that is full, to the next of the ring.

    Where all are full, to the first of the ring with the fewest under way.

    Args:
        share: Of a replica's slots, with which it is full for the ring.
    """

    def __init__(self, replicas: Sequence[One], share: float = 1.0) -> None:
        self._replicas, self._share = replicas, share
        points = sorted(
            (place(f"{number}/{point}"), number) for number in range(len(replicas)) for point in range(POINTS)
        )
        self._places = [each for each, _ in points]
        self._numbers = [number for _, number in points]
        self._orders: dict[int, list[One]] = {}

    def choose(self, kind: int) -> One | None:
        """A replica for a text that begins with `kind`; None where none is up."""
        order = self._orders.get(kind) or self._order(kind)
        for replica in order:
            if replica.up and replica.under_way < self._share * replica.slots:
                return replica
        return min((replica for replica in order if replica.up), key=lambda replica: replica.under_way, default=None)

    def _order(self, kind: int) -> list[One]:
        """The replicas of the ring from a beginning's own one on."""
        at, numbers = bisect(self._places, place(f"beginning {kind}")), dict[int, None]()
        for number in chain(self._numbers[at:], self._numbers[:at]):
            numbers[number] = None
            if len(numbers) == len(self._replicas):
                break
        self._orders[kind] = [self._replicas[number] for number in numbers]
        return self._orders[kind]


class TwoRandom(Generic[One]):
    """Of two random replicas that are up, the one with fewer texts under way (Mitzenmacher 2001)."""

    def __init__(self, replicas: Sequence[One], seed: int = 0) -> None:
        self._replicas, self._random = replicas, random.Random(seed)

    def choose(self, _kind: int) -> One | None:
        """A replica for a text; None where none is up."""
        first, second = self._one(), self._one()
        if first is None or second is None:
            return None
        return first if first.under_way <= second.under_way else second

    def _one(self) -> One | None:
        count = len(self._replicas)
        for _ in range(20):
            replica = self._replicas[int(self._random.random() * count)]
            if replica.up:
                return replica
        up = [replica for replica in self._replicas if replica.up]
        return self._random.choice(up) if up else None


def place(name: str) -> int:
    """A point of the ring."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


CHOOSERS = {
    "ring": "ring, the next when all slots are full",
    "early": "ring, the next at a quarter of the slots",
    "two": "fewer under way of two random ones",
}


def chooser_of(name: str, replicas: Sequence[One], seed: int = 0) -> Ring[One] | TwoRandom[One]:
    """By its name, one of `CHOOSERS`."""
    if name == "two":
        return TwoRandom(replicas, seed)
    return Ring(replicas, 0.25 if name == "early" else 1.0)
