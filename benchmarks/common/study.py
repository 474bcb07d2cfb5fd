"""What every study takes and tells: the options of its command line, its figures, a plain table.

Standard library alone: `benchmarks.gpu` runs where rich is not installed.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

PRECISIONS = ("fp32", "int8", "int4")
Answer = TypeVar("Answer")


class OneLineParser(argparse.ArgumentParser):
    """argparse without the usage text in front of each error, and the options that studies share.

    Args:
        description: A docstring; its first line is what `--help` says.
    """

    def __init__(self, prog: str, description: str | None, **settings: Any) -> None:
        super().__init__(prog=prog, description=(description or "").partition("\n")[0], **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")

    def add_studies(self, **studies: str) -> list["OneLineParser"]:
        """A subcommand for each, by its name and what it measures."""
        chosen = self.add_subparsers(required=True, metavar="STUDY")
        return [chosen.add_parser(name, help=what, description=what) for name, what in studies.items()]

    def add_checkpoint(self, default: Path | None = None) -> None:
        usual = default.name if default else "a seeded GPT-2 small"
        self.add_argument("--checkpoint", type=Path, metavar="DIR", default=default, help=f"by default {usual}")

    def add_precisions(self) -> None:
        self.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, metavar="PRECISION")

    def add_threads(self) -> None:
        self.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)), help="default: all there are")

    def add_tokens(self, default: int) -> None:
        self.add_argument("--tokens", type=count, default=default, help=f"tokens of a text (default: {default})")

    def add_rounds(self, default: int) -> None:
        self.add_argument("--rounds", type=count, default=default, help=f"turns that count (default: {default})")

    def add_json(self) -> None:
        self.add_argument("--json", action="store_true", help="all values, instead of tables")


def whole_number(text: str) -> int:
    return number_from(0, text)


def count(text: str) -> int:
    return number_from(1, text)


def number_from(least: int, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} up, got {text!r}")
    return int(text)


def remark(text: str) -> None:
    """A line on standard error, as it is."""
    print(text, file=sys.stderr)


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
