"""What a study shows: progress on standard error, for what takes more than two seconds, and its results."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.common.figures import machine

TEXT = TextColumn("{task.description}")
WIDTH = 140


@contextmanager
def step(description: str) -> Iterator[None]:
    """Something of which nobody knows how long it takes."""
    with Progress(SpinnerColumn(), TEXT, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        progress.add_task(description, total=None)
        yield


def counted() -> Progress:
    """Something of so many parts; its task's description says which one is under way."""
    return Progress(TEXT, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True))


def remark(text: str) -> None:
    """A line on standard error, as it is."""
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


def empty_table(*headings: str, left: int = 1) -> Table:
    """The first `left` columns to the left, the others, which are figures, to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="left" if column < left else "right")
    return table


def print_results(title: str, results: dict[str, Any], tables: Iterable[Table], *, as_json: bool) -> None:
    """With the machine that they are of."""
    if as_json:
        print(json.dumps({"title": title, "machine": machine("onnxruntime"), **results}, indent=2))
        return
    console = Console(width=WIDTH, highlight=False)
    console.print(f"{title}\n{machine('onnxruntime')}\n", soft_wrap=True)
    for table in tables:
        console.print(table)
