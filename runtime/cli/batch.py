"""`gpt2-onnx batch FILE --output FILE`: completes the prompts of a JSONL or Parquet file, and can be resumed."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from runtime.cli.arguments import add_generation, add_loading, given_generation, kept, one_line
from runtime.cli.progress import Bar, Speed, progress_bar
from runtime.model import BATCH_SIZE

DESCRIPTION = """\
Continue the prompts of a JSONL file. A line is {"prompt": "...", "id": ..., and any generation option}; its output is
{"id": ..., "text": ..., ...}, or {"id": ..., "line": N, "error": "..."} for a bad line, in the order of the input.
If it is stopped, the same command resumes it. Files that end in .parquet have columns for these names."""


def add_to(commands: Any) -> None:
    parser = commands.add_parser("batch", help="continue the prompts of a file", description=DESCRIPTION)
    parser.add_argument("file", metavar="FILE", help="JSON lines, or .parquet; - reads standard input")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="JSON lines, or .parquet; resumed if it exists"
    )
    parser.add_argument("--force", action="store_true", help="start over and drop the existing output")
    parser.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, metavar="N", help=f"prompts run at once (default: {BATCH_SIZE})"
    )
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="this process, or a Ray cluster (default: local)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes on the Ray cluster (default: one a machine, or a GPU)"
    )
    add_loading(parser)
    add_generation(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Complete all rows; return 1 if any was bad."""
    from runtime.checks import check_batch_size
    from runtime.cli.job_input import count_rows, open_rows
    from runtime.cli.job_output import check_paths, open_output
    from runtime.cli.job_parts import PartsFolder
    from runtime.cli.jobs import Defaults, skip_made
    from runtime.text.options import check_settings

    wanted, batch_size = given_generation(options), check_batch_size(options.batch_size)
    check_settings(wanted)
    check_paths(options.file, options.output)
    with open_rows(options.file) as rows:
        engine = find_engine(options, batch_size)
        total = count_rows(options.file)
        defaults = Defaults(engine.identity, wanted)
        with closing(open_output(options.output)) as output:
            if options.force:
                output.begin_again()
                PartsFolder.beside(options.output).clear()
            tally = skip_made((defaults.digest(row.line) for row in rows), output.records(), options.output)
            with progress_bar("completing", "line", total, done=tally.lines) as bar:
                for record in engine.records(rows, total, defaults, tally, bar):
                    output.write(record)
                    tally.count(record)
                    if "error" in record:
                        bar.say(f"gpt2-onnx: line {record['line']}: {one_line(record['error'])}")
            output.finish()
            PartsFolder.beside(options.output).clear()
    print(f"gpt2-onnx: {tally}, in {options.output}", file=sys.stderr)
    return 1 if tally.bad else 0


def find_engine(options: argparse.Namespace, batch_size: int) -> Any:
    """What completes rows."""
    if options.engine == "ray":
        from runtime.cli.batch_on_ray import RayEngine

        return RayEngine(options, batch_size)
    if options.workers is not None:
        raise ValueError(f"--workers are those of --engine ray, got {options.workers} without it")
    return LocalEngine(kept(options), batch_size)


class LocalEngine:
    """Completes rows in this process."""

    def __init__(self, model: Any, batch_size: int) -> None:
        from runtime.cli.jobs import identity

        self.identity = identity(model.bundle, model.precision, model.loading.cache)
        self._model, self._batch_size = model, batch_size

    def records(
        self, rows: Iterator[Any], _total: int | None, defaults: Any, _tally: Any, bar: Bar
    ) -> Iterator[Mapping[str, Any]]:
        """Their records, in order."""
        from runtime.cli.jobs import complete_rows

        for job in complete_rows(rows, self._model, defaults, self._batch_size, partial(Speed(bar).count, 1)):
            if job.error:
                bar.update(1)
            yield job.record()
