"""`gpt2-onnx doctor`: what is installed here, what of it works, and what would mend the rest."""

import argparse
import json
from typing import Any


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check this installation",
        description="Show versions, providers that really work, CUDA's libraries, GPUs and CPUs; and what mends what "
        "does not. The exit code is 1 if something keeps what is installed from working.",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from runtime.diagnosis import doctor

    diagnosis = doctor()
    print(json.dumps(diagnosis.as_dict(), indent=2) if options.json else diagnosis)
    return 0 if diagnosis.healthy else 1
