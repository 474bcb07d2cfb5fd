"""Distances of logits, which are many: a vocabulary's at every position of a text."""

import math

import numpy as np

from runtime.arrays import Floats
from runtime.proof.rounded import centred

ROWS = 32  # in float64 at a time: all of a text would leave the processor's cache, and take ten times as long


def distance(found: Floats, true: Floats) -> float:
    """The distance of logits [S, V] from the true ones, relative to their norm, both centred; infinite for any NaN."""
    if not np.isfinite(found).all():
        return math.inf
    off, size = squares(found, true)
    return math.sqrt(off / (size or 1.0))


def squares(found: Floats, true: Floats) -> tuple[float, float]:
    """The squared distance of logits [S, V] from the true ones, and the squared norm of those, centred."""
    off, size = 0.0, 0.0
    for start in range(0, len(true), ROWS):
        exact = centred(true[start : start + ROWS])
        error = centred(found[start : start + ROWS]) - exact
        off, size = off + float(np.vdot(error, error)), size + float(np.vdot(exact, exact))
    return off, size
