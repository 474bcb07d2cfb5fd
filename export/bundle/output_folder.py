"""The output folder: whether a bundle may replace it, and where the bundle is built until then."""

import os
import re
from pathlib import Path

from export.bundle.placing import foreign
from export.errors import ExportError
from runtime.bundle.manifest import NAME

MOUNTS = Path("/proc/self/mountinfo")


def check_output(output: Path, *, force: bool) -> None:
    """Refuse an existing bundle without `force`, any other folder that is not empty, and what cannot be written."""
    if output.exists() or output.is_symlink():
        check_replaceable(output, force=force)
        check_writable(output)
    check_writable(existing(home_of(output)))


def check_replaceable(output: Path, *, force: bool) -> None:
    filled = output.is_dir() and any(not foreign(entry) for entry in output.iterdir())
    if not output.is_dir() or (filled and not (output / NAME).is_file()):
        raise ExportError(f"{output} exists and is not a bundle; choose another output")
    if filled and not force:
        raise ExportError(f"{output} exists; choose another output, or force its replacement")


def check_writable(folder: Path) -> None:
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a folder; choose another output")
    if not writable(folder):
        raise ExportError(f"{folder} cannot be written to by this user; choose another output, or make it writable")


def home_of(output: Path) -> Path:
    """Where the bundle is built: beside `output`, for one rename into place; in it, if it cannot be renamed."""
    stays = output.is_dir() and (is_mounted(output) or output == Path.cwd() or not writable(output.parent))
    return output if stays else output.parent


def existing(folder: Path) -> Path:
    """`folder`, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def writable(folder: Path) -> bool:
    """Whether this user can write in `folder`; False on a read-only mount, too."""
    return os.access(folder, os.W_OK | os.X_OK)


def is_mounted(folder: Path) -> bool:
    """Whether `folder` is a mount; `os.path.ismount` misses a folder that is mounted from the same file system."""
    return os.path.ismount(folder) or os.fsencode(folder) in mount_points()


def mount_points() -> set[bytes]:
    """Linux's list of mounts, in which spaces and the like are written \\040."""
    try:
        lines = MOUNTS.read_bytes().splitlines()
    except OSError:
        return set()
    return {re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4]) for line in lines}
