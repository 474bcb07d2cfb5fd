"""What was measured, as tables."""

from typing import Any

from rich.console import Console

from benchmarks.common.study import ratios, spread
from benchmarks.common.turns import WIDTH, empty_table
from benchmarks.serve.sides import OURS


def print_report(report: dict[str, Any]) -> None:
    console = Console(width=WIDTH, highlight=False)
    console.print(f"{report['title']}\n{report['machine']}\n", soft_wrap=True)
    for table in (callers_table(report), arrivals_table(report)):
        console.print(table)


def callers_table(report: dict[str, Any]) -> Any:
    table = empty_table(
        "precision", "side", "tokens/s", f"{OURS} is so many times as fast", "idle: first token, ms", left=2
    )
    for precision, found in report["precisions"].items():
        ours = found["callers"][OURS]
        for name, speeds in found["callers"].items():
            idle = found["idle"].get(name)
            gain = "" if name == OURS else spread(ratios(ours, speeds))
            table.add_row(precision, name, spread(speeds), gain, spread(idle) if idle else "")
    return table


def arrivals_table(report: dict[str, Any]) -> Any:
    headings = (
        "requests/s",
        "tokens/s",
        "refused",
        "first token p50",
        "p95",
        "p99, ms",
        "between p50",
        "p95",
        "p99, ms",
    )
    table = empty_table("precision", "side", "load", *headings, left=2)
    for precision, found in report["precisions"].items():
        for name, loads in found["arrivals"].items():
            for load in loads:
                table.add_row(precision, name, f"{load['share']:.0%}", *cells(load))
    return table


def cells(load: dict[str, float]) -> list[str]:
    times = [load[f"{name} p{share}"] for name in ("first token", "between tokens") for share in (50, 95, 99)]
    return [
        f"{load['requests/s']:.1f}",
        f"{load['tokens/s']:,.0f}",
        f"{load['refused']:.0%}",
        *(f"{value:,.0f}" for value in times),
    ]
