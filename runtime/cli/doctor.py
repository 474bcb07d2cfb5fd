"""`gpt2-onnx doctor`: reports what is installed, what works, and how to fix what does not."""

import argparse
import json
from typing import Any


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check this installation",
        description="Show versions, the server's packages, the providers that really work, CUDA's libraries, GPUs and "
        "CPUs, and how to fix what does not work. The exit code is 1 if something that is installed does not work.",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from runtime.diagnosis import doctor

    diagnosis = doctor()
    print(json.dumps(diagnosis.as_dict(), indent=2) if options.json else diagnosis)
    return 0 if diagnosis.healthy else 1
