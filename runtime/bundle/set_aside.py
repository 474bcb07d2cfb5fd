"""A bundle that a killed export had set aside: found beside its place, and put back.

Where folders cannot be exchanged in one step, an export moves the old bundle into its stage, a hidden folder beside it,
and then the new one into its place. A kill between the two leaves none there. The stage's lock tells whether the export
still lives.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.bundle.manifest import NAME

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK, OLD = "lock", "old"
PARTIAL = r"\.[0-9a-f]{8}\.partial"
PATIENCE = 10.0  # seconds
logger = logging.getLogger("runtime")


def put_back(folder: Path) -> bool:
    """Put back the bundle whose place `folder` is; False if there is none, or this user cannot move it."""
    for old in set_aside(folder):
        with suppress(OSError), ended(old.parent):
            if not folder.exists():
                old.rename(folder)
                logger.warning("put back %s, which a killed export was replacing", folder)
    return (folder / NAME).is_file()


def set_aside(folder: Path) -> Iterator[Path]:
    """The bundles that exports have set aside to put others at `folder`."""
    named = re.compile(re.escape(f".{folder.name}") + PARTIAL)
    with suppress(OSError):
        stages = sorted(path for path in folder.parent.iterdir() if named.fullmatch(path.name))
        yield from (stage / OLD for stage in stages if (stage / OLD / NAME).is_file())


@contextmanager
def ended(stage: Path) -> Iterator[None]:
    """Hold a stage once its export has ended: one that has set a bundle aside ends soon. OSError if none can tell."""
    if fcntl is None:
        raise OSError("this system has no locks")
    until = time.monotonic() + PATIENCE
    with (stage / LOCK).open("r+b") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
        yield
