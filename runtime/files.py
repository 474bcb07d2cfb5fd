"""File helpers: atomic writes, a check that names are UTF-8, and marks that tell whether a file was replaced."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from runtime.errors import BundleError, quote


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it replaces `path` once it is complete. An OSError names `path`."""
    beside = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        beside.unlink(missing_ok=True)


def check_name(path: str | os.PathLike[str]) -> None:
    """Raise BundleError unless ONNX Runtime, tokenizers and safetensors, which take UTF-8, mean the same file."""
    name = os.fsdecode(path)
    try:
        same = os.fsencode(name) == name.encode("utf-8")
    except UnicodeEncodeError:  # not in the locale's encoding: a lone surrogate if the name was read, else a character
        same = False
    if not same:
        raise BundleError(f"{quote(name)} cannot be used: {cause()}")


def cause() -> str:
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        return "its name is not UTF-8; rename it"
    return f"in this locale names are {encoding.upper()}; choose another: export LC_ALL=C.UTF-8 (or PYTHONUTF8=1)"


class Mark(NamedTuple):
    """Tells a file from one that replaced it, without reading it.

    Equal marks mean the same file with the same content; times are in nanoseconds.
    """

    device: int
    inode: int
    size: int
    modified: int
    changed: int  # the only one that no tool can set back; a new link or mode changes it, too

    def same_content(self, other: "Mark") -> bool:
        """Whether at most links and modes differ."""
        return self[:4] == other[:4]


def find_mark(path: Path) -> Mark:
    """The mark of the file at `path`; OSError if there is none."""
    found = path.stat()
    return Mark(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
