"""The output of a batch: a locked JSONL file that can be resumed after a kill at any moment, or Parquet made of it."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from runtime.cli.job_parquet import is_parquet, pyarrow, read_records, write_records

try:
    import fcntl
except ImportError:  # Windows, where two runs with one output go unnoticed
    fcntl = None  # type: ignore[assignment]

RECORD = b'{"id": '  # how every record begins


class BatchOutput:
    """Records, one per line, each whole or dropped. A file that holds anything else is left as it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_locked(path)

    def begin_again(self) -> None:
        """Drop all records."""
        first = self._file.readline()
        if first and not is_cut_short(first):
            self._parsed(1, first)
        self._file.truncate(0)

    def records(self) -> Iterator[dict[str, Any]]:
        """Records of earlier runs; a last one that was cut short is dropped."""
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if is_cut_short(line):
                self._file.truncate(whole)
                return
            yield self._parsed(number, line)
            if not line.endswith(b"\n"):  # cut just before it
                self._file.write(b"\n")
            whole += len(line)

    def write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")  # the file is open for appending
        self._file.flush()

    def finish(self) -> None:
        """Called once all records are written."""

    def close(self) -> None:
        self._file.close()

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        record = parse(line) if line.startswith(RECORD) else None
        if not isinstance(record, dict) or "digest" not in record:
            raise ValueError(f"{self.path} is not an output of this command (line {number}); choose another --output")
        return record


class ParquetOutput(BatchOutput):
    """Records that become a Parquet file once all are there; until then they are lines of a file beside it."""

    def __init__(self, path: Path) -> None:
        self._whole, self._unread = path, path.exists()
        super().__init__(path.with_name(f"{path.name}.jsonl"))

    def begin_again(self) -> None:
        super().begin_again()
        if self._unread:
            next(read_records(self._whole), None)  # raises where it is not ours
            self._whole.unlink()
            self._unread = False

    def records(self) -> Iterator[dict[str, Any]]:
        """Those of the lines; if there are none, those of the Parquet file."""
        self._unread = self._unread and self._empty
        yield from read_records(self._whole) if self._unread else super().records()

    def write(self, record: Mapping[str, Any]) -> None:
        if self._unread:
            self._unread = False
            for earlier in read_records(self._whole):
                super().write(earlier)
        super().write(record)

    def finish(self) -> None:
        """Write the Parquet file, unless it is there and nothing was added."""
        if not self._unread:
            write_records(self._whole, super().records)
            self._file.truncate(0)

    def close(self) -> None:
        if self._empty:
            self.path.unlink(missing_ok=True)
        super().close()

    @property
    def _empty(self) -> bool:
        return os.fstat(self._file.fileno()).st_size == 0


def open_output(path: Path) -> BatchOutput:
    """The output at `path`, Parquet if it ends in .parquet; ValueError if another process is writing it."""
    if not is_parquet(path):
        return BatchOutput(path)
    pyarrow()  # raises what is missing before anything is done
    return ParquetOutput(path)


def is_cut_short(line: bytes) -> bool:
    """Whether a line is only the beginning of a record: no prefix of a JSON object is valid JSON."""
    return not line.endswith(b"\n") and RECORD.startswith(line[: len(RECORD)]) and parse(line) is None


def parse(line: bytes) -> Any:
    """The JSON value, or None."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def open_locked(path: Path) -> BinaryIO:
    """Open the file at `path` for reading and appending, made if need be, and lock it for this process."""
    file = path.open("a+b")
    file.seek(0)
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(f"{path} is being written by another process; choose another --output") from None
        except OSError:  # a file system without locks
            pass
    return file


def check_paths(source: str, output: Path) -> None:
    """Raise ValueError unless the output can be read back and is not the input."""
    if str(output) == "-" or (output.exists() and not output.is_file()):
        raise ValueError(f"--output must be a file, as it is read back to resume, got {output}")
    if output.exists():
        read = os.fstat(0) if source == "-" else Path(source).stat()
        if os.path.samestat(read, output.stat()):
            raise ValueError(f"--output must be another file than the input, got {output} for both")
