"""Interrupts wait while a step's answers are handed out, as some of them belong to other callers."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let SIGINT, which only the main thread handles, take effect after the block."""
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if not callable(handler):
        yield
        return
    late: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *told: late.append(told))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if late:
            handler(*late[0])
