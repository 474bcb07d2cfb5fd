"""`gpt2-onnx complete PROMPT`: continues a prompt and prints the text as it is generated, or as JSON."""

import argparse
import json
import sys
from typing import Any

from runtime.cli.arguments import add_generation, add_loading, given_generation, kept, read_utf8, text


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "complete", help="continue a prompt", description="Continue a prompt, showing text as it is generated."
    )
    parser.add_argument("prompt", type=text, metavar="PROMPT", help="the text to continue; - reads standard input")
    add_loading(parser)
    parser.add_argument("--json", action="store_true", help="print the whole completion as JSON")
    add_generation(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the continuation only, or the whole completion as JSON."""
    from runtime.text.options import check_settings

    wanted = given_generation(options)
    for name, flag in (("logprobs", "--logprobs"), ("prompt_logprobs", "--prompt-logprobs")):
        if name in wanted and not options.json:
            raise ValueError(f"{flag} are printed only as JSON; add --json")
    check_settings(wanted)
    prompt = read_prompt(options.prompt)
    model = kept(options)
    if options.json:
        print(json.dumps(model.complete(prompt, **wanted).as_dict()))
    else:
        show(model.stream(prompt, **wanted))
    return 0


def show(pieces: Any) -> None:
    """Print each piece at once; end the line if the user interrupts."""
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print()
        raise
    print()


def read_prompt(argument: str) -> str:
    """The argument, or for `-` standard input without the one line end, \\n or \\r\\n, that a shell adds."""
    if argument != "-":
        return argument
    prompt = read_utf8("-")
    return prompt.removesuffix("\r\n" if prompt.endswith("\r\n") else "\n")
