"""What a person sees while an export works: each step, what it is at, and how long it took."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console

Progress = Callable[[str], None]


class Steps:
    """Steps on standard error: a spinner on a terminal, one line a finished step anywhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    @contextmanager
    def step(self, title: str) -> Iterator[Progress]:
        """Show `title` until the block ends; what it lends adds what the step is at."""
        started = time.perf_counter()
        with self.console.status(title) as status:
            yield lambda detail: status.update(f"{title}: {detail}")
        self.console.print(f"  {title:<44} {time.perf_counter() - started:6.1f} s")

    def note(self, lines: Iterable[str]) -> None:
        """What a person should know and need not act on."""
        for line in lines:
            self.say(f"  note: {line}")

    def say(self, line: str) -> None:
        """A line as it is, however long, and whatever brackets are in it."""
        self.console.print(line, markup=False, emoji=False, soft_wrap=True)
