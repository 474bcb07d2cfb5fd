"""What was measured and simulated, as tables."""

import statistics
from typing import Any

from benchmarks.common.study import spread
from benchmarks.common.turns import empty_table
from benchmarks.scale.check import FIGURES, Pair, difference
from benchmarks.scale.choosers import CHOOSERS
from benchmarks.scale.figures import TIMES, Figures
from benchmarks.scale.inputs import Inputs

HEADINGS = ("waits, s: p50", "p99", "first token: p50", "p99", "whole: p50", "p99")


def inputs_table(inputs: Inputs) -> Any:
    table = empty_table("one replica, one core", "")
    for texts, seconds in inputs.steps.items():
        table.add_row(f"{texts} texts at once", f"{texts / seconds:,.0f} tokens/s, a step {1e3 * seconds:,.1f} ms")
    table.add_row("reads", f"{1 / inputs.token:,.0f} tokens of prompts a second")
    table.add_row("each request besides", f"{1e3 * inputs.request:,.1f} ms")
    table.add_row("cold start, process to first token", f"{inputs.cold:.2f} s")
    table.add_row("bundle, all of it", f"{inputs.bundle / 1e6:,.0f} MB")
    table.add_row("memory, idle and at its most", f"{inputs.idle:,.0f} and {inputs.busy:,.0f} MiB")
    table.add_row("keys and values of a token", f"{inputs.kept / 1e3:,.1f} kB")
    table.add_row("CPUs that others took meanwhile", f"{inputs.others:.2f}")
    return table


def day_table(days: dict[str, dict[str, Any]]) -> Any:
    table = empty_table("chosen by", *HEADINGS, "texts", "refused", "anew", "a million")
    for chooser, found in days.items():
        whole: Figures = found["figures"]
        counts = (f"{whole.texts:,}", f"{found['refused']:,}", f"{found['again']:,}", f"${found['cost']:.2f}")
        table.add_row(CHOOSERS[chooser], *cells(whole), *counts)
    return table


def spare_table(rows: list[dict[str, Any]]) -> Any:
    table = empty_table("the load fills", "chosen by", "replicas", "spare", *HEADINGS, left=2)
    for row in rows:
        more = row["replicas"] - row["own"]
        table.add_row(
            f"{row['own']:,}",
            CHOOSERS[row["chooser"]],
            f"{row['replicas']:,}",
            f"{more:+,} ({more / row['own']:+.0%})",
            *cells(row["figures"]),
        )
    return table


def cells(whole: Figures) -> list[str]:
    return [f"{whole.seconds[name][share]:.2f}" for name in TIMES for share in (50, 99)]


def check_table(pairs: dict[str, list[Pair]]) -> Any:
    table = empty_table("load, chooser", "", "measured", "simulated", "off by", left=2)
    for load, turns in pairs.items():
        for figure in FIGURES:
            sides = [spread([turn[side][figure] for turn in turns]) for side in ("measured", "simulated")]
            off = statistics.median(difference(turn, figure) for turn in turns)
            unit = figure if figure == "tokens/s" else f"{figure}, ms"
            table.add_row(load if figure == FIGURES[0] else "", unit, *sides, f"{off:+.0%}")
        table.add_row("", "CPUs that others took", spread([turn["measured"]["others"] for turn in turns]), "", "")
    return table
