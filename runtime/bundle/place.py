"""Where a bundle lies, held fast while it is loaded: what takes its place meanwhile is not mixed with it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from runtime.bundle.manifest import NAME
from runtime.errors import BundleError
from runtime.files import Mark, find_mark

T = TypeVar("T")
DESCRIPTORS = Path("/proc/self/fd")
TRIES = 10


@dataclass(slots=True)
class Place:
    """A bundle's folder, by its real path; while it is held, `path` leads through a descriptor.

    By the descriptor it is the same folder, whatever is renamed or exchanged, as far as it is not removed.
    """

    folder: Path
    _held: Path | None = field(default=None, compare=False, repr=False)

    @property
    def path(self) -> Path:
        """How its files are reached now."""
        return self._held or self.folder

    def lasting(self, path: Path) -> Path:
        """A path below `path` that is good after the folder is let go, too."""
        return self.folder / path.relative_to(self.path)

    @contextmanager
    def held(self) -> Iterator["Place"]:
        """Hold the folder, where the system can (Linux); a BundleError still names its real path."""
        try:
            descriptor = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
        except (AttributeError, OSError):
            yield self
            return
        held = DESCRIPTORS / str(descriptor)
        try:
            self._held = held if (held / NAME).is_file() else None  # a container may hide /proc
            yield self
        except BundleError as error:
            if str(held) not in str(error):
                raise
            raise BundleError(str(error).replace(str(held), str(self.folder))) from None
        finally:
            self._held = None
            os.close(descriptor)


def steadily(path: Path, load: Callable[[], T]) -> T:
    """`load()` of the bundle at `path`; again, if it fails because another was put there meanwhile."""
    for left in reversed(range(TRIES)):
        before = marks_at(path)
        try:
            return load()
        except (BundleError, OSError):
            if not left or marks_at(path) == before:
                raise
    raise AssertionError("unreachable")


def marks_at(path: Path) -> list[Mark | None]:
    """The marks of the folder, which tells an exchange, and of the manifest, which tells a move file by file."""
    marks = list[Mark | None]()
    for each in (path, path / NAME):
        try:
            marks.append(find_mark(each.expanduser()))
        except (OSError, RuntimeError, ValueError):
            marks.append(None)
    return marks
