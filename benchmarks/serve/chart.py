"""The chart: time to the first token and between tokens, over the rate at which prompts arrive."""

from pathlib import Path
from typing import Any

from benchmarks.serve.sides import OURS

INK, SOFT, FAINT = "#1c2430", "#66717f", "#d5dae1"
COLOURS = {OURS: "#2563eb", "llama.cpp": "#c2410c", "OpenVINO GenAI": "#64748b"}
TITLES = {"fp32": "float32", "int8": "8 bits"}
KINDS = ("first token", "between tokens")


def draw(report: dict[str, Any], path: Path) -> None:
    """Medians as lines, up to the 95th percentile as bands; a column for each precision."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.family": "sans-serif", "svg.fonttype": "path", "svg.hashsalt": "serve"})
    precisions = report["precisions"]
    figure, grid = pyplot.subplots(
        2, len(precisions), figsize=(4.7 * len(precisions), 5.6), squeeze=False, sharex="col"
    )
    for column, (precision, found) in enumerate(precisions.items()):
        for row, kind in enumerate(KINDS):
            axes = grid[row][column]
            for name, loads in found["arrivals"].items():
                draw_side(axes, name, loads, kind)
            frame(axes, kind if not column else "", TITLES[precision] if not row else "")
        grid[1][column].set_xlabel("requests that arrive a second", color=SOFT, fontsize=9)
    grid[0][0].legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, facecolor="white")


def draw_side(axes: Any, name: str, loads: list[dict[str, float]], kind: str) -> None:
    rates = [load["rate"] for load in loads]
    middle, late = ([load[f"{kind} p{share}"] for load in loads] for share in (50, 95))
    colour = COLOURS[name]
    axes.plot(rates, middle, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=name)
    axes.fill_between(rates, middle, late, color=colour, alpha=0.12, linewidth=0)


def frame(axes: Any, label: str, title: str) -> None:
    axes.set_yscale("log")
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    axes.set_ylabel(f"{label}, ms" if label else "", color=SOFT, fontsize=9)
    axes.tick_params(colors=SOFT, labelsize=8.5, which="both", length=2)
    axes.grid(color=FAINT, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
