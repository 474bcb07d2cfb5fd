"""The load: texts that arrive at random (Poisson), at a rate that changes over the day; and what they are like."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Rate = Callable[[np.ndarray], np.ndarray]  # texts a second, at seconds
DAY = 86_400.0  # seconds
PEAK = 15 * 3600.0  # when most texts come


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What texts are like.

    Attributes:
        kinds: Beginnings that there are, such as a service's instructions; the n-th is asked for 1/n as often (Zipf).
        shared: Tokens of a beginning, from and to, uniform; each beginning has its own.
        own: Tokens of a prompt after its beginning, from and to, uniform.
        new: Tokens of an answer on average; geometric.
        most_new: Tokens of an answer at most.
    """

    kinds: int = 1000
    shared: tuple[int, int] = (64, 256)
    own: tuple[int, int] = (16, 128)
    new: float = 64.0
    most_new: int = 512

    def draw(self, source: np.random.Generator, count: int) -> tuple[list[int], list[int], list[int], list[int]]:
        """(beginnings, their tokens, tokens after them, new tokens) of so many texts."""
        shares = 1 / np.arange(1, self.kinds + 1)
        kinds = source.choice(self.kinds, count, p=shares / shares.sum())
        lengths = np.random.default_rng(1).integers(*self.shared, endpoint=True, size=self.kinds)
        own = source.integers(*self.own, endpoint=True, size=count)
        new = np.minimum(source.geometric(1 / self.new, count), self.most_new)
        return kinds.tolist(), lengths[kinds].tolist(), own.tolist(), new.tolist()

    def means(self) -> tuple[float, float]:
        """(tokens of a prompt, new tokens) on average; the truncated geometric's is exact."""
        new = self.new * (1 - (1 - 1 / self.new) ** self.most_new)
        return (sum(self.shared) + sum(self.own)) / 2, new


def steady(rate: float) -> Rate:
    """So many texts a second, always."""
    return lambda at: np.full_like(at, rate)


def daily(peak: float, ratio: float) -> Rate:
    """Texts a second at a second of the day: a sine from `peak` / `ratio` to `peak`."""
    least = peak / ratio
    return lambda at: least + (peak - least) * (0.5 + 0.5 * np.cos(2 * np.pi * (at - PEAK) / DAY))


def arrivals(rate: Rate, most: float, seconds: float, source: np.random.Generator) -> Iterator[list[float]]:
    """Times of arrivals, in lists of some thousands: Poisson's process of the `most`, thinned to the rate."""
    at, many = 0.0, 20_000
    while at < seconds:
        times = at + np.cumsum(source.exponential(1 / most, many))
        at = float(times[-1])
        times = times[source.random(many) * most < rate(times)]
        yield times[times < seconds].tolist()
