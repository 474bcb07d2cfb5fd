"""Entry point of the command line: parses, runs, and turns errors into one line and an exit code."""

import argparse
import io
import os
import sys
from contextlib import suppress
from pathlib import Path

from runtime import __version__
from runtime.cli import batch, complete, doctor, inspect, score, serve, summary, verify
from runtime.cli.arguments import OneLineParser, one_line
from runtime.errors import BundleError
from runtime.ort.install import load_onnxruntime

FATAL = 4
COMMANDS = (complete, batch, serve, score, inspect, summary, verify, doctor)


def main() -> None:
    """Exit with 0, with 2 for wrong usage, with 130 if interrupted, with 1 for any other error."""
    try:
        code, message = run(), ""
    except BundleError as error:
        code, message = 1, str(error)
    except (TypeError, ValueError) as error:  # an option or a prompt, checked by the library
        code, message = 2, str(error)
    except (ImportError, RuntimeError) as error:
        code, message = 1, str(error)
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    except BrokenPipeError:  # the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code, message = 1, ""
    except OSError as error:
        code, message = 1, f"{error.filename or 'output'}: {error.strerror or error}"
    except MemoryError as error:
        code, message = 1, f"out of memory{f': {error}' if str(error) else ''}"
    except Exception as error:  # ONNX Runtime's exceptions share no public base
        code, message = 1, f"{type(error).__name__}: {error}"
    if message:
        print(f"gpt2-onnx: {one_line(message)}", file=sys.stderr)
    sys.exit(code)


def run() -> int:
    options = make_parser().parse_args()
    if sys.stdout is None:  # the caller closed it
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    quiet()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character still shows the rest
    code: int = options.run(options)
    sys.stdout.flush()
    return code


def quiet() -> None:
    """Silence ONNX Runtime's log, which would mix with our output; its errors repeat what matters."""
    with suppress(Exception):  # a command that needs ONNX Runtime reports what is wrong with it
        load_onnxruntime().set_default_logger_severity(FATAL)


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="gpt2-onnx", description="Complete and score text with a GPT-2 bundle.")
    parser.add_argument("--version", action="version", version=f"gpt2-onnx {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)
    for command in COMMANDS:
        command.add_to(commands)
    return parser
