"""Progress on standard error, for what takes more than two seconds."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

TEXT = TextColumn("{task.description}")


@contextmanager
def step(description: str) -> Iterator[None]:
    """Something of which nobody knows how long it takes."""
    with Progress(SpinnerColumn(), TEXT, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        progress.add_task(description, total=None)
        yield


def counted() -> Progress:
    """Something of so many parts; its task's description says which one is under way."""
    return Progress(TEXT, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True))
