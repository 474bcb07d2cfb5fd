"""The tables: how fast each side generates, what its start and its files cost, and how this runtime compares."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.study import PRECISIONS, ratios, spread
from benchmarks.common.turns import WIDTH, empty_table
from benchmarks.peers.contestants import OURS
from benchmarks.peers.measuring import METRICS

MISSING = "–"
STARTS = {"start": "cold start, s", "memory": "peak memory, MiB"}
BEST: dict[str, Callable[..., Any]] = {
    **{metric.name: metric.best for metric in METRICS},
    **dict.fromkeys(("start", "memory", "size"), min),
}
RATIOS = {
    "decode": "decode",
    "prefill": "prefill",
    "batch": "batch",
    "start": "cold start",
    "memory": "memory",
    "size": "files",
}


def print_report(report: dict[str, Any]) -> None:
    console = Console(width=WIDTH, highlight=False)
    console.print(
        report["title"], report["machine"], bandwidth_line(report["bandwidth"]), sep="\n", end="\n\n", soft_wrap=True
    )
    for title, table in (
        ("Generating: median (min to max)", speed_table(report)),
        ("Starting, and what it takes: median (min to max)", start_table(report)),
        (f"{OURS} against the best peer of the same precision: times as good, 1 and more is ours", ratio_table(report)),
    ):
        console.print(f"[bold]{title}[/bold]")
        console.print(table)
    for line in failure_lines(report):
        console.print(line, markup=False)


def bandwidth_line(bandwidth: dict[str, float]) -> str:
    found = ", ".join(f"{speed / 1e9:.1f} GB/s with {pages}" for pages, speed in bandwidth.items())
    return f"memory: {found}; the limit is the larger, over the bytes of weights that a token reads"


def speed_table(report: dict[str, Any]) -> Table:
    table = empty_table("side", *(metric.heading for metric in METRICS), "of the limit", "same tokens, rows")
    decode, *others = (metric.name for metric in METRICS)
    for side in by_precision(report, table):
        values = side["values"]
        cells = [told(values.get(name)) for name in (decode, *others)]
        table.add_row(label(side), *cells, share(side, report["bandwidth"]), same(side))
    return table


def start_table(report: dict[str, Any]) -> Table:
    table = empty_table("side", *STARTS.values(), "files, MB", "weights read a token, MB")
    for side in by_precision(report, table):
        facts = side.get("facts")
        sizes = [f"{facts[name] / 1e6:,.1f}" for name in ("bytes", "weights")] if facts else [MISSING] * 2
        table.add_row(label(side), *(told(side["values"].get(name)) for name in STARTS), *sizes)
    return table


def ratio_table(report: dict[str, Any]) -> Table:
    table = empty_table("precision", *RATIOS.values())
    for precision in PRECISIONS:
        sides = [side for side in report["sides"].values() if side["precision"] == precision]
        if sides:
            table.add_row(precision, *(against_best(sides, name) for name in RATIOS))
    return table


def against_best(sides: list[dict[str, Any]], name: str) -> str:
    """The ratio of the pairs of turns, and to whom."""
    found = {side["contestant"]: values_of(side, name) for side in sides if values_of(side, name)}
    ours = found.pop(OURS, None)
    if not ours or not found:
        return MISSING
    peer = BEST[name](found, key=lambda one: statistics.median(found[one]))
    pair = (ours, found[peer]) if BEST[name] is max else (found[peer], ours)
    times = ratios(*pair)
    return f"{spread(times) if len(times) > 1 else f'{times[0]:.2f}'}\n{peer}"


def values_of(side: dict[str, Any], name: str) -> list[float]:
    if name == "size":
        return [side["facts"]["bytes"]] if side.get("facts") else []
    values: list[float] = side["values"].get(name, [])
    return values


def by_precision(report: dict[str, Any], table: Table) -> Iterator[dict[str, Any]]:
    """The sides, with a line under each precision's in the table."""
    sides = list(report["sides"].values())
    for side, following in zip(sides, [*sides[1:], None], strict=True):
        yield side
        if following and following["precision"] != side["precision"]:
            table.add_section()


def share(side: dict[str, Any], bandwidth: dict[str, float]) -> str:
    speeds = side["values"].get("decode")
    if not speeds:
        return MISSING
    full = max(bandwidth.values()) / side["facts"]["weights"]
    low, middle, high = (100 * speed / full for speed in (min(speeds), statistics.median(speeds), max(speeds)))
    return f"{middle:.0f} % ({low:.0f} to {high:.0f})"


def same(side: dict[str, Any]) -> str:
    """How many are transformers', of a float32 side: a lower precision is another model, which perplexity judges."""
    found = side["same_tokens"]
    if side["precision"] != "fp32" or "decode" not in found:
        return ""
    [[count, total]] = found["decode"]
    rows = found.get("batch", [])
    whole = sum(alike == of for alike, of in rows)
    return f"{count}/{total}" + (f", {whole}/{len(rows)}" if rows else "")


def told(values: list[float] | None) -> str:
    return spread(values) if values else MISSING


def label(side: dict[str, Any]) -> str:
    return f"[bold]{side['label']}[/bold]" if side["contestant"] == OURS else str(side["label"])


def failure_lines(report: dict[str, Any]) -> list[str]:
    return [
        f"{side['label']}, {what}: {reason}"
        for side in report["sides"].values()
        for what, reason in side["failed"].items()
    ]
