"""Progress of an export on the terminal: each step, its current detail, and the time it took."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console

Progress = Callable[[str], None]


class Steps:
    """Steps on standard error: a spinner on a terminal, and one line per finished step anywhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    @contextmanager
    def step(self, title: str) -> Iterator[Progress]:
        """Show `title` until the block ends; the function it yields adds a detail."""
        started = time.perf_counter()
        with self.console.status(title) as status:
            yield lambda detail: status.update(f"{title}: {detail}")
        self.console.print(f"  {title:<44} {time.perf_counter() - started:6.1f} s")

    def note(self, lines: Iterable[str]) -> None:
        """Show notes: worth knowing, but nothing to act on."""
        for line in lines:
            self.say(f"  note: {line}")

    def say(self, line: str) -> None:
        """Print a line as it is, however long, brackets included."""
        self.console.print(line, markup=False, emoji=False, soft_wrap=True)
