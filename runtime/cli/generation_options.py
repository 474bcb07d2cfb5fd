"""The flags of everything that generates text."""

import argparse
from typing import Any

from runtime.cli.arguments import text
from runtime.text.options import GenerationOptions


def add_to(parser: argparse.ArgumentParser) -> None:
    """One flag an option; what is not given is not in the namespace."""
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


def given(options: argparse.Namespace) -> GenerationOptions:
    """The options that were given, by name."""
    return {name: getattr(options, name) for name in GenerationOptions.__annotations__ if name in options}  # type: ignore[return-value]
