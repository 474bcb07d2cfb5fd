"""The exit of the interpreter: it waits for the native code that other threads are in.

When Python ends, it ends daemon threads as they come back from native code. Where that is C++, the process aborts. So
the exit waits until no thread is in it, and no thread goes into it any more.
"""

import atexit
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 60.0  # seconds, far more than a run takes
_inside: set[object] = set()  # a token for each call under way; adding and removing one is a single step
_ending: threading.Thread | None = None


@contextmanager
def native() -> Iterator[None]:
    """Mark the block as native code; once the interpreter ends, only the thread that ends it may go in."""
    token = object()
    _inside.add(token)
    try:
        if _ending is not None and threading.current_thread() is not _ending:
            raise SystemExit  # ends this thread, without a word
        yield
    finally:
        _inside.discard(token)


def wait_for_native() -> None:
    global _ending
    _ending = threading.current_thread()
    until = time.monotonic() + PATIENCE
    while _inside and time.monotonic() < until:
        time.sleep(0.001)


def in_child() -> None:
    """The threads that were inside are not in a forked child."""
    _inside.clear()


atexit.register(wait_for_native)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=in_child)
