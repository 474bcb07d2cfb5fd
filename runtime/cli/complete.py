"""`gpt2-onnx complete "prompt"`."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any


def add_to(commands: Any) -> None:
    parser = commands.add_parser("complete", help="continue a prompt", description="Continue a prompt, greedily.")
    parser.add_argument("prompt", metavar="PROMPT", help="the text to continue; - reads standard input")
    parser.add_argument("--model", metavar="DIR", help="a bundle; else GPT2_ONNX_MODEL, else models/gpt2")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="tokens at most (default: 64)")
    parser.add_argument("--device", default="auto", help="auto or cpu (default: auto)")
    parser.add_argument("--json", action="store_true", help="print the whole completion as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the continuation alone, or everything about it as JSON."""
    from runtime.default_model import complete

    completion = complete(
        read_prompt(options.prompt),
        model=options.model,
        device=options.device,
        max_new_tokens=options.max_new_tokens,
    )
    print(json.dumps(asdict(completion)) if options.json else completion.text)
    return 0


def read_prompt(argument: str) -> str:
    """The argument itself, or standard input less the line end that a shell adds."""
    if argument != "-":
        return argument
    if sys.stdin is None:
        raise ValueError("standard input is closed; give the prompt as an argument")
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input must be UTF-8: {error.reason} at byte {error.start}") from None
