"""Sketches: a few random sums of an array from which its distance to another array can be estimated.

Each is the sum of all elements with random signs. The mean squared difference of such sums estimates the squared
distance (Johnson and Lindenstrauss), whichever elements differ; 32 sums give the distance to within an eighth or so.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

SUMS = 32
SEED = 0


def sketch(array: ArrayLike) -> list[float]:
    """The sums, taken in float64 and rounded to float32's digits."""
    return sketches({"": array})[""]


def sketches(arrays: Mapping[str, ArrayLike]) -> dict[str, list[float]]:
    """The sketch of each array; those of one size are multiplied by the same signs at once."""
    flat = {name: np.asarray(array, np.float64).ravel() for name, array in arrays.items()}
    found: dict[str, list[float]] = {}
    for size in dict.fromkeys(values.size for values in flat.values()):
        names = [name for name, values in flat.items() if values.size == size]
        rows = np.stack([flat[name] for name in names])
        sums = np.stack([rows @ signs for signs in draw_signs(size)], axis=1)
        found |= {name: [float(f"{value:.8g}") for value in row] for name, row in zip(names, sums, strict=True)}
    return found


def draw_signs(size: int) -> Iterator[NDArray[np.float64]]:
    """SUMS rows of random signs [size]."""
    draws = np.random.RandomState(SEED)  # frozen: NumPy's newer generators may change their streams
    for _ in range(SUMS):
        drawn = np.frombuffer(draws.bytes(-(-size // 8)), np.uint8)
        yield np.where(np.unpackbits(drawn, count=size) == 1, 1.0, -1.0)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The norm of the difference of two arrays, estimated from their sketches."""
    return float(np.sqrt(np.mean(np.square(np.subtract(one, other)))))
