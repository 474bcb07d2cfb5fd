"""Packs attention maps for the page: rounded to hundredths of a percent, compressed, as base64."""

import base64
import zlib

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Floats

WHOLE = 10_000  # hundredths of a percent: rounded once, here, so that the digits a page shows are right


def hundredths(shares: Floats) -> NDArray[np.uint16]:
    """Numbers from 0 to 1 in hundredths of a percent."""
    return np.rint(shares.astype(np.float64) * WHOLE).astype(np.uint16)


def pack_layer(maps: Floats) -> str:
    """One layer's maps [H, S, S] as base64 of a zlib stream.

    The stream holds the lower triangles, head by head and row by row: first the low bytes of all weights, then the high
    bytes, which are nearly all 0 and so compress well.
    """
    rows, columns = np.tril_indices(maps.shape[-1])
    weights = hundredths(maps[:, rows, columns])
    low, high = (weights & 0xFF).astype(np.uint8), (weights >> 8).astype(np.uint8)
    return base64.b64encode(zlib.compress(low.tobytes() + high.tobytes())).decode("ascii")
