"""Figures as they are told: seconds of a call, ratios of pairs, a median with its spread, and the machine."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

Answer = TypeVar("Answer")


def timed(work: Callable[[], Answer]) -> tuple[float, Answer]:
    """(seconds, what `work` gives)."""
    started = time.perf_counter()
    answer = work()
    return time.perf_counter() - started, answer


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Of the pairs, turn by turn."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> str:
    """The median and, between brackets, the least and the most, to three digits or the unit."""
    middle = statistics.median(values)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def machine(*packages: str) -> str:
    """The processor and the versions."""
    return ", ".join([processor(), *map(release, packages)])


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.processor()}, {len(names)} CPUs"


def release(package: str) -> str:
    """A package and its version, if it is installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def text_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In plain text, as a log shows it: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [text_line(row, widths) for row in (headings, ["-" * width for width in widths], *rows)]
    return "\n".join([title, *lines])


def text_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()
