"""What `peers.py` may be asked for; whatever it cannot do is one line on standard error and exit code 2."""

import argparse
import json
import os
from pathlib import Path
from typing import Any, NoReturn

from contestants import PEERS, PRECISIONS
from tasks import BATCH_TOKENS


class OneLineParser(argparse.ArgumentParser):
    """argparse without the usage text in front of each error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = OneLineParser(prog="peers.py", description=description)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="by default a seeded GPT-2 small")
    parser.add_argument("--peers", nargs="+", type=peer_named, default=PEERS, metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, metavar="PRECISION")
    parser.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)), help="default: all there are")
    parser.add_argument("--prompt", type=count, default=64, help="tokens before decoding (default: 64)")
    parser.add_argument("--tokens", type=tokens, default=128, help="tokens to decode (default: 128)")
    parser.add_argument("--rounds", type=count, default=5, help="turns of each side that count (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything that was measured")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="a chart of the decoding speeds")
    parser.add_argument("--report", type=Path, metavar="FILE", help="what --json wrote; nothing is measured")
    return parser


def count(text: str) -> int:
    return number_from(1, text)


def tokens(text: str) -> int:
    return number_from(8, text)


def number_from(least: int, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} up, got {text!r}")
    return int(text)


def peer_named(text: str) -> str:
    for peer in PEERS:
        if peer.lower() == text.lower():
            return peer
    raise argparse.ArgumentTypeError(f"there is no {text!r}; there are: {', '.join(PEERS)}")


def check_output(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Before an hour of measuring, not after it."""
    for path in filter(None, (options.json, options.chart)):
        if not path.resolve().parent.is_dir():
            parser.error(f"there is no folder {path.parent}")
    if options.chart and options.chart.suffix != ".svg":
        parser.error(f"argument --chart: must end in .svg, got {str(options.chart)!r}")


def stored(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text())
        report["sides"], report["title"], report["machine"], report["bandwidth"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not what --json wrote"
        parser.error(f"argument --report: {path}: {reason}")
    return report


def check_checkpoint(parser: argparse.ArgumentParser, checkpoint: Path, options: argparse.Namespace) -> int:
    """Its context, in which all that is asked for has room."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (checkpoint / name).is_file():
            parser.error(f"no checkpoint at {checkpoint}: there is no {name}")
    context = json.loads((checkpoint / "config.json").read_text())["n_positions"]
    if max(options.prompt + options.tokens, BATCH_TOKENS + 1) > context:
        parser.error(f"{options.prompt} tokens and {options.tokens} new ones do not fit the context of {context}")
    return context
