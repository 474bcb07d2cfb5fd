"""`gpt2-onnx batch FILE --output FILE`: completes the prompts of a JSONL file, and can be resumed."""

import argparse
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from runtime.cli.arguments import add_generation, add_loading, given_generation, kept, one_line, open_input
from runtime.cli.progress import Bar, progress_bar
from runtime.model import BATCH_SIZE

DESCRIPTION = """\
Continue the prompts of a JSONL file. A line is {"prompt": "...", "id": ..., and any generation option}; its output is
{"id": ..., "text": ..., ...}, or {"id": ..., "line": N, "error": "..."} for a bad line, in the order of the input.
If it is stopped, the same command resumes it."""


def add_to(commands: Any) -> None:
    parser = commands.add_parser("batch", help="continue the prompts of a JSONL file", description=DESCRIPTION)
    parser.add_argument("file", metavar="FILE", help="JSON lines; - reads standard input")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="JSON lines; resumed if it exists")
    parser.add_argument("--force", action="store_true", help="start over and drop the existing output")
    parser.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, metavar="N", help=f"prompts run at once (default: {BATCH_SIZE})"
    )
    add_loading(parser)
    add_generation(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Complete all lines; return 1 if any was bad."""
    from runtime.checks import check_batch_size
    from runtime.cli.job_output import BatchOutput, check_paths
    from runtime.cli.jobs import Defaults, read_jobs, run_jobs, skip_made
    from runtime.model import generate_each
    from runtime.text.options import check_settings

    wanted, batch_size = given_generation(options), check_batch_size(options.batch_size)
    check_settings(wanted)
    check_paths(options.file, options.output)
    with open_input(options.file) as lines:
        model = kept(options)
        total = count_lines(options.file)
        jobs = read_jobs(lines, model.prompting, Defaults(identity(model), wanted))
        with closing(BatchOutput(options.output)) as output:
            if options.force:
                output.begin_again()
            tally = skip_made(jobs, output.records(), options.output)
            with progress_bar("completing", "line", total, done=tally.lines) as bar:
                run = partial(generate_each, model, at_once=batch_size)
                for job in run_jobs(jobs, run, Speed(bar).finished):
                    write(job, output, tally, bar)
    print(f"gpt2-onnx: {tally}, in {options.output}", file=sys.stderr)
    return 1 if tally.bad else 0


def identity(model: Any) -> str:
    """What determines a model's output: its weights, its precision, and what its keys and values are kept in."""
    precision = [] if model.precision == "fp32" else [model.precision]
    cache = ["int8 cache"] if model.loading.cache == "int8" else []
    return " ".join([model.bundle.manifest.source.weights_sha256, *precision, *cache])


def write(job: Any, output: Any, tally: Any, bar: Bar) -> None:
    """Write a job's record; if its line is bad, also say why."""
    record = job.record()
    output.write(record)
    tally.count(record)
    if job.error:
        bar.say(f"gpt2-onnx: line {job.line}: {one_line(job.error)}")
        bar.update(1)


class Speed:
    """Tokens per second, at the end of the bar."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._tokens, self._started = bar, 0, time.perf_counter()

    def finished(self, generation: Any) -> None:
        self._tokens += len(generation.token_ids)
        self._bar.note(f"{self._tokens / (time.perf_counter() - self._started):,.0f} tokens/s")
        self._bar.update(1)


def count_lines(source: str) -> int | None:
    """How many lines are not empty; None if unknown, as for standard input."""
    from runtime.cli.jobs import is_empty

    if source == "-" or not Path(source).is_file():
        return None
    with open_input(source) as lines:
        return sum(1 for line in lines if not is_empty(line))
