"""Parts of a batch: consecutive rows that one worker completes, and the folder where their records wait for their turn.

A part's file appears whole and is named by its first record, so a part that was done twice leaves one file. Records
leave the folder in the order of the input, each once, whichever worker made them.
"""

import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from runtime.cli.job_input import Row, open_rows
from runtime.cli.jobs import Defaults, complete_rows, identity
from runtime.model import Model

TRIES = 3  # of a part whose worker dies, in one run
OURS = re.compile(r"(\d{12})(\.[0-9a-f]{32})?\.(jsonl|tmp|tries)")
Record = Mapping[str, Any]
Report = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Rows that one worker completes: the records before them, where they begin in the input, and their digest."""

    first: int
    number: int
    begin: int
    rows: int
    digest: str

    def __str__(self) -> str:
        return f"lines {self.number:,} and after ({self.rows:,} of them)"


@dataclass(frozen=True)
class PartsFolder:
    """A folder of finished parts beside the output."""

    path: Path

    @classmethod
    def beside(cls, output: Path) -> "PartsFolder":
        return cls(output.with_name(f"{output.name}.parts"))

    def file(self, first: int) -> Path:
        return self.path / f"{first:012}.jsonl"

    def firsts(self) -> list[int]:
        """The parts that are there, in order."""
        names = [OURS.fullmatch(file.name) for file in self.path.iterdir()] if self.path.is_dir() else []
        return sorted(int(name[1]) for name in names if name and name[3] == "jsonl")

    def read(self, first: int) -> list[Record]:
        with self.file(first).open("rb") as lines:
            try:
                return [json.loads(line) for line in lines]
            except ValueError:
                raise ValueError(f"{self.file(first)} is not a part of an output; remove it") from None

    def write(self, first: int, records: Iterable[Record]) -> None:
        """Write a part's file, whole or not at all, in place of any that is there."""
        beside = self.path / f"{first:012}.{uuid4().hex}.tmp"
        with beside.open("wb") as file:
            file.writelines(json.dumps(record).encode() + b"\n" for record in records)
        beside.replace(self.file(first))

    def remove(self, first: int) -> None:
        self.file(first).unlink(missing_ok=True)

    def begin_at(self, count: int) -> None:
        """Drop the first `count` records, which are in the output."""
        self.path.mkdir(exist_ok=True)
        for first in self.firsts():
            if first < count:
                if left := self.read(first)[count - first :]:
                    self.write(count, left)
                self.remove(first)

    def clear(self) -> None:
        """Remove what is ours, and the folder if that was all."""
        for file in self.path.iterdir() if self.path.is_dir() else ():
            if OURS.fullmatch(file.name):
                file.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    def count_try(self, part: Part, run: str) -> None:
        """Note that a part begins; RuntimeError if its workers have died too often in this run."""
        with (self.path / f"{part.first:012}.{run}.tries").open("a+", encoding="utf-8") as file:
            file.seek(0)
            if len(file.readlines()) >= TRIES:
                raise RuntimeError(f"{part} have ended the process of their worker {TRIES} times; what is done is kept")
            file.write(f"{os.getpid()} {socket.gethostname()}\n")


def cut(
    rows: Iterator[Row], first: int, folder: PartsFolder, defaults: Defaults, most: int
) -> tuple[list[Part], set[int]]:
    """Cut rows into parts of `most` at the most, but for those that the folder has; and say which it has.

    Raises:
        ValueError: What the folder has is from another input, model or options.
    """
    made, parts = folder.firsts(), list[Part]()
    there = set(made)
    while True:
        if first in there:
            earlier = folder.read(first)
            part = next_part(rows, first, len(earlier), defaults)
            if part is None or part.digest != digest_of(record.get("digest") for record in earlier):
                raise foreign(folder.file(first))
        else:
            until = next((each for each in made if each > first), first + most)
            part = next_part(rows, first, min(most, until - first), defaults)
            if part is None:
                break
        parts.append(part)
        first += part.rows
    return parts, there


def next_part(rows: Iterator[Row], first: int, count: int, defaults: Defaults) -> Part | None:
    """A part of the next `count` rows, fewer where they end; None where there is none."""
    taken = list(islice(rows, count))
    if not taken:
        return None
    digest = digest_of(defaults.digest(row.line) for row in taken)
    return Part(first, taken[0].number, taken[0].begin, len(taken), digest)


def digest_of(digests: Iterable[object]) -> str:
    return sha256(json.dumps(list(digests)).encode()).hexdigest()


def foreign(path: Path) -> ValueError:
    return ValueError(
        f"{path} is from another input, another model or other options; choose another --output, or --force to start "
        "over"
    )


def in_order(
    parts: Sequence[Part],
    there: set[int],
    folder: PartsFolder,
    reports: Iterator[Report],
    finished: Callable[[int, int], object],
) -> Iterator[Record]:
    """The records of all parts, in order, as they come; a part is removed once its last record was taken."""
    for part in parts:
        while part.first not in there:
            report = next(reports)
            if report["error"]:
                raise RuntimeError(report["error"])
            finished(report["rows"], report["tokens"])
            there.add(report["first"])
        records = folder.read(part.first)
        if digest_of(record.get("digest") for record in records) != part.digest:
            raise foreign(folder.file(part.first))
        yield from records
        folder.remove(part.first)


@dataclass(frozen=True)
class Task:
    """What a worker does with a part: it reads its rows, completes them, and writes its file."""

    source: str
    folder: PartsFolder
    defaults: Defaults
    batch_size: int
    run: str = field(default_factory=lambda: uuid4().hex)

    def __call__(self, load: Callable[[], Model], part: dict[str, Any]) -> Report:
        """A report of it; its `error` is one line, or empty."""
        try:
            return {"first": part["first"], "error": "", **self._complete(load, Part(**part))}
        except Exception as error:  # ONNX Runtime's exceptions share no public base
            name = "" if isinstance(error, ValueError | RuntimeError | ImportError) else f"{type(error).__name__}: "
            told = f"{name}{error} (a worker on {socket.gethostname()})"
            return {"first": part["first"], "error": told, "rows": 0, "tokens": 0}

    def _complete(self, load: Callable[[], Model], part: Part) -> Report:
        self.folder.count_try(part, self.run)
        model, tokens = load(), list[int]()
        if identity(model.bundle, model.precision, model.loading.cache) != self.defaults.identity:
            raise RuntimeError(f"{model.bundle.folder} is another model there than where the command runs")
        with open_rows(self.source, part.number, part.begin) as rows:
            own = islice(rows, part.rows)
            done = complete_rows(own, model, self.defaults, self.batch_size, tokens.append)
            records = [job.record() for job in done]
        if digest_of(record["digest"] for record in records) != part.digest:
            raise RuntimeError(f"{self.source} is another file there than where the command runs")
        self.folder.write(part.first, records)
        return {"rows": len(records), "tokens": sum(tokens)}
