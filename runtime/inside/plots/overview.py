"""The overview plot: the attention maps of all heads and layers as tiles."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from runtime.inside.plots.colours import FAINT, GAP, causal
from runtime.inside.plots.labels import counted
from runtime.inside.plots.sheet import HEADER, MARGIN, draw_image, make_sheet, write

SIDE = 11.0  # inches of the longer side, within the bounds of a tile
LEAST_TILE, MOST_TILE = 0.34, 1.1
MOST_POINTS, LEAST_POINTS = 64, 32  # along a tile
GAP_POINTS = 1
NUMBERS, CAPTION, ROOM = 0.1, 0.32, 0.45  # inches from the tiles to numbers, to "layer" and "head", and to the rest
LEFT, TOP = MARGIN + ROOM, HEADER + ROOM


def plot_overview(attentions: NDArray[np.float32], layers: Sequence[int]) -> Figure:
    """Attentions [layers, H, S, S] as tiles: layers down, heads across, and in each tile queries down, keys across."""
    rows, columns, count = attentions.shape[:3]
    tile = min(MOST_TILE, max(LEAST_TILE, SIDE / max(rows, columns)))
    width, height = columns * tile, rows * tile
    sheet = make_sheet(
        f"Attention of every head over {counted(count)}",
        f"In each tile queries go down and keys across{pooled(count)}",
        "weight in %, square-root scale",
        ROOM + width,
        ROOM + height,
    )
    draw_image(sheet, tiled(attentions), left=LEFT, top=TOP, width=width, height=height)
    write_numbers(sheet, layers, columns, tile)
    write(sheet, LEFT - CAPTION, TOP + height / 2, "layer", colour=FAINT, ha="right", va="center", rotation=90)
    write(sheet, LEFT + width / 2, TOP - CAPTION, "head", colour=FAINT, ha="center", va="bottom")
    return sheet


def write_numbers(sheet: Figure, layers: Sequence[int], heads: int, tile: float) -> None:
    for row, layer in enumerate(layers):
        write(sheet, LEFT - NUMBERS, TOP + (row + 0.5) * tile, str(layer), ha="right", va="center")
    for head in range(heads):
        write(sheet, LEFT + (head + 0.5) * tile, TOP - NUMBERS, str(head), ha="center", va="bottom")


def tiled(attentions: NDArray[np.float32]) -> NDArray[np.float32]:
    """One image of all maps, made layer by layer, as all at once may take gigabytes."""
    return np.vstack([np.hstack(list(framed(enlarged(causal(shrunk(maps)))))) for maps in attentions])


def framed(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps with half of the gap between tiles on each side."""
    sides = (GAP_POINTS, GAP_POINTS)
    return np.pad(maps, ((0, 0), sides, sides), constant_values=GAP)


def enlarged(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps with each weight as a square of points if there are few, so that gaps stay thin."""
    times = -(-LEAST_POINTS // maps.shape[-1])
    return maps.repeat(times, axis=-2).repeat(times, axis=-1)


def shrunk(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest of each square of weights, so that a single strong one stays visible."""
    starts = range(0, maps.shape[-1], square(maps.shape[-1]))
    rows: NDArray[np.float32] = np.maximum.reduceat(maps, starts, axis=-2)
    found: NDArray[np.float32] = np.maximum.reduceat(rows, starts, axis=-1)
    return found


def square(count: int) -> int:
    """How many weights along a side make one point."""
    return -(-count // MOST_POINTS)


def pooled(count: int) -> str:
    """A note on tiles with fewer points than weights; empty if there are none."""
    side = square(count)
    return "" if side == 1 else f"; each point is the largest of {side} × {side} weights"
