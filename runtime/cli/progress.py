"""Progress on standard error: a tqdm bar on a terminal; elsewhere only messages."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Bar:
    """A tqdm bar, or none."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar

    def update(self, count: int) -> None:
        """Advance the bar by `count`."""
        if self._bar is not None:
            self._bar.update(count)

    def note(self, text: str) -> None:
        """Show a text at the end of the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def say(self, line: str) -> None:
        """Print a line on standard error, above the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


class Speed:
    """Advances a bar, with tokens per second at its end."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._tokens, self._started = bar, 0, time.perf_counter()

    def count(self, rows: int, tokens: int) -> None:
        self._tokens += tokens
        self._bar.note(f"{self._tokens / (time.perf_counter() - self._started):,.0f} tokens/s")
        self._bar.update(rows)


@contextmanager
def progress_bar(description: str, unit: str, total: int | None, *, done: int = 0) -> Iterator[Bar]:
    """A bar on standard error, if that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield Bar()
        return
    try:
        from tqdm import tqdm
    except ImportError:
        print('no progress is shown without tqdm: pip install "gpt2-onnx[cli]"', file=sys.stderr)
        yield Bar()
        return
    large = total is not None and total > 9999
    with tqdm(desc=description, unit=unit, total=total, initial=done, unit_scale=large, dynamic_ncols=True) as bar:
        yield Bar(bar)
