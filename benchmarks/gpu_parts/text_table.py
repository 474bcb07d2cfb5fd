"""Tables in plain text: what is read in a log."""

from collections.abc import Sequence


def text_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [line(row, widths) for row in (headings, ["-" * width for width in widths], *rows)]
    return "\n".join([title, *lines])


def line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.rjust(width) if place else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()
