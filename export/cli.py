"""The command line of the export: `gpt2-onnx-export CHECKPOINT --output DIR`, or `python -m export`."""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from export.errors import EXTRAS

NAME = "gpt2-onnx-export"
INTERRUPTED = "interrupted; nothing was written"
stopped: list[int] = []  # the signals that came


def main() -> None:
    """Parse the command line, export, and exit with 0, 1 or (usage) 2."""
    try:
        from runtime.cli.arguments import OneLineParser
        from runtime.ort.install import ensure_onnxruntime

        parser = make_parser(OneLineParser)
        options = parser.parse_args()
        check_usage(parser, options)
        exit_on_signals()
        ensure_onnxruntime()
        chosen = run_again if options.reproduce is not None else run_addition if options.add is not None else run
        chosen(options)
    except KeyboardInterrupt:
        fail(INTERRUPTED, 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ImportError as error:
        needs = "" if error.name is None else f"; export needs one of its extras: {EXTRAS}"
        fail(f"{error}{needs}", 1)
    except OSError as error:
        fail(f"{error.filename or 'output'}: {error.strerror or error}", 1)
    except (RuntimeError, ValueError) as error:  # BundleError and ExportError among them
        fail(str(error), 1)


def exit_on_signals() -> None:
    """Let the signals that would kill raise, so that a half-written bundle is removed; what is ignored stays so."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def stop(number: int, _: object) -> NoReturn:
    stopped.append(number)
    raise KeyboardInterrupt


def make_parser(kind: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = kind(prog=NAME, description="Export a GPT-2 checkpoint to a verified bundle.")
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="a folder, or a Hub id such as gpt2")
    parser.add_argument("--output", metavar="DIR", help="the folder for the bundle")
    parser.add_argument(
        "--reproduce",
        metavar="DIR",
        help="make the bundle at DIR again and compare every byte; a CHECKPOINT that was a folder is named again",
    )
    parser.add_argument("--add", metavar="P,…", help="add precisions to the bundle at --output, from its own weights")
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="P,…",
        help="decode graphs to add to float32's: fp16 (for CUDA), int8, int4, comma-separated (default: fp32)",
    )
    parser.add_argument("--cache", help="int8: also graphs whose keys and values take a quarter of the memory")
    parser.add_argument("--revision", help="a branch, tag or commit of a Hub id")
    parser.add_argument(
        "--adapter",
        metavar="DIR",
        help="a folder or Hub id with an adapter to merge: LoRA and its relatives (needs peft)",
    )
    parser.add_argument("--force", action="store_true", help="replace the bundle at DIR")
    parser.add_argument("--sign", metavar="KEY", help="sign the bundle with this elliptic-curve private key, in PEM")
    parser.add_argument("--json", action="store_true", help="print the parity report as JSON instead of a table")
    return parser


def check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options that say again, or otherwise, what the bundle says."""
    if options.reproduce is not None:
        refuse(
            parser, options, "--reproduce", "output", "add", "precision", "cache", "revision", "force", "sign", "json"
        )
        return
    given = {"CHECKPOINT": options.checkpoint, "--output": options.output}
    if options.add is not None:
        refuse(parser, options, "--add", "checkpoint", "precision", "cache", "revision", "adapter", "force")
        del given["CHECKPOINT"]
    if missing := [name for name, value in given.items() if value is None]:
        parser.error(f"the following arguments are required: {', '.join(missing)}")


def refuse(parser: argparse.ArgumentParser, options: argparse.Namespace, one: str, *others: str) -> None:
    for name in others:
        if getattr(options, name) != parser.get_default(name):
            shown = name.upper() if name == "checkpoint" else f"--{name}"
            parser.error(f"{shown} does not go with {one}, as the bundle says how it was made")


def run(options: argparse.Namespace) -> None:
    from export.bundle.staging import prepare
    from export.progress import Steps
    from runtime.files import check_name

    if not options.output:  # an unset shell variable; it would mean the current folder
        raise ValueError("--output must name a folder, got ''")
    if options.sign == "":
        raise ValueError("--sign must name a file, got ''")
    steps, output = Steps(), Path(options.output).expanduser()
    check_name(options.checkpoint)
    prepare(output, force=options.force, say=steps.say)  # before the imports, which take seconds
    set_up_libraries()
    with steps.step("Loading PyTorch and transformers"):
        from export.pipeline import export_bundle
    report = export_bundle(
        options.checkpoint,
        output,
        precisions=separated(options.precision),
        cache=options.cache,
        revision=options.revision,
        adapter=options.adapter,
        force=options.force,
        sign=options.sign,
        steps=steps,
    )
    show(report, output, as_json=options.json)


def run_addition(options: argparse.Namespace) -> None:
    from export.bundle.staging import prepare
    from export.progress import Steps

    if not options.output:
        raise ValueError("--output must name a bundle's folder, got ''")
    steps, output = Steps(), Path(options.output).expanduser()
    prepare(output, force=True, say=steps.say)
    set_up_libraries()
    with steps.step("Loading PyTorch and transformers"):
        from export.addition import add_precisions
    report = add_precisions(output, separated(options.add), sign=options.sign, steps=steps)
    show(report, output, as_json=options.json)


def separated(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")]


def show(report: Any, output: Path, *, as_json: bool) -> None:
    """Print the report; exit with 1 if a precision was left out."""
    from rich.console import Console

    from export.parity.refusal import refusal_line
    from export.parity.report import make_table
    from runtime.errors import command

    if as_json:
        print(json.dumps(report.as_manifest(), indent=2), flush=True)
    else:
        Console().print(make_table(report))
        Console().print(*report.lines(), "", sep="\n", soft_wrap=True)  # keeps a command on one line
        complete = command("python", "-m", "runtime", "complete", "--model", output)
        print(f'{output} is ready: {complete} "Once upon a time"', flush=True)
    if report.refused:
        fail(refusal_line(report, output), 1)


def run_again(options: argparse.Namespace) -> None:
    from export.progress import Steps

    if not options.reproduce:
        raise ValueError("--reproduce must name a bundle's folder, got ''")
    steps = Steps()
    set_up_libraries()
    with steps.step("Loading PyTorch and transformers"):
        from export.reproduce import reproduce_bundle
    found = reproduce_bundle(options.reproduce, options.checkpoint, adapter=options.adapter, steps=steps)
    if not found.same:
        fail(f"{options.reproduce}: {found.line()}", 1)
    print(f"{options.reproduce}: {found.line()}", flush=True)


def set_up_libraries() -> None:
    """Set what libraries look for when they are imported.

    Warnings are silenced, as they would interrupt the progress lines; what matters is raised as an error. PyTorch's
    threads spin for less long before they sleep: on a machine with other work, an export takes half the time.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def fail(message: str, code: int) -> NoReturn:
    if stopped:  # where it came in a library's code, that may have made an error of it
        message, code = INTERRUPTED, 128 + stopped[0]
    line = " ".join(part.strip() for part in message.splitlines())  # other spaces may be part of a name
    with contextlib.suppress(OSError):  # a terminal that was closed
        print(f"{NAME}: {line}", file=sys.stderr)
    sys.exit(code)
