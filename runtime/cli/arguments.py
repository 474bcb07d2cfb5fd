"""What the commands share: a parser whose errors are one line, the flags, and texts to read."""

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from runtime.text.options import GenerationOptions


class OneLineParser(argparse.ArgumentParser):
    """argparse without the usage text in front of each error."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {one_line(message)} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def one_line(message: str) -> str:
    """Arguments and paths may hold line ends; an error has none. Spaces stay, as they may be a name's."""
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", help="a bundle; else GPT2_ONNX_MODEL, else models/gpt2")


def add_loading(parser: argparse.ArgumentParser) -> None:
    """What a model is loaded with."""
    add_model(parser)
    parser.add_argument("--precision", help="fp32, fp16, int8 or int4 (default: fp32, on CUDA fp16 if it is there)")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--gpu-mem-limit", type=int, metavar="BYTES", help="of a card's memory, for ONNX Runtime's arena"
    )


def text(argument: str) -> str:
    """A text as UTF-8, whatever the locale: what that does not have, Python gives as lone surrogates."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        with suppress(UnicodeError):  # whoever checks the text names the place
            return os.fsencode(argument).decode("utf-8")
    return argument


def open_input(argument: str) -> BinaryIO:
    """A file's bytes, or those of standard input for `-`."""
    if argument != "-":
        return Path(argument).open("rb")
    if sys.stdin is None:
        raise ValueError("standard input is closed; give a file, or a text as the argument")
    return sys.stdin.buffer


def read_utf8(argument: str) -> str:
    """The text of a file, or of standard input for `-`."""
    name = "standard input" if argument == "-" else argument
    with open_input(argument) as file:
        try:
            return file.read().decode("utf-8-sig")  # a byte order mark is no text
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} must be UTF-8: {error.reason} at byte {error.start}") from None


def add_generation(parser: argparse.ArgumentParser) -> None:
    """A flag for each of `GenerationOptions`; what is not given is not in the namespace."""
    group = parser.add_argument_group("generation (greedy, unless an option for sampling is given)")

    def add(flag: str, **settings: Any) -> None:
        group.add_argument(flag, default=argparse.SUPPRESS, **settings)

    add("--max-new-tokens", type=int, metavar="N", help="tokens at most (default: 64)")
    add("--temperature", type=float, metavar="T", help="sample from logits divided by T; 0 is greedy")
    add("--top-k", type=int, metavar="K", help="sample from the K most likely tokens")
    add("--top-p", type=float, metavar="P", help="sample from the most likely tokens that make up P, 0 to 1")
    add("--min-p", type=float, metavar="P", help="sample from tokens at least P times as likely as the likeliest")
    add("--repetition-penalty", type=float, metavar="R", help="over 1: tokens that were there become less likely")
    add("--seed", type=int, metavar="N", help="sample the same text each time")
    add(
        "--stop",
        action="append",
        type=text,
        metavar="TEXT",
        help=r"end before this text; may be repeated ($'\n' is a line end)",
    )
    add("--ignore-eos", action="store_true", help="generate past <|endoftext|>")
    add("--draft", action=argparse.BooleanOptionalAction, help="several tokens out of a run (default: greedy in fp32)")
    add("--logprobs", type=int, metavar="K", help="log-probabilities of each token and the K likeliest, in JSON")


def given_generation(options: argparse.Namespace) -> GenerationOptions:
    """The generation options that were given, by name."""
    return {name: getattr(options, name) for name in GenerationOptions.__annotations__ if name in options}  # type: ignore[return-value]
