"""The plot of one head's attention map."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from runtime.inside.plots.colours import FAINT, causal, ink_on
from runtime.inside.plots.fonts import POINTS, text_width
from runtime.inside.plots.labels import label, label_step, thinned
from runtime.inside.plots.sheet import HEADER, MARGIN, SMALL, TEXT, draw_image, make_sheet, write, write_in

MOST_CELL, MOST_SIDE = 0.6, 18.0  # inches
ROOTED = 1.3  # inches, divided by the square root of the count: the cell in between
LEAST_PITCH = 0.085  # inches between two labels: 5 points, still legible
LINE = 0.78  # a label's size as a share of the pitch
LONGEST = 16  # characters of a label
NUMBERED = 12  # tokens up to which the cells show their weights
SPACE, CAPTION = 0.07, 0.17  # between a label and the map; above it
QUERY = "query"  # fits even if all tokens are short


class Layout(NamedTuple):
    """The layout of a map and its labels; lengths in inches, text size in points."""

    cell: float
    side: float
    labels: list[str]
    middles: list[float]
    size: float
    longest: float

    @property
    def turned(self) -> bool:
        """Whether keys are written vertically, as they are too long to fit side by side."""
        return self.longest > self.cell

    @property
    def below(self) -> float:
        return SPACE + (self.longest if self.turned else self.size / POINTS)


def plot_attention(weights: NDArray[np.float32], tokens: Sequence[str], layer: int, head: int) -> Figure:
    """Plot the weights [S, S] of each query (row) over the keys (columns)."""
    step = label_step(LEAST_PITCH / cell_of(len(tokens)))
    layout = lay_out(tokens, step)
    sheet = make_sheet(
        f"Attention of layer {layer}, head {head}",
        f"Each row is a query, each column a key that it looks at; a row sums to 100 %{thinned(len(tokens), step)}",
        "weight in %, square-root scale",
        SPACE + layout.longest + layout.side,
        CAPTION + layout.side + layout.below,
    )
    left, top = MARGIN + SPACE + layout.longest, HEADER + CAPTION
    panel = draw_image(sheet, causal(weights), left=left, top=top, width=layout.side, height=layout.side)
    if len(tokens) <= NUMBERED:
        write_numbers(panel, weights)
    write_labels(sheet, layout, left - SPACE, top)
    write_captions(sheet, layout, left - SPACE, top)
    return sheet


def cell_of(count: int) -> float:
    """The side of a cell in inches: a long text has a larger map of smaller cells."""
    return min(MOST_CELL, ROOTED / math.sqrt(count), MOST_SIDE / count)


def lay_out(tokens: Sequence[str], step: int) -> Layout:
    cell = cell_of(len(tokens))
    size = min(TEXT, step * cell * POINTS * LINE)
    labels = [label(token, LONGEST) for token in tokens][::step]
    middles = [(number * step + 0.5) * cell for number in range(len(labels))]
    longest = max(text_width(text, size) for text in [*labels, QUERY])
    return Layout(cell, cell * len(tokens), labels, middles, size, longest)


def write_labels(sheet: Figure, layout: Layout, right: float, top: float) -> None:
    """Write queries left of the map, keys below it."""
    left, bottom, rotation = right + SPACE, top + layout.side + SPACE, 90 if layout.turned else 0
    for text, middle in zip(layout.labels, layout.middles, strict=True):
        write(sheet, right, top + middle, text, size=layout.size, ha="right", va="center")
        write(sheet, left + middle, bottom, text, size=layout.size, ha="center", va="top", rotation=rotation)


def write_captions(sheet: Figure, layout: Layout, right: float, top: float) -> None:
    size, bottom = min(SMALL, layout.size), top + layout.side + SPACE
    write(sheet, right, top - SPACE, QUERY, size=size, colour=FAINT, ha="right", va="bottom")
    write(sheet, right, bottom, "key", size=size, colour=FAINT, ha="right", va="top")


def write_numbers(panel: Axes, weights: NDArray[np.float32]) -> None:
    colours = ink_on(weights)
    for query, key in np.argwhere(np.tri(len(weights))):
        text = percent(float(weights[query, key]))
        write_in(panel, key, query, text, size=SMALL, colour=str(colours[query, key]))


def percent(weight: float) -> str:
    """A weight in percent, with two digits and at most one decimal."""
    return f"{100 * weight:.0f}" if round(100 * weight, 1) >= 10 else f"{100 * weight:.1f}"
