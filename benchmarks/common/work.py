"""The work folder: what is made once and kept until what it was made from changes, and how long that took."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "benchmarks"
DURATIONS = WORK / "durations.json"  # {what was done: seconds that it took the last time}


@dataclass(frozen=True, slots=True)
class Kept:
    """A folder and the key of what it is made from, which lies beside it and is written last.

    Attributes:
        key: Any text that differs where a folder made now would.
    """

    folder: Path
    key: str

    @property
    def name(self) -> str:
        return self.folder.relative_to(WORK).as_posix()

    @property
    def stamp(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.key")

    def is_made(self) -> bool:
        return self.folder.is_dir() and self.stamp.is_file() and self.stamp.read_text() == self.key

    def forget(self) -> None:
        self.stamp.unlink(missing_ok=True)

    @contextmanager
    def making(self) -> Iterator[None]:
        """The folder is gone before, and is kept if nothing goes wrong."""
        self.forget()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        yield
        self.stamp.write_text(self.key)
        note_seconds({self.name: time.monotonic() - started})


def digest(files: Iterable[Path], *texts: str) -> str:
    """Of contents; a file that is not there has none."""
    hashed = hashlib.sha256()
    for part in (*map(file_digest, sorted(files)), *texts):
        hashed.update(f"{part}\n".encode())
    return hashed.hexdigest()


def file_digest(path: Path) -> str:
    if not path.is_file():
        return f"no {path.name}"
    status = path.stat()
    return digest_of_contents(path, status.st_mtime_ns, status.st_size)


@cache
def digest_of_contents(path: Path, _modified: int, _size: int) -> str:
    """Read once in a process, as checkpoints are large; a file that has changed meanwhile is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def noted_seconds() -> dict[str, float]:
    try:
        noted = json.loads(DURATIONS.read_text())
        return {str(name): float(seconds) for name, seconds in noted.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # none are noted yet, or not so that they can be read: they are noted anew


def note_seconds(seconds: dict[str, float]) -> None:
    DURATIONS.parent.mkdir(parents=True, exist_ok=True)
    DURATIONS.write_text(json.dumps(noted_seconds() | seconds, indent=2, sort_keys=True) + "\n")
