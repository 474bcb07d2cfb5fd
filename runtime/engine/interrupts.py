"""Signals wait until what must not be left half done is whole: a step with other callers' texts, a bundle's place."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupts_held(numbers: Iterable[int] = (signal.SIGINT,)) -> Iterator[Callable[[], None]]:
    """Hold signals back, which only the main thread handles; the function given lets those that came take effect."""
    handlers = found_handlers(numbers) if threading.current_thread() is threading.main_thread() else {}
    late: list[tuple[int, Any]] = []

    def let_through() -> None:
        while late:
            number, frame = late.pop(0)
            handlers[number](number, frame)

    for number in handlers:
        signal.signal(number, lambda *told: late.append(told))
    try:
        yield let_through
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        let_through()


def found_handlers(numbers: Iterable[int]) -> dict[int, Callable[[int, Any], object]]:
    """The functions that handle signals; what is ignored, or ends the process, is left so."""
    found = {number: signal.getsignal(number) for number in numbers}
    return {number: handler for number, handler in found.items() if callable(handler)}
