"""The picture of a day: the load, time to the first token, and time to the last, with failures and the update."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale.choosers import CHOOSERS
from benchmarks.scale.figures import ARRIVED, FIRST, LATENCY
from benchmarks.scale.fleet import Fleet
from benchmarks.scale.load import DAY

INK, SOFT, FAINT = "#1c2430", "#66717f", "#d5dae1"
COLOURS = {"two": "#2563eb", "early": "#15803d", "ring": "#c2410c"}
BINS = 96  # of a day
HOUR = 3600.0


def draw(days: dict[str, tuple[Fleet, np.ndarray]], compress: float, path: Path) -> None:
    """Medians as lines, 99th percentiles as broken ones; `days` by chooser, with a row for each text that ended."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.family": "sans-serif", "svg.fonttype": "path", "svg.hashsalt": "scale"})
    figure, grid = pyplot.subplots(3, 1, figsize=(9.0, 7.6), sharex=True, height_ratios=(1, 2, 2))
    hours = (np.arange(BINS) + 0.5) * 24 / BINS
    for chooser, (_, ended) in days.items():
        bins = np.minimum((ended[:, ARRIVED] * compress / DAY * BINS).astype(int), BINS - 1)
        order = np.argsort(bins, kind="stable")
        parts = np.split(ended[order], np.searchsorted(bins[order], np.arange(1, BINS)))
        if chooser == next(iter(days)):
            rates = [len(part) * BINS * compress / DAY for part in parts]
            grid[0].fill_between(hours, rates, color=SOFT, alpha=0.25, linewidth=0)
        for axes, column in ((grid[1], FIRST), (grid[2], LATENCY)):
            for share, style in ((50, "-"), (99, "--")):
                values = [np.percentile(part[:, column], share) if len(part) else np.nan for part in parts]
                label = CHOOSERS[chooser] if share == 50 else None
                axes.plot(hours, values, style, color=COLOURS[chooser], linewidth=1.6, label=label)
    fleet = next(iter(days.values()))[0]
    for axes, label in zip(grid, ("texts a second", "first token, s", "whole text, s"), strict=True):
        mark(axes, fleet, compress)
        frame(axes, label)
    for axes in grid[1:]:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    grid[0].set_ylim(0)
    grid[0].set_title(f"{len(fleet.replicas):,} replicas, a day", loc="left", color=INK, fontsize=11, fontweight="bold")
    grid[1].legend(frameon=False, fontsize=8.5, labelcolor=INK, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    grid[2].set_xlabel(
        "hour of the day; broken lines: 99th percentile; shaded: the update; ticks: a replica fails",
        color=SOFT,
        fontsize=9,
    )
    grid[2].set_xlim(0, 24)
    grid[2].set_xticks(range(0, 25, 3))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)


def mark(axes: Any, fleet: Fleet, compress: float) -> None:
    """The update as a band, failures as ticks at the foot."""
    times = {kind: [at * compress / HOUR for at, each in fleet.events if each == kind] for _, kind in fleet.events}
    for begins, ends in zip(times.get("update begins", []), times.get("update ends", []), strict=True):
        axes.axvspan(begins, ends, color=FAINT, alpha=0.6, linewidth=0)
    failures = [at for at in times.get("failure", []) if at < 24]
    axes.plot(
        failures, np.zeros(len(failures)), "|", color=INK, markersize=7, transform=axes.get_xaxis_transform(),
        clip_on=False, linewidth=0,
    )  # fmt: skip


def frame(axes: Any, label: str) -> None:
    axes.set_ylabel(label, color=SOFT, fontsize=9)
    axes.tick_params(colors=SOFT, labelsize=8.5, which="both", length=2)
    axes.grid(color=FAINT, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
