"""Lines of a JSONL file as work to do: a line is {"prompt": …, "id": …, and any generation option}."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from runtime.decode_session import DecodeSession
from runtime.decoding import decode_together, longest_first
from runtime.generation import Generation
from runtime.options import check_text
from runtime.prompting import Prompting
from runtime.settings import check_settings

LOOKAHEAD = 8  # times the rows of a batch: lines among which those of one length are found


@dataclass(frozen=True)
class Job:
    """One line: its number from 1, its id (by default the number), and its generation, or why there is none."""

    line: int
    id: Any
    generation: Generation | None
    error: str = ""

    @property
    def finished(self) -> bool:
        return self.generation is None or self.generation.finish_reason is not None

    def record(self) -> dict[str, Any]:
        """What is written for it."""
        if self.generation is None:
            return {"id": self.id, "line": self.line, "error": self.error}
        return {"id": self.id, **self.generation.completion().as_dict()}

    def made(self, record: Mapping[str, Any]) -> bool:
        """Whether `record`, from an earlier run, is of this line."""
        of_prompt = "error" if self.generation is None else "prompt_tokens"
        mine = self.error if self.generation is None else len(self.generation.prompt_ids)
        return record.get("id") == self.id and record.get(of_prompt) == mine


def read_jobs(lines: Iterable[bytes], prompting: Prompting, defaults: Mapping[str, Any]) -> Iterator[Job]:
    """A job a line, as it is asked for; empty lines are left out."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield read_job(number, line, prompting, defaults)


def read_job(number: int, line: bytes, prompting: Prompting, defaults: Mapping[str, Any]) -> Job:
    """A bad line is a job without a generation."""
    name: Any = number
    try:
        content = parse(line)
        name = content.pop("id", number)
        prompt = check_text("prompt", content.pop("prompt", None))
        settings = check_settings({**defaults, **content})
        return Job(number, name, prompting.begin(prompting.encode(prompt), settings))
    except (TypeError, ValueError) as error:
        return Job(number, name, None, str(error))


def refuse_constant(name: str) -> None:
    """NaN and Infinity are Python's, not JSON's; an id that is NaN would not even equal itself."""
    raise ValueError(f"{name} is no JSON value")


def parse(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line.decode("utf-8-sig"), parse_constant=refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(content, dict) or "prompt" not in content:
        raise ValueError('not a JSON object with a "prompt"')
    return content


@dataclass
class Tally:
    """Lines that have a record, how many of them are bad, and how many earlier runs had made."""

    lines: int = 0
    bad: int = 0
    earlier: int = 0

    def count(self, record: Mapping[str, Any]) -> None:
        self.lines += 1
        self.bad += "error" in record

    def __str__(self) -> str:
        earlier = f" ({self.earlier:,} by an earlier run)" if self.earlier else ""
        return f"{self.lines - self.bad:,} of {self.lines:,} lines completed{earlier}, {self.bad:,} bad"


def skip_made(jobs: Iterator[Job], records: Iterable[Mapping[str, Any]], output: Path) -> Tally:
    """Pass over the jobs that earlier runs have made; ValueError if the records are of another input."""
    tally = Tally()
    for number, record in enumerate(records, start=1):
        job = next(jobs, None)
        if job is None or not job.made(record):
            raise ValueError(
                f"line {number} of {output}, with id {record.get('id')!r}, is not of this input; "
                "choose another --output, or --force to begin again"
            )
        tally.count(record)
    tally.earlier = tally.lines
    return tally


def run_jobs(
    jobs: Iterable[Job], decode: DecodeSession, batch_size: int, finished: Callable[[Generation], object]
) -> Iterator[Job]:
    """The same jobs in the same order, each once it is finished; `finished` is told at once, in any order."""
    unwritten: list[Job] = []
    for generation in decode_together(decode.batch(batch_size), generations(jobs, unwritten, LOOKAHEAD * batch_size)):
        finished(generation)
        while unwritten and unwritten[0].finished:
            yield unwritten.pop(0)
    yield from unwritten


def generations(jobs: Iterable[Job], unwritten: list[Job], lookahead: int) -> Iterator[Generation]:
    """What there is to generate, by length among the next jobs; every job is noted in `unwritten` in its order."""
    source = iter(jobs)
    while chunk := list(islice(source, lookahead)):
        unwritten += chunk
        yield from longest_first(job.generation for job in chunk if job.generation is not None)
