"""Jobs of a batch, one per JSONL line: {"prompt": …, "id": …, and any generation option}."""

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from runtime.bundle.bundle import Bundle
from runtime.checks import check_text
from runtime.cli.job_input import Row
from runtime.errors import BundleError
from runtime.model import Model, generate_each
from runtime.text.generation import Generation
from runtime.text.options import check_settings
from runtime.text.prompts import Prompting

Run = Callable[[Iterable[Generation]], Iterator[tuple[Generation, BundleError | None]]]


@dataclass
class Job:
    """One line: its number from 1, its id (by default the number), and its generation, or why there is none.

    `digest` hashes everything that determines the output: model, options of the command, and the line.
    """

    line: int
    id: Any
    digest: str
    generation: Generation | None
    error: str = ""

    @property
    def finished(self) -> bool:
        return self.generation is None or self.generation.finish_reason is not None

    def record(self) -> dict[str, Any]:
        """The job's line of output."""
        if self.generation is None:
            return {"id": self.id, "line": self.line, "error": self.error, "digest": self.digest}
        return {"id": self.id, **self.generation.completion().as_dict(), "digest": self.digest}


@dataclass(frozen=True)
class Defaults:
    """What applies to every line: the identity of the model, and the options of the command."""

    identity: str
    options: Mapping[str, Any]

    @cached_property
    def _written(self) -> bytes:
        return json.dumps([self.identity, self.options], sort_keys=True).encode()

    def digest(self, line: bytes) -> str:
        return hashlib.sha256(self._written + line.strip()).hexdigest()[:16]


def identity(bundle: Bundle, precision: str, cache: str) -> str:
    """What determines a model's output: its weights, its precision, and what its keys and values are kept in."""
    parts = [precision] if precision != "fp32" else []
    if cache == "int8":
        parts.append("int8 cache")
    return " ".join([bundle.manifest.source.weights_sha256, *parts])


def read_job(number: int, line: bytes, prompting: Prompting, defaults: Defaults) -> Job:
    """A bad line is a job without a generation."""
    name, digest = number, defaults.digest(line)
    try:
        content = parse(line)
        name = content.pop("id", number)
        prompt = check_text("prompt", content.pop("prompt", None))
        settings = check_settings({**defaults.options, **content})
        return Job(number, name, digest, prompting.begin(prompting.encode(prompt), settings))
    except (TypeError, ValueError) as error:
        return Job(number, name, digest, None, str(error))


def finite(digits: str) -> float:
    """A float, or ValueError: 1e999 would be written as Infinity, which is not JSON."""
    if math.isinf(number := float(digits)):
        raise ValueError(f"{digits} is too large a number")
    return number


def refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python parses but JSON lacks; an id of NaN would not even equal itself."""
    raise ValueError(f"{name} is not a JSON value")


def parse(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line.decode("utf-8-sig"), parse_constant=refuse_constant, parse_float=finite)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(content, dict) or "prompt" not in content:
        raise ValueError('not a JSON object with a "prompt"')
    return content


@dataclass
class Tally:
    """How many lines have a record, how many of those are bad, and how many are from earlier runs."""

    lines: int = 0
    bad: int = 0
    earlier: int = 0

    def count(self, record: Mapping[str, Any]) -> None:
        self.lines += 1
        self.bad += "error" in record

    def __str__(self) -> str:
        earlier = f" ({self.earlier:,} by an earlier run)" if self.earlier else ""
        return f"{self.lines - self.bad:,} of {self.lines:,} lines completed{earlier}, {self.bad:,} bad"


def skip_made(digests: Iterator[str], records: Iterable[Mapping[str, Any]], output: Path) -> Tally:
    """Skip the lines that earlier runs have finished; ValueError if their records are from another input."""
    tally = Tally()
    for number, record in enumerate(records, start=1):
        expected = next(digests, None)
        if expected is None or record.get("digest") != expected:
            raise ValueError(
                f"line {number} of {output}, with id {record.get('id')!r}, is from another input, another model or "
                "other options; choose another --output, or --force to start over"
            )
        tally.count(record)
    tally.earlier = tally.lines
    return tally


def complete_rows(
    rows: Iterable[Row], model: Model, defaults: Defaults, batch_size: int, finished: Callable[[int], object]
) -> Iterator[Job]:
    """Complete rows, and yield their jobs in order; `finished` is called with the tokens of each at once."""
    jobs = (read_job(row.number, row.line, model.prompting, defaults) for row in rows)
    run = partial(generate_each, model, at_once=batch_size)
    return run_jobs(jobs, run, lambda generation: finished(len(generation.token_ids)))


def run_jobs(jobs: Iterable[Job], run: Run, finished: Callable[[Generation], object]) -> Iterator[Job]:
    """Run jobs and yield them in order, each once it is finished; `finished` is called at once, in any order."""
    unwritten = deque[Job]()
    for generation, error in run(generations(jobs, unwritten)):
        if error:
            failed = next(job for job in unwritten if job.generation is generation)
            failed.generation, failed.error = None, str(error)
        else:
            finished(generation)
        while unwritten and unwritten[0].finished:
            yield unwritten.popleft()
    yield from unwritten


def generations(jobs: Iterable[Job], unwritten: deque[Job]) -> Iterator[Generation]:
    """The jobs' generations; every job is appended to `unwritten`."""
    for job in jobs:
        unwritten.append(job)
        if job.generation is not None:
            yield job.generation
