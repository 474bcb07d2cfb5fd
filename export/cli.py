"""`python -m export CHECKPOINT --output DIR`, installed as `gpt2-onnx-export`."""

import argparse
import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import NoReturn

from export.errors import ExportError
from export.staging import check_output
from runtime.cli.arguments import OneLineParser, one_line


def main() -> None:
    """Parse the command line, export, and exit with 0, 1 or (usage) 2."""
    options = make_parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a half-written bundle is removed
    try:
        run(options)
    except KeyboardInterrupt:
        fail("interrupted; nothing was written", 130)


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="gpt2-onnx-export", description="Export a GPT-2 checkpoint to a verified bundle.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or a Hub id such as gpt2")
    parser.add_argument("--output", required=True, metavar="DIR", help="the bundle's folder, made new")
    parser.add_argument("--revision", help="a branch, tag or commit of a Hub id")
    parser.add_argument("--force", action="store_true", help="replace the bundle at DIR")
    parser.add_argument("--json", action="store_true", help="print the parity report as JSON instead of a table")
    return parser


def run(options: argparse.Namespace) -> None:
    quiet_libraries()
    try:
        check_output(Path(options.output), force=options.force)  # before the seconds that the imports take
    except ExportError as error:
        fail(str(error), 1)
    try:
        from export.progress import Steps

        steps = Steps()
        with steps.step("Loading PyTorch and optimum"):
            from export.parity.report import make_table
            from export.pipeline import export_bundle
    except ImportError as error:
        fail(f'{error}; export needs its extra: pip install "gpt2-onnx[export,cpu]"', 1)
    try:
        report = export_bundle(
            options.checkpoint, options.output, revision=options.revision, force=options.force, steps=steps
        )
    except ExportError as error:
        fail(str(error), 1)
    except OSError as error:
        fail(f"{error.filename or options.output}: {error.strerror or error}", 1)
    if options.json:
        print(json.dumps(report.as_manifest(), indent=2))
        return
    from rich.console import Console

    Console().print(make_table(report), report.greedy_line(), "", sep="\n")
    print(f'{options.output} is ready: python -m runtime complete --model {options.output} "Once upon a time"')


def quiet_libraries() -> None:
    """Their warnings and bars would run through the steps; what matters of them is an error."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def fail(message: str, code: int) -> NoReturn:
    print(f"gpt2-onnx-export: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
