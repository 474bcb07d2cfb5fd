"""Options that several studies have; whatever a study cannot do is one line on standard error and exit code 2."""

import argparse
import os
from pathlib import Path
from typing import NoReturn

PRECISIONS = ("fp32", "int8", "int4")


class OneLineParser(argparse.ArgumentParser):
    """argparse without the usage text in front of each error, and the options that studies share.

    Args:
        module: The one that is run; argparse knows the file's name only.
        docstring: Of that module; its first line is what `--help` says.
    """

    def __init__(self, module: str, docstring: str | None) -> None:
        super().__init__(prog=f"python -m {module}", description=(docstring or "").partition("\n")[0])

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")

    def add_checkpoint(self, default: Path | None = None) -> None:
        usual = default.name if default else "a seeded GPT-2 small"
        self.add_argument("--checkpoint", type=Path, metavar="DIR", default=default, help=f"by default {usual}")

    def add_precisions(self) -> None:
        self.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, metavar="PRECISION")

    def add_threads(self) -> None:
        self.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)), help="default: all there are")

    def add_tokens(self, default: int) -> None:
        self.add_argument("--tokens", type=count, default=default, help=f"tokens of a text (default: {default})")

    def add_rounds(self, default: int) -> None:
        self.add_argument("--rounds", type=count, default=default, help=f"turns that count (default: {default})")

    def add_json(self) -> None:
        self.add_argument("--json", action="store_true", help="all values, instead of tables")


def whole_number(text: str) -> int:
    return number_from(0, text)


def count(text: str) -> int:
    return number_from(1, text)


def number_from(least: int, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} up, got {text!r}")
    return int(text)
