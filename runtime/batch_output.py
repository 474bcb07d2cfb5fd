"""The output of a batch: a JSONL file that can be gone on with after a kill at any moment."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows: two runs on one output are not noticed there
    fcntl = None  # type: ignore[assignment]


RECORD = b'{"id": '  # how every record begins


class BatchOutput:
    """Records, each a line that is there whole or not at all.

    While a run is unfinished, a file beside the output says with which settings it was begun. A file with anything
    else in it than records is left as it is.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, force: bool) -> None:
        self.path = path
        self._settings = settings
        self._settings_path = path.with_name(path.name + ".settings.json")
        if not force:
            self._check_settings()
        self._file = open_locked(path)
        if force:
            self._file.truncate(0)
            self._settings_path.unlink(missing_ok=True)

    def records(self) -> Iterator[dict[str, Any]]:
        """What earlier runs wrote; a last one that was cut short is dropped."""
        size, whole = self._file.seek(0, os.SEEK_END), 0
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n") and RECORD.startswith(line[: len(RECORD)]):
                break
            yield self._parsed(number, line)
            whole += len(line)
        if whole < size:
            self._file.truncate(whole)

    def begin(self) -> None:
        """Note the settings before the first record."""
        self._settings_path.write_text(json.dumps(self._settings, indent=2) + "\n", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")  # the file is open for appending
        self._file.flush()

    def finish(self) -> None:
        """Every line has its record."""
        self._settings_path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line) if line.startswith(RECORD) else None
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{self.path} is no output of this command (line {number}); choose another --output")
        return record

    def _check_settings(self) -> None:
        """Raise ValueError if this output was begun with other settings."""
        try:
            begun = json.loads(self._settings_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # finished, or killed before the first record
            return
        for name in sorted({*begun, *self._settings}):
            if begun.get(name) != self._settings.get(name):
                raise ValueError(
                    f"{self.path} was begun with {name} {begun.get(name)!r}, now it is {self._settings.get(name)!r}; "
                    "give the same, another --output, or --force to begin again"
                )


def open_locked(path: Path) -> BinaryIO:
    """The file at `path`, made if need be, for reading and appending by this process alone."""
    file = path.open("a+b")
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise ValueError(f"{path} is being written by another process; choose another --output") from None
    return file
