"""A study's run: sides that take turns, what is shown meanwhile, and the tables at its end."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.common.study import machine

PAUSE = 0.5  # seconds between turns, for the last side's threads to stop spinning
TEXT = TextColumn("{task.description}")
WIDTH = 140  # of what is printed
Answer = TypeVar("Answer")


class SideError(RuntimeError):
    """A side that cannot go on, with the reason in one line."""


def take_turns(
    sides: Mapping[str, Callable[[], Answer]], rounds: int, description: str
) -> tuple[dict[str, list[Answer]], dict[str, str]]:
    """The answers of each side's turns, A B C A B C …, and why sides fell out, if any did.

    The first round warms up and is not counted. A side that fails misses the rounds that are left; the others go on.
    """
    answers: dict[str, list[Answer]] = {side: [] for side in sides}
    failed: dict[str, str] = {}
    with counted() as progress:
        task = progress.add_task(description, total=(rounds + 1) * len(sides))
        for side in [side for _ in range(rounds + 1) for side in sides]:
            progress.update(task, description=f"{description}: {side}")
            if side not in failed:
                time.sleep(PAUSE)
                take_turn(side, sides[side], answers, failed)
            progress.advance(task)
        progress.update(task, description=description)
    return {side: answers[side][1:] for side in sides if side not in failed}, failed


def take_turn(side: str, turn: Callable[[], Answer], answers: dict[str, list[Answer]], failed: dict[str, str]) -> None:
    try:
        answers[side].append(turn())
    except SideError as error:
        failed[side] = str(error)


@contextmanager
def step(description: str) -> Iterator[None]:
    """Something of which nobody knows how long it takes."""
    with Progress(SpinnerColumn(), TEXT, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        progress.add_task(description, total=None)
        yield


def counted() -> Progress:
    """Something of so many parts; its task's description says which one is under way."""
    return Progress(TEXT, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True))


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
