"""`gpt2-onnx summary`: prints a model's architecture and its parameters by module."""

import argparse
import json
from typing import Any

from runtime.cli.arguments import add_model


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "summary",
        help="count a model's parameters",
        description="Print a bundle's architecture and its parameters by module. Only the manifest is read.",
    )
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print it as JSON, block by block")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from runtime.api import find_model
    from runtime.bundle.bundle import find_folder
    from runtime.bundle.manifest import read_manifest
    from runtime.inside.summary import summarize

    summary = summarize(read_manifest(find_folder(find_model(options.model))).architecture)
    print(json.dumps(summary.as_dict()) if options.json else summary)
    return 0
