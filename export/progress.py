"""Progress of an export on the terminal: each step, its current detail, and the time it took."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console


class Progress:
    """What a step is at."""

    def __init__(self, show: Callable[[str], object] = lambda _: None) -> None:
        self._show, self._began = show, time.perf_counter()

    def __call__(self, detail: str) -> None:
        self._show(detail)

    def count(self, done: int, total: int, things: str) -> None:
        """Tell how many of `total` things are done, and what the others will take at the pace of these."""
        self.share(f"{done} of {total} {things}", done / total)

    def share(self, detail: str, done: float) -> None:
        """Tell `detail`, and what the rest will take at the pace of the share of the work that is done."""
        spent = time.perf_counter() - self._began
        self._show(f"{detail}, {span(spent / done * (1 - done))} left" if done else detail)


def span(seconds: float) -> str:
    """Seconds, or minutes and seconds from 100 on."""
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60} s"


class Steps:
    """Steps on standard error: a spinner on a terminal, and one line per finished step anywhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    @contextmanager
    def step(self, title: str) -> Iterator[Progress]:
        """Show `title` until the block ends; the function it yields adds a detail."""
        started = time.perf_counter()
        with self.console.status(title) as status:
            yield Progress(lambda detail: status.update(f"{title}: {detail}"))
        self.console.print(f"  {title:<44} {time.perf_counter() - started:6.1f} s")

    def note(self, lines: Iterable[str]) -> None:
        """Show notes: worth knowing, but nothing to act on."""
        for line in lines:
            self.say(f"  note: {line}")

    def say(self, line: str) -> None:
        """Print a line as it is, however long, brackets included."""
        self.console.print(line, markup=False, emoji=False, soft_wrap=True)
