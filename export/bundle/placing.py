"""A finished bundle takes its place; what was there comes back if that is not finished.

A stage holds the bundle in `new`, what it replaces in `old` and, where files are moved one at a time, their names in
`moves.json`. Whatever moment a kill hits, `put_back` finds in them what is to be done.
"""

import errno
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from export.bundle.stage import is_stage
from export.errors import ExportError
from runtime.bundle.manifest import NAME, checked_path

NEW, OLD, MOVES = "new", "old", "moves.json"
IMMOVABLE = {errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM}  # mounts, an image's layers, other people's folders
OF_THE_FILE_SYSTEM = {"lost+found"}
LAST = ("config.json", NAME)  # without the one a folder is no checkpoint, without the other no bundle


def place(stage: Path, output: Path) -> None:
    """Put the new bundle in the place of `output`: by renaming the folders, else file by file."""
    if output == stage.parent or not swap(stage, output):
        move_in(stage, output)


def swap(stage: Path, output: Path) -> bool:
    """Rename the folders; False if `output` cannot be renamed."""
    if output.exists():
        try:
            output.rename(stage / OLD)
        except OSError as error:
            if error.errno not in IMMOVABLE:
                raise
            return False
    (stage / NEW).rename(output)
    return True


def move_in(stage: Path, output: Path) -> None:
    """The old manifest is the first to go and the new one the last to come: with neither it is no bundle."""
    names = files_in(stage / NEW)
    (stage / MOVES).write_text(json.dumps(names))
    (stage / OLD).mkdir()
    move(reversed(files_in(output)), output, stage / OLD)
    move(names, stage / NEW, output)


def put_back(stage: Path, output: Path) -> bool:
    """Undo a placing that was begun and not finished; whether there was one. May itself be killed and begun again."""
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
        (stage / MOVES).unlink()  # from here on, whatever is in `output` is the old bundle's
    move(files_in(old), old, output)
    return True


def move(names: Iterable[str], source: Path, target: Path) -> None:
    """Files, one at a time; folders that this leaves empty are removed."""
    names = list(names)
    for name in names:
        if there(source / name):
            refuse_taken(source / name, target / name)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).rename(target / name)
    prune(source, names)


def prune(folder: Path, names: Iterable[str]) -> None:
    """Remove the folders of files that are gone, where nothing else is in them."""
    parents = {parent for name in names for parent in Path(name).parents[:-1]}
    for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):
            (folder / parent).rmdir()


def refuse_taken(source: Path, target: Path) -> None:
    if there(target):
        raise ExportError(f"{target} is in the way of {source}, which belongs there; move one of them elsewhere")


def there(path: Path) -> bool:
    """Also a link that leads nowhere."""
    return os.path.lexists(path)


def files_in(folder: Path) -> list[str]:
    """Everything but folders, by its path from `folder`, in the order in which they may appear."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        if Path(place) == folder:
            folders[:] = [name for name in folders if not foreign(folder / name)]
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in [*files, *links]]
    return sorted(found, key=lambda name: (name in LAST, name))


def foreign(entry: Path) -> bool:
    """What may lie in an output that is empty all the same."""
    return entry.name in OF_THE_FILE_SYSTEM or is_stage(entry)
