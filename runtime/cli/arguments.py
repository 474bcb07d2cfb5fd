"""A parser whose errors are one line."""

import argparse
import sys
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """argparse without the usage text in front of each error."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {one_line(message)} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def one_line(message: str) -> str:
    """Arguments and paths may hold line ends; an error has none."""
    return " ".join(message.split())
