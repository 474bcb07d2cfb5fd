"""Fork safety: a forked child leaves its parent's models and sessions alone and makes its own.

Only the thread that forks lives on in the child. ONNX Runtime's threads are gone there, and a lock that another thread
held stays locked forever. So a child leaves alone what was made before the fork, and makes its own.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
making_session = threading.RLock()  # one session is made at a time, and none while this process forks
_living: WeakKeyDictionary[Any, Callable[[Any], None]] = WeakKeyDictionary()


def tell_children(thing: T, forked: Callable[[T], None]) -> None:
    """Call `forked(thing)` in every child, as long as `thing` lives, before any other code runs there."""
    _living[thing] = forked


def in_child() -> None:
    making_session.release()
    for thing, forked in list(_living.items()):
        forked(thing)


def leave_alone(thing: object) -> None:
    """Never free `thing`: freeing it would wait for threads and locks of another process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def owner(what: str, remedy: str) -> Callable[[], None]:
    """A check that raises RuntimeError in any process but this one."""
    home = os.getpid()

    def check() -> None:
        if os.getpid() != home:
            raise RuntimeError(f"this {what} belongs to the parent process, which forked this one; {remedy}")

    return check


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=making_session.acquire,
        after_in_parent=making_session.release,
        after_in_child=in_child,
    )
