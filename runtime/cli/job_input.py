"""The input of a batch: rows of JSON lines, or those of a Parquet file as if they were written so."""

from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from runtime.cli.arguments import open_input
from runtime.cli.job_parquet import is_parquet, open_rows_of_parquet, rows_of_parquet


class Row(NamedTuple):
    """A line: its number from 1, its bytes, and where they begin, which for Parquet is the number of rows before."""

    number: int
    line: bytes
    begin: int


@contextmanager
def open_rows(source: str, number: int = 1, begin: int = 0) -> Iterator[Iterator[Row]]:
    """Open a file, or standard input for `-`, and yield its rows from one on, lazily; empty lines are left out."""
    if is_parquet(source):
        with open_rows_of_parquet(source, begin) as lines:
            yield (Row(at, line, at - 1) for at, line in enumerate(lines, start=number))
    else:
        with open_input(source) as lines:
            if begin:
                lines.seek(begin)
            yield rows_of_lines(lines, number, begin)


def rows_of_lines(lines: Iterable[bytes], number: int, begin: int) -> Iterator[Row]:
    for at, line in enumerate(lines, start=number):
        if not is_empty(line):
            yield Row(at, line, begin)
        begin += len(line)


def is_empty(line: bytes) -> bool:
    """Whether a line is blank, but for a byte order mark, with which Windows' editors begin a file."""
    return not line.removeprefix(BOM_UTF8).strip()


def count_rows(source: str) -> int | None:
    """How many rows there are; None if unknown, as for standard input."""
    if source == "-" or not Path(source).is_file():
        return None
    if is_parquet(source):
        return rows_of_parquet(source)
    with open_rows(source) as rows:
        return sum(1 for _ in rows)
