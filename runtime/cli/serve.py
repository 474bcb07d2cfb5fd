"""`gpt2-onnx serve`: serves OpenAI's API over HTTP."""

import argparse
from dataclasses import fields
from typing import Any

from runtime.cli.arguments import add_loading

NEEDED = "serving needs the extra `serve`: pip install 'gpt2-onnx[serve]'"
LOADING = ("precision", "device", "threads", "gpu_mem_limit", "slots", "cache", "public_key")


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve OpenAI's API",
        description="Serve OpenAI's API over HTTP. SIGTERM ends it once the requests under way have ended. Each limit, "
        "and how the model is loaded, may also be given by a variable such as GPT2_ONNX_MAX_QUEUE; a flag goes first.",
    )
    add_loading(parser)
    parser.set_defaults(device=None)  # so that a flag that was not given leaves GPT2_ONNX_DEVICE its say
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads on the CPU (default: all CPUs)")
    parser.add_argument(
        "--slots", type=int, metavar="N", help="texts that run at once (default: 32, or fewer in little memory)"
    )
    parser.add_argument(
        "--grace", type=float, default=30.0, metavar="S", help="seconds to end after SIGTERM (default: 30)"
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="(default: text)")
    group = parser.add_argument_group("limits")

    def add(flag: str, **settings: Any) -> None:
        group.add_argument(flag, default=argparse.SUPPRESS, **settings)

    add("--max-queue", type=int, metavar="N", help="texts that may wait, before a 429 (default: 64)")
    add("--max-body", type=int, metavar="BYTES", help="of a request (default: 1,048,576)")
    add("--max-prompts", type=int, metavar="N", help="in a request (default: 128)")
    add("--max-n", type=int, metavar="N", help="completions of a prompt (default: 16)")
    add("--max-tokens", type=int, metavar="N", help="tokens that a request may ask for (default: the context)")
    add("--max-logprobs", type=int, metavar="N", help="likeliest tokens that a request may ask for (default: 20)")
    add("--timeout", type=float, metavar="S", help="seconds that a request may take (default: 600)")
    add("--served-name", metavar="NAME", help="the model's name for clients (default: its folder's)")
    add("--api-key-env", metavar="VAR", help="a variable that holds API keys, separated by commas")
    add("--api-key-file", metavar="FILE", help="a file of API keys, one a line; read again on SIGHUP")
    add("--log-prompts", action="store_true", help="log prompts too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Load the model, and serve it until a signal comes."""
    try:
        from runtime.server import create_app
        from runtime.server.loading import load_options, load_to_serve
        from runtime.server.logs import set_up
        from runtime.server.serving import bound, end_at_once, serve
        from runtime.server.settings import ServerSettings, from_environment
    except ModuleNotFoundError as error:
        raise ImportError(f"{NEEDED} ({error.name} is missing)") from None
    from runtime.checks import check_count, check_number

    port = check_count("port", options.port, least=0, most=65_535)
    grace = check_number("grace", options.grace, "a number of seconds from 0 to 86,400", least=0, most=86_400)
    limits = {field.name: getattr(options, field.name) for field in fields(ServerSettings) if field.name in options}
    settings = from_environment(**limits)
    given = {name: getattr(options, name) for name in LOADING if getattr(options, name) is not None}
    set_up(options.log_format)
    with end_at_once(), bound(options.host, port) as address:
        app = create_app(load_to_serve(options.model, **load_options() | given), settings)
        serve(app, address, grace=grace)
    return 0
