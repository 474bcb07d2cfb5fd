"""`gpt2-onnx serve`: serves OpenAI's API over HTTP."""

import argparse
import os
from dataclasses import asdict, fields
from typing import Any

from runtime.cli.arguments import add_loading

NEEDED = "serving needs the extra `serve`: pip install 'gpt2-onnx[serve]'"
NEEDED_TOO = "a cluster needs the extra `cluster`: pip install 'gpt2-onnx[cluster]'"
CLUSTER = ("replicas", "cpus", "gpus", "fronts", "prefix", "surge", "address")
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
    add_cluster(parser.add_argument_group("a cluster, by Ray (needs the extra `cluster`)"))
    parser.set_defaults(run=run)


def add_cluster(group: Any) -> None:
    """Add what `--cluster` takes; the names are those of `ClusterSettings`."""

    def add(flag: str, **settings: Any) -> None:
        group.add_argument(flag, default=argparse.SUPPRESS, **settings)

    group.add_argument("--cluster", action="store_true", help="serve from replicas, on this machine or many")
    add("--replicas", metavar="N", help="how many, or the least and the most, as 1:8 (default: 1)")
    add("--cpus", type=float, metavar="N", help="CPUs of each replica (default: 1)")
    add("--gpus", type=float, metavar="N", help="cards of each replica, or a share of one (default: 0)")
    add("--fronts", type=int, metavar="N", help="processes that take requests (default: 2)")
    add("--prefix", type=int, metavar="N", help="characters of a prompt that choose its replica (default: 256)")
    add("--surge", type=int, metavar="%", help="more replicas while all are made anew, in percent (default: 0)")
    add("--address", metavar="HOST:PORT", help="a Ray cluster; else RAY_ADDRESS, else one of this machine alone")


def run(options: argparse.Namespace) -> int:
    """Load the model, and serve it until a signal comes."""
    if options.cluster:
        return run_cluster(options)
    if given := [name for name in CLUSTER if name in options]:
        raise ValueError(f"--{given[0]} is for --cluster, which is not given")
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
    settings = from_environment(**limits_of(options, ServerSettings))
    set_up(options.log_format)
    with end_at_once(), bound(options.host, port) as address:
        app = create_app(load_to_serve(options.model, **load_options() | loading_of(options)), settings)
        serve(app, address, grace=grace)
    return 0


def run_cluster(options: argparse.Namespace) -> int:
    """Serve from replicas until a signal comes."""
    if "address" in options:
        os.environ["RAY_ADDRESS"] = options.address  # read when Ray is imported
    try:
        from runtime.cluster import ClusterSettings
        from runtime.cluster.serving import serve_cluster
        from runtime.server import ServerSettings
        from runtime.server.loading import load_options
        from runtime.server.logs import set_up
        from runtime.server.serving import bound
        from runtime.server.settings import from_environment
    except ModuleNotFoundError as error:
        raise ImportError(f"{NEEDED_TOO} ({error.name} is missing)") from None
    from runtime.api import find_model
    from runtime.checks import check_count

    own = {name: getattr(options, name) for name in CLUSTER if name in options and name != "address"}
    limits = asdict(from_environment(**limits_of(options, ServerSettings)))
    loading = load_options() | loading_of(options)
    model = str(find_model(options.model).absolute())
    settings = ClusterSettings.of(model=model, grace=options.grace, **own, **loading, **limits)
    port = check_count("port", options.port, least=1, most=65_535)
    set_up(options.log_format)
    with bound(options.host, port):  # or Ray would say so in its own way
        pass
    serve_cluster(settings, host=options.host, port=port)
    return 0


def limits_of(options: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The limits that flags give."""
    return {field.name: getattr(options, field.name) for field in fields(kind) if field.name in options}


def loading_of(options: argparse.Namespace) -> dict[str, Any]:
    """How flags want the model loaded."""
    return {name: getattr(options, name) for name in LOADING if getattr(options, name) is not None}
