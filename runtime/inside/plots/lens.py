"""The plot of the lens: each layer's likeliest next token at every position."""

from typing import NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from runtime.inside.plots.colours import ACCENT, FAINT, PAPER, ink_on
from runtime.inside.plots.fonts import BOLD, REGULAR, text_width
from runtime.inside.plots.labels import counted, label
from runtime.inside.plots.sheet import HEADER, MARGIN, SMALL, draw_image, make_sheet, write, write_in
from runtime.text.tokenizer import Pieces

POSITIONS, MANY = 16, 512  # positions in a panel; twice as many for texts over 512, and so on
CELL_HEIGHT, LEAST_WIDTH = 0.22, 0.5  # inches
SIZE = 8  # points
LONGEST = 12  # characters of a token
HEAD, POSITION, TOKEN = 0.4, 0.27, 0.09  # inches above a panel: the header, and the lines in it
APART = 0.3  # between two panels
SPACE = 0.1
PADDING = 0.2  # beside the longest text of a cell, partly taken by the bar
INSET = 0.47  # of a bar from the middle, as a share of a cell's width
GAP, BAR = 1.5, 2.5  # points


class Lens(Protocol):
    """The part of `runtime.inside.lens.Lens` that is drawn, for S positions."""

    @property
    def tokens(self) -> tuple[str, ...]: ...
    @property
    def top_ids(self) -> NDArray[np.int64]: ...
    @property
    def probabilities(self) -> NDArray[np.float32]: ...
    @property
    def answers(self) -> NDArray[np.int64]: ...
    @property
    def pieces(self) -> Pieces: ...


class Table(NamedTuple):
    """The content of the cells: layers down, as in the model, and positions across."""

    tokens: list[str]
    layers: list[str]
    answers: list[list[str]]
    probabilities: NDArray[np.float32]
    final: NDArray[np.bool_]


def plot_lens(lens: Lens) -> Figure:
    """Plot a table of layers by positions; many positions are split into panels, one below the other."""
    table = read(lens)
    spans, cell = panels(len(table.tokens)), cell_width(table)
    room = SPACE + max(text_width(name, SIZE) for name in table.layers)
    height = CELL_HEIGHT * len(table.layers)
    sheet = make_sheet(
        f"What each layer would say next, over {counted(len(table.tokens))}",
        "The likeliest next token by each layer’s hidden state; bold with an orange bar: already the final answer",
        "probability in %, square-root scale",
        room + cell * len(spans[0]),
        (HEAD + height) * len(spans) + APART * (len(spans) - 1),
    )
    for number, span in enumerate(spans):
        top = HEADER + HEAD + number * (HEAD + height + APART)
        draw_panel(sheet, table, span, left=MARGIN + room, top=top, cell=cell)
    return sheet


def read(lens: Lens) -> Table:
    found = lens.top_ids[..., 0]
    pieces = {token: label(lens.pieces.piece(token), LONGEST) for token in np.unique(found).tolist()}
    between = [f"layer {number}" for number in range(1, len(found) - 1)]
    return Table(
        tokens=[label(token, LONGEST) for token in lens.tokens],
        layers=["embedding", *between, "output"],
        answers=[[pieces[token] for token in row] for row in found.tolist()],
        probabilities=lens.probabilities[..., 0],
        final=found == lens.answers,
    )


def cell_width(table: Table) -> float:
    """A cell width in inches that fits the longest text."""
    texts = {*table.tokens, *(text for row in table.answers for text in row)}
    return max(LEAST_WIDTH, PADDING + max(text_width(text, SIZE, BOLD) for text in texts))


def panels(count: int) -> list[range]:
    """The positions of each panel, divided as evenly as possible."""
    most = POSITIONS * -(-count // MANY)
    width = -(-count // -(-count // most))
    return [range(first, min(first + width, count)) for first in range(0, count, width)]


def draw_panel(sheet: Figure, table: Table, span: range, *, left: float, top: float, cell: float) -> None:
    values = table.probabilities[:, span.start : span.stop]
    width, height = cell * len(span), CELL_HEIGHT * len(table.layers)
    panel = draw_image(sheet, values, left=left, top=top, width=width, height=height)
    write_answers(panel, table, span, ink_on(values))
    mark(panel, table.final[:, span.start : span.stop])
    write_positions(sheet, table, span, left=left, top=top, cell=cell)
    for row, name in enumerate(table.layers):
        write(sheet, left - SPACE, top + (row + 0.5) * CELL_HEIGHT, name, size=SIZE, ha="right", va="center")


def write_positions(sheet: Figure, table: Table, span: range, *, left: float, top: float, cell: float) -> None:
    """Write the positions above a panel, and their tokens."""
    numbers, tokens = top - POSITION, top - TOKEN
    write(sheet, left - SPACE, numbers, "position", size=SMALL, colour=FAINT, ha="right", va="baseline")
    write(sheet, left - SPACE, tokens, "token", size=SMALL, colour=FAINT, ha="right", va="baseline")
    for column, position in enumerate(span):
        middle = left + (column + 0.5) * cell
        write(sheet, middle, numbers, str(position), size=SMALL, colour=FAINT, ha="center", va="baseline")
        write(sheet, middle, tokens, table.tokens[position], size=SIZE, font=BOLD, ha="center", va="baseline")


def write_answers(panel: Axes, table: Table, span: range, colours: NDArray[np.str_]) -> None:
    for row, answers in enumerate(table.answers):
        for column, position in enumerate(span):
            font = BOLD if table.final[row, position] else REGULAR
            write_in(panel, column, row, answers[position], size=SIZE, colour=str(colours[row, column]), font=font)


def mark(panel: Axes, final: NDArray[np.bool_]) -> None:
    """Draw white lines between cells, and a bar in each cell with the final answer; adjacent bars join."""
    rows, columns = final.shape
    across = [[(-0.5, row - 0.5), (columns - 0.5, row - 0.5)] for row in range(1, rows)]
    down = [[(column - 0.5, -0.5), (column - 0.5, rows - 0.5)] for column in range(1, columns)]
    bars = [[(column - INSET, row - 0.5), (column - INSET, row + 0.5)] for row, column in np.argwhere(final)]
    panel.add_collection(lines([*across, *down], PAPER, GAP), autolim=False)
    panel.add_collection(lines(bars, ACCENT, BAR), autolim=False)


def lines(segments: list[list[tuple[float, float]]], colour: str, width: float) -> LineCollection:
    return LineCollection(segments, colors=colour, linewidths=width, capstyle="butt", antialiaseds=True)
