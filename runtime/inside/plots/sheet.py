"""The sheet that plots are drawn on: white, laid out in inches from the top left, whatever the user's settings."""

import io
import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from runtime.inside.plots.colours import FAINT, INK, PAPER, TICKS, colour_map, scale
from runtime.inside.plots.fonts import BOLD, REGULAR, text_width

MARGIN = 0.35
HEADER = 1.3  # title, what the picture shows, and the scale
TITLE, TEXT, SMALL = 13, 9, 7.5  # points
BAR_TOP, BAR_WIDTH, BAR_HEIGHT, BAR_ROOM = 0.86, 2.6, 0.11, 2.78  # the room is its width and a space
DPI, MOST_PIXELS = 200, 60e6
NOTEBOOK_DPI = 100  # sets the size shown, not the pixels


class Sheet(Figure):
    """A figure that a notebook shows without pyplot, and that is saved as it was laid out."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """Like matplotlib's, but options not given come from the sheet instead of the user's settings."""
        own = {"dpi": self.dpi, "bbox_inches": self.bbox_inches, "facecolor": PAPER, "edgecolor": PAPER}
        super().savefig(fname, **{**own, "transparent": False, **options})

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        width, height = self.get_size_inches()
        return buffer.getvalue(), {"width": round(width * NOTEBOOK_DPI), "height": round(height * NOTEBOOK_DPI)}


def make_sheet(title: str, explanation: str, scale_of: str, width: float, height: float) -> Sheet:
    """A sheet with its header, wide enough for it and for `width` between the margins; `height` is below the header."""
    head = (text_width(title, TITLE, BOLD), text_width(explanation, TEXT), BAR_ROOM + text_width(scale_of, TEXT))
    across, down = max(width, *head) + 2 * MARGIN, HEADER + height + MARGIN
    dpi = min(DPI, math.sqrt(MOST_PIXELS / (across * down)))
    sheet = Sheet(figsize=(across, down), dpi=dpi, facecolor=PAPER)
    sheet.set_layout_engine("none")  # the user's settings may name one
    sheet.add_artist(Rectangle((0, 0), 1, 1, facecolor=PAPER, edgecolor="none", zorder=-1, transform=sheet.transFigure))
    write(sheet, MARGIN, 0.42, title, size=TITLE, font=BOLD)
    write(sheet, MARGIN, 0.68, explanation, colour=FAINT)
    draw_scale(sheet, scale_of)
    return sheet


def write(
    sheet: Figure,
    x: float,
    y: float,
    text: str,
    *,
    size: float = TEXT,
    colour: str = INK,
    font: FontProperties = REGULAR,
    **options: Any,
) -> None:
    """Write text at `x` and `y` inches from the left and the top."""
    width, height = sheet.get_size_inches()
    sheet.text(x / width, 1 - y / height, text, **styled(size, colour, font), **options)


def write_in(
    panel: Axes,
    column: float,
    row: float,
    text: str,
    *,
    size: float = TEXT,
    colour: str = INK,
    font: FontProperties = REGULAR,
) -> None:
    """Write text in the middle of a cell."""
    panel.text(column, row, text, ha="center", va="center", **styled(size, colour, font))


def styled(size: float, colour: str, font: FontProperties) -> dict[str, Any]:
    """Options for literal text, in which `$` and `_` do not begin a formula."""
    return {
        "fontproperties": font,
        "fontsize": size,
        "color": colour,
        "parse_math": False,
        "usetex": False,
        "antialiased": True,
    }


def draw_image(sheet: Figure, values: NDArray[Any], *, left: float, top: float, width: float, height: float) -> Axes:
    """Draw values in the scale's colours, on axes that count rows and columns."""
    across, down = sheet.get_size_inches()
    panel = sheet.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    panel.set_axis_off()
    panel.imshow(
        values, cmap=colour_map(), norm=scale(), aspect="auto", origin="upper", interpolation="nearest", resample=True
    )
    return panel


def draw_scale(sheet: Figure, scale_of: str) -> None:
    shades = np.linspace(0, 1, 256)[np.newaxis] ** 2  # evenly spaced colours
    draw_image(sheet, shades, left=MARGIN, top=BAR_TOP, width=BAR_WIDTH, height=BAR_HEIGHT)
    for tick in TICKS:
        x = MARGIN + BAR_WIDTH * math.sqrt(tick / 100)
        write(sheet, x, BAR_TOP + BAR_HEIGHT + 0.05, str(tick), size=SMALL, colour=FAINT, ha="center", va="top")
    middle = BAR_TOP + BAR_HEIGHT / 2
    write(sheet, MARGIN + BAR_ROOM, middle, scale_of, colour=FAINT, va="center")
