"""Stages: hidden folders in which bundles are built, each locked while its process lives."""

import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from export.errors import ExportError
from runtime.bundle.set_aside import LOCK, PARTIAL
from runtime.errors import command

try:
    import fcntl
except ImportError:  # Windows, where a killed export's leftovers stay
    fcntl = None  # type: ignore[assignment]

PATIENCE = 60.0  # seconds to wait for another export to put its bundle in place, which takes milliseconds
JUST_MADE = 60  # seconds in which an empty stage may be one that another export is about to lock
SET_ASIDE = r"\.[0-9a-f]{8}\.old"  # the bundle being replaced, as set aside by releases without locks


@contextmanager
def locked_stage(home: Path, name: str) -> Iterator[Path]:
    """Make a folder in `home` that no other export takes for a leftover until the block ends."""
    with alone_in(home):  # or another export might take it for a leftover before it is locked
        stage, lock = make_stage(home, name)
    with lock:
        yield stage


def make_stage(home: Path, name: str) -> tuple[Path, BinaryIO]:
    """Make and lock a stage; if another export removes it as a leftover before it is locked, make another."""
    while True:
        stage = home / f".{name}.{secrets.token_hex(4)}.partial"
        stage.mkdir()
        try:
            file = (stage / LOCK).open("wb")
        except FileNotFoundError:  # removed as a leftover
            continue
        except OSError:
            stage.rmdir()
            raise
        held = True
        with suppress(OSError):  # a file system without locks
            held = lock(file)
        if held and (stage / LOCK).exists():
            return stage, file
        file.close()


@contextmanager
def taken_over(stage: Path) -> Iterator[bool]:
    """Lock a leftover for the block; yield False if a running export holds it. OSError if that cannot be known."""
    path, filled = stage / LOCK, any(stage.iterdir())
    if not path.exists():
        yield filled or time.time() - stage.stat().st_mtime > JUST_MADE  # filled: from a release without locks
        return
    with path.open("r+b") as file:
        yield lock(file)


@contextmanager
def alone_in(home: Path) -> Iterator[None]:
    """Let no other export put anything in place in `home` until the block ends; they wait, for a minute at most."""
    folder, until = None, time.monotonic() + PATIENCE
    try:
        with suppress(OSError):  # Windows does not open folders, and some file systems have no locks
            folder = os.open(home, os.O_RDONLY)
            while not lock(folder):
                if time.monotonic() > until:
                    raise ExportError(
                        f"another process has held {home} for a minute; find it: {command('fuser', home)}"
                    )
                time.sleep(0.01)
        yield
    finally:
        if folder is not None:
            os.close(folder)


def lock(file: BinaryIO | int) -> bool:
    """Lock `file`, if no one else has; the kernel unlocks it however the process ends, across containers too."""
    if fcntl is None:
        raise OSError("this system has no locks")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_stage(path: Path) -> bool:
    """Whether a path is a stage, for any output: the same folder may be `gpt2` outside a container and `out` in it."""
    return re.fullmatch(rf"\..+{PARTIAL}", path.name, re.DOTALL) is not None


def stages_of(output: Path) -> Iterator[Path]:
    """The stages beside `output` that bear its name, and those in it."""
    beside = re.compile(re.escape(f".{output.name}") + f"({PARTIAL}|{SET_ASIDE})")
    with suppress(OSError):
        yield from sorted(path for path in output.parent.iterdir() if beside.fullmatch(path.name) and path.is_dir())
    with suppress(OSError):
        yield from sorted(path for path in output.iterdir() if is_stage(path) and path.is_dir())
