"""Puts a finished bundle in place of the old one, and undoes that if it is interrupted.

A stage holds the new bundle in `new`. Most file systems exchange it with the old one in one step. Elsewhere the old one
is moved into `old` and, if files are moved one at a time, their names are in `moves.json`. Whenever a kill comes,
`put_back` finds in them what to undo.
"""

import errno
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from export.bundle.exchange import exchange
from export.bundle.stage import is_stage
from export.errors import ExportError
from runtime.bundle.manifest import NAME, checked_path
from runtime.bundle.set_aside import OLD

NEW, MOVES = "new", "moves.json"
IMMOVABLE = {errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM}  # mounts, an image's layers, other users' folders
OF_THE_FILE_SYSTEM = {"lost+found"}
LAST = ("config.json", NAME)  # without the first a folder is not a checkpoint, without the second not a bundle


def place(stage: Path, output: Path, *, force: bool) -> None:
    """Put the new bundle in place of `output`: in one step if possible, else by two renames, else file by file.

    If it fails, all is as before. No other export may place anything there meanwhile.
    """
    try:
        if output == stage.parent or not swap(stage, output, force=force):
            move_in(stage, output)
    except BaseException:
        put_back(stage, output)
        raise


def swap(stage: Path, output: Path, *, force: bool) -> bool:
    """Exchange the folders, or rename both; without `force` rename one, which replaces an empty folder at most.

    False if `output` cannot be renamed.
    """
    try:
        if force and output.exists():
            if exchange(stage / NEW, output):
                return True
            output.rename(stage / OLD)
        (stage / NEW).rename(output)
    except OSError as error:
        if error.errno not in IMMOVABLE or (stage / OLD).exists():
            raise
        return False
    return True


def move_in(stage: Path, output: Path) -> None:
    """Move the old files out, the manifest first, and the new ones in, the manifest last: between, it is no bundle."""
    names = files_in(stage / NEW)
    (stage / MOVES).write_text(json.dumps(names))
    (stage / OLD).mkdir()
    move(reversed(files_in(output)), output, stage / OLD)
    move(names, stage / NEW, output)


def put_back(stage: Path, output: Path) -> bool:
    """Undo an unfinished placing, and say whether there was one. If it is killed itself, it can be run again."""
    old = stage if stage.suffix == ".old" else stage / OLD
    if not old.exists() or (output / NAME).exists():
        return False
    if not output.exists():
        old.rename(output)
        return True
    if (stage / MOVES).exists():
        names = [checked_path(name) for name in json.loads((stage / MOVES).read_text())]
        move([name for name in names if not there(stage / NEW / name)], output, stage / NEW)
        prune(output, names)  # a kill may have come just after a folder was made
        (stage / MOVES).unlink()  # from here on, all files in `output` are the old bundle's
    move(files_in(old), old, output)
    return True


def move(names: Iterable[str], source: Path, target: Path) -> None:
    """Move files one at a time, and remove the folders that this leaves empty."""
    names = list(names)
    for name in names:
        if there(source / name):
            refuse_taken(source / name, target / name)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).rename(target / name)
    prune(source, names)


def prune(folder: Path, names: Iterable[str]) -> None:
    """Remove the folders of moved files, if they are empty."""
    parents = {parent for name in names for parent in Path(name).parents[:-1]}
    for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):
            (folder / parent).rmdir()


def refuse_taken(source: Path, target: Path) -> None:
    if there(target):
        raise ExportError(f"{target} is in the way of {source}, which belongs there; move one of them elsewhere")


def there(path: Path) -> bool:
    """Whether a path exists, broken links included."""
    return os.path.lexists(path)


def files_in(folder: Path) -> list[str]:
    """Relative paths of all files and links, in the order in which they may appear in a bundle."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        if Path(place) == folder:
            folders[:] = [name for name in folders if not foreign(folder / name)]
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in [*files, *links]]
    return sorted(found, key=lambda name: (name in LAST, name))


def foreign(entry: Path) -> bool:
    """Whether an entry does not count: an output that holds only such entries is empty."""
    return entry.name in OF_THE_FILE_SYSTEM or is_stage(entry)
