"""Interrupts wait until a step is whole, as some of its texts belong to other callers."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Hold SIGINT back, which only the main thread handles; the function given lets what came take effect."""
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if not callable(handler):
        yield lambda: None
        return
    late: list[tuple[Any, ...]] = []

    def let_through() -> None:
        if late:
            handler(*late.pop())

    signal.signal(signal.SIGINT, lambda *told: late.append(told))
    try:
        yield let_through
    finally:
        signal.signal(signal.SIGINT, handler)
        let_through()
