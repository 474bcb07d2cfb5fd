"""Shared by the commands: a parser with one-line errors, common flags, and reading of input."""

import argparse
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from runtime.text.options import GenerationOptions

SOURCES = {"json_schema": re.compile(r"\A\s*\{"), "grammar": re.compile(r"^\s*start\s*:", re.MULTILINE)}  # or files


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {one_line(message)} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def one_line(message: str) -> str:
    """Join a message's lines, as arguments and paths may hold line ends. Other spaces stay: a name may hold them."""
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", help="a bundle; else GPT2_ONNX_MODEL, else models/gpt2")


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Add the flags that a model is loaded with."""
    add_model(parser)
    parser.add_argument("--precision", help="fp32, fp16, int8 or int4 (default: fp32; on CUDA fp16 if exported)")
    parser.add_argument("--cache", help="keys and values: float32, or int8 on the CPU if exported (default: float32)")
    add_public_key(parser)
    add_device(parser)


def add_public_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--public-key", metavar="PEM", help="refuse a bundle that this key did not sign; else GPT2_ONNX_PUBLIC_KEY"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--gpu-mem-limit", type=int, metavar="BYTES", help="GPU memory limit of ONNX Runtime's arena")


def kept(options: argparse.Namespace) -> Any:
    """The model that the flags of `add_loading` ask for."""
    from runtime.api import find_model, kept_model

    return kept_model(
        find_model(options.model),
        options.precision,
        options.device,
        options.gpu_mem_limit,
        cache=options.cache,
        public_key=options.public_key,
    )


def text(argument: str) -> str:
    """Decode an argument as UTF-8, whatever the locale: Python turns bytes foreign to it into lone surrogates."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        with suppress(UnicodeError):  # the check of the text reports where
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
            return file.read().decode("utf-8-sig")  # drops a byte order mark
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} must be UTF-8: {error.reason} at byte {error.start}") from None


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each of `GenerationOptions`; flags not given are not in the namespace."""
    group = parser.add_argument_group("generation (greedy, unless a sampling option is given)")

    def add(flag: str, **settings: Any) -> None:
        group.add_argument(flag, default=argparse.SUPPRESS, **settings)

    add("--max-new-tokens", type=int, metavar="N", help="most tokens to generate (default: 64)")
    add("--min-new-tokens", type=int, metavar="N", help="fewest tokens before an id may end the text")
    add("--temperature", type=float, metavar="T", help="sample from logits divided by T; 0 is greedy")
    add("--top-k", type=int, metavar="K", help="sample from the K most likely tokens")
    add("--top-p", type=float, metavar="P", help="sample from the likeliest tokens that add up to P, 0 to 1")
    add("--min-p", type=float, metavar="P", help="sample from tokens at least P times as likely as the likeliest")
    add("--repetition-penalty", type=float, metavar="R", help="over 1: tokens already in the text become less likely")
    add("--logit-bias", action=AddBias, metavar="ID=BIAS", help="add to an id's logit, -100 to 100; may be repeated")
    add("--presence-penalty", type=float, metavar="P", help="over 0: tokens generated before become less likely")
    add("--frequency-penalty", type=float, metavar="P", help="the same, as often as they were generated")
    add("--bad-words", action="append", type=text, metavar="TEXT", help="never these tokens; may be repeated")
    add("--seed", type=int, metavar="N", help="sample the same text each time")
    add(
        "--stop",
        action="append",
        type=text,
        metavar="TEXT",
        help=r"end before this text; may be repeated ($'\n' is a line end)",
    )
    add("--ignore-eos", action="store_true", help="generate past <|endoftext|>")
    add("--eos-token-id", action="append", type=int, metavar="ID", help="an id that ends the text too; may be repeated")
    add("--draft", action=argparse.BooleanOptionalAction, help="several tokens per run (default: if greedy in fp32)")
    add("--logprobs", type=int, metavar="K", help="log-probabilities of each token and the K likeliest, in JSON")
    add("--prompt-logprobs", type=int, metavar="K", help="the same of the prompt's tokens, in JSON")
    add("--regex", type=text, metavar="REGEX", help="text that matches this as a whole")
    add(
        "--json-schema", type=text, metavar="SCHEMA", help="JSON of this schema, in a file, or here if it begins with {"
    )
    add(
        "--grammar", type=text, metavar="GRAMMAR", help="text of this Lark grammar, in a file, or here if it has start:"
    )


class AddBias(argparse.Action):
    """Collects ID=BIAS in a dictionary."""

    def __call__(self, _parser: Any, namespace: Any, value: Any, _flag: str | None = None) -> None:
        token, separator, bias = str(value).partition("=")
        try:
            number = float(bias)
        except ValueError:
            separator = ""
        if not separator or not token.isdigit():
            raise argparse.ArgumentError(self, f"must be ID=BIAS, such as 50256=-100, got {value!r}")
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), int(token): number})


def given_generation(options: argparse.Namespace) -> GenerationOptions:
    """The generation options that were given, by name."""
    given = {name: getattr(options, name) for name in GenerationOptions.__annotations__ if name in options}
    for name, written_here in SOURCES.items():
        if name in given and not written_here.search(given[name]):
            given[name] = read_utf8(given[name])
    return given  # type: ignore[return-value]
