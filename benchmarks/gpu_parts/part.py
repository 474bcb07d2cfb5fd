"""One part, in this process: python -m gpu_parts.part NAME PLAN RESULT."""

import importlib
import json
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gpu_parts.plan import Plan

Piece = tuple[str, Any, str]  # a key and what belongs there in the results, and a table of it


def main() -> None:
    name, plan, result = sys.argv[1], Plan(**json.loads(sys.argv[2])), Path(sys.argv[3])
    found: dict[str, Any] = {}
    try:
        for key, value, text in pieces(name, plan):
            print(text, end="\n\n", flush=True)
            found[key] = value
            result.write_text(json.dumps(found))
    except Exception as error:
        found |= {"failed": one_line(error), "traceback": traceback.format_exc()}
        result.write_text(json.dumps(found))
        sys.exit(1)


def pieces(name: str, plan: Plan) -> Iterator[Piece]:
    """What the part finds, as soon as it does; a part imports no more than it needs."""
    module, _, detail = name.partition("-")
    part = importlib.import_module(f"gpu_parts.{module}").pieces
    return partial(part, plan, detail)() if detail else part(plan)


def one_line(error: Exception) -> str:
    """What happened and where, without the pages that compilers add."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})"


if __name__ == "__main__":
    main()
