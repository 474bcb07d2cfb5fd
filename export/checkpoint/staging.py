"""A temporary folder of links to a checkpoint's files; each reader beside it names those that it needs.

Libraries look for more in a folder than they are asked for: transformers imports `custom_generate/generate.py` and adds
an adapter if it finds one, Python itself imports modules there. In this folder they find nothing.
"""

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from export.errors import ExportError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class StagingFolder:
    """A temporary folder that is removed when this object is freed."""

    def __init__(self, source: Path, name: str) -> None:
        self.source, self.name = source, name
        self.path = Path(tempfile.mkdtemp(prefix="gpt2-onnx-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def has(self, name: str) -> bool:
        return (self.source / name).is_file()

    def add(self, names: Iterable[str]) -> list[Path]:
        """Stage those of the named files that the source has; return their paths here."""
        return [self._link(plain_name(name, self.name)) for name in names if self.has(name)]

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON object of the source; None if there is no such file."""
        path = self.source / name
        if not path.is_file():
            return None
        check_content(path, self.name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ExportError(f"{path} is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise ExportError(f"{path} is not a JSON object")
        return content

    def write_json(self, name: str, content: dict[str, Any]) -> Path:
        path = self.path / name
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return path

    def _link(self, name: str) -> Path:
        """Link a file, as weights are large; copy it where links cannot be made."""
        place, target = self.path / name, (self.source / name).resolve()
        check_content(target, self.name)
        if not place.is_symlink() and not place.exists():
            try:
                place.symlink_to(target)
            except OSError:  # Windows, without the right to make links
                shutil.copyfile(target, place)
        return place


def plain_name(name: str, source: str) -> str:
    """`name`; ExportError unless it is a plain file name, which cannot lead out of the folder."""
    if PurePosixPath(name).name != name or "\\" in name or ":" in name or name in (".", ".."):
        raise ExportError(f"{source}: {name!r} must be the name of a file in the checkpoint's own folder")
    return name


def check_content(path: Path, source: str) -> None:
    """Raise ExportError for a file that is a git-lfs pointer, or empty."""
    try:
        with path.open("rb") as file:
            beginning = file.read(len(LFS_POINTER))
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from None
    if beginning == LFS_POINTER:
        raise ExportError(f"{source}: {path.name} is a git-lfs pointer, not the file; fetch it: git lfs pull")
    if not beginning:
        raise ExportError(f"{source}: {path.name} is empty; download the checkpoint again")
