"""Sketches: a few random sums of an array from which its distance to another array can be estimated.

Each is the sum of all elements with random signs. The mean squared difference of such sums estimates the squared
distance (Johnson and Lindenstrauss), whichever elements differ; 32 sums give the distance to within an eighth or so.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

SUMS = 32
SEED = 0


def sketch(array: ArrayLike) -> list[float]:
    """The sums, taken in float64 and rounded to float32's digits."""
    values = np.asarray(array, np.float64).ravel()
    draws = np.random.RandomState(SEED)  # frozen: NumPy's newer generators may change their streams
    return [float(f"{signed_sum(values, draws):.8g}") for _ in range(SUMS)]


def signed_sum(values: NDArray[np.float64], draws: np.random.RandomState) -> float:
    drawn = np.frombuffer(draws.bytes(-(-values.size // 8)), np.uint8)
    bits = np.unpackbits(drawn, count=values.size)
    return float(2 * values[bits == 1].sum() - values.sum())


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The norm of the difference of two arrays, estimated from their sketches."""
    return float(np.sqrt(np.mean(np.square(np.subtract(one, other)))))
