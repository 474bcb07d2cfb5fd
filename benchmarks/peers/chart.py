"""Decoding speeds as a chart: `python -m benchmarks.peers.chart HIGHLIGHTED FILE.svg`, with a report on standard input.

Run in an environment that has matplotlib; it needs nothing else of ours.
"""

import json
import statistics
import sys
import textwrap
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

INK, SOFT, FAINT = "#1c2430", "#66717f", "#d5dae1"
OURS, PEER = "#2563eb", "#b9c3d0"
BAR, GAP = 0.72, 0.9  # of a bar's row; between precisions, in rows
ABOVE, BELOW, LEFT = 0.72, 0.5, 0.035  # inches above and below the bars, and where text begins, of the width
TITLES = {"fp32": "float32", "int8": "8 bits", "int4": "4 bits"}
Row = dict[str, Any]


def main() -> None:
    highlighted, path = sys.argv[1:]
    report = json.load(sys.stdin)
    pyplot.rcParams.update({"font.family": "sans-serif", "svg.fonttype": "path", "svg.hashsalt": "peers"})
    rows = decoded(report)
    if not rows:
        sys.exit("no chart: no side has decoded")
    figure, axes = pyplot.subplots(figsize=(9.2, ABOVE + BELOW + 0.31 * height(rows)))
    draw_bars(axes, rows, highlighted)
    frame(figure, axes, report)
    figure.savefig(path, metadata={"Date": None}, facecolor="none")


def decoded(report: dict[str, Any]) -> list[Row]:
    """The sides that have decoded: by precision, the fastest first."""
    sides = [side for side in report["sides"].values() if side["values"].get("decode")]
    order = {precision: number for number, precision in enumerate(TITLES)}
    return sorted(sides, key=lambda side: (order[side["precision"]], -statistics.median(side["values"]["decode"])))


def places(rows: list[Row]) -> list[float]:
    """From the top down; a precision's begin after a gap, with its title in it."""
    found, place, before = [], 0.0, None
    for row in rows:
        place += 1 + (GAP if row["precision"] != before else 0)
        before = row["precision"]
        found.append(place)
    return found


def height(rows: list[Row]) -> float:
    return places(rows)[-1] + 1


def draw_bars(axes: Axes, rows: list[Row], highlighted: str) -> None:
    longest = max(max(row["values"]["decode"]) for row in rows)
    before = None
    for place, row in zip(places(rows), rows, strict=True):
        if row["precision"] != before:
            title = TITLES[row["precision"]]
            axes.text(0, place - 0.88, title, color=SOFT, fontsize=9.5, fontweight="bold", va="center")
        before = row["precision"]
        draw_bar(axes, place, row, longest, ours=row["contestant"] == highlighted)
    axes.set_ylim(height(rows), 0.6)
    axes.set_xlim(0, longest * 1.16)


def draw_bar(axes: Axes, place: float, row: Row, longest: float, *, ours: bool) -> None:
    values = row["values"]["decode"]
    low, middle, high = min(values), statistics.median(values), max(values)
    weight = "bold" if ours else "normal"
    axes.barh(place, middle, BAR, color=OURS if ours else PEER, zorder=2)
    axes.plot([0, 0], [place - 0.5, place + 0.5], color=FAINT, linewidth=1, zorder=1)
    line: dict[str, Any] = {"color": INK, "linewidth": 1.1, "alpha": 0.55, "zorder": 3}
    axes.plot([low, high], [place, place], **line)
    for end in (low, high):
        axes.plot([end, end], [place - 0.14, place + 0.14], **line)
    digits = 0 if middle >= 100 else 1
    axes.text(-longest * 0.014, place, row["label"], ha="right", va="center", color=INK, fontsize=10, fontweight=weight)
    axes.text(
        high + longest * 0.012,
        place,
        f"{middle:,.{digits}f}",
        ha="left",
        va="center",
        color=OURS if ours else INK,
        fontsize=10,
        fontweight=weight,
    )


def frame(figure: Figure, axes: Axes, report: dict[str, Any]) -> None:
    """A white card, so that it reads the same on a dark page; what the figures are is above and below them."""
    wide, high = figure.get_size_inches()
    figure.subplots_adjust(left=0.2, right=0.97, top=1 - ABOVE / high, bottom=BELOW / high)
    corner = FancyBboxPatch(
        (0.004, 0.004), 0.992, 0.992, boxstyle="round,pad=0,rounding_size=0.012", mutation_aspect=wide / high
    )
    corner.set(transform=figure.transFigure, facecolor="white", edgecolor=FAINT, zorder=-1)
    figure.add_artist(corner)
    axes.set_axis_off()
    options = report["options"]
    threads = f"{options['threads']} thread{'s' if options['threads'] > 1 else ''}"
    title: dict[str, Any] = {"color": INK, "fontsize": 13.5, "fontweight": "bold", "va": "top"}
    figure.text(LEFT, 1 - 0.2 / high, "Tokens per second, decoding one text", **title)
    below = f"{options['checkpoint']}, {threads}; median of {options['rounds']} rounds, with the least and the most"
    figure.text(LEFT, 1 - 0.5 / high, below, color=SOFT, fontsize=9.5, va="top")
    small: dict[str, Any] = {"color": SOFT, "fontsize": 7.5, "va": "bottom", "linespacing": 1.45}
    figure.text(LEFT, 0.14 / high, "\n".join(textwrap.wrap(report["machine"], 150)), **small)


if __name__ == "__main__":
    main()
