"""What it costs to keep checked weights out of their file, and a model's first call in a process that is forked off.

    python -m benchmarks.loading                # a seeded GPT-2 small
    python -m benchmarks.loading --json

Fresh processes take turns: load, and complete one token; with what `runtime.load` does, with the weights left mapped,
and without any check. Memory is the process's peak, and what of it is its own and not a file's.
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from rich.table import Table

from benchmarks.common.kept import exported, seeded_checkpoint
from benchmarks.common.study import OneLineParser, spread
from benchmarks.common.turns import SideError, empty_table, print_results, take_turns

SIDES = ("as it is", "left mapped", "verify=False")
FIELDS = ("seconds", "seconds in a child", "own MiB", "peak MiB")
CHILD = """
import contextlib, json, os, sys, time, warnings
import runtime, runtime.graphs.decode

bundle, precision, side = sys.argv[1:]
if side == "left mapped":
    runtime.graphs.decode.own_pages = lambda files: contextlib.nullcontext()
started = time.perf_counter()
model = runtime.load(bundle, precision=precision, device="cpu", verify=side != "verify=False")
model.complete("It was a bright cold day", max_new_tokens=1)
seconds = time.perf_counter() - started
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
own, peak = (int(status[name].split()[0]) / 1024 for name in ("RssAnon", "VmHWM"))
reading, writing = os.pipe()
warnings.simplefilter("ignore", DeprecationWarning)
if not os.fork():
    started = time.perf_counter()
    model.complete("It was a bright cold day", max_new_tokens=1)
    os.write(writing, str(time.perf_counter() - started).encode())
    os._exit(0)
print(json.dumps([seconds, float(os.read(reading, 64)), own, peak]))
"""


def main() -> None:
    options = parse_arguments()
    bundle = exported(options.checkpoint or seeded_checkpoint("small"), options.precisions)
    tables = {
        precision: take_turns(
            {side: partial(start, bundle, precision, side) for side in SIDES}, options.rounds, precision
        )[0]
        for precision in options.precisions
    }
    results = {"fields": FIELDS, "results": tables}
    print_results(bundle.name, results, [make_table(tables)], as_json=options.json)


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser("benchmarks.loading", __doc__)
    parser.add_checkpoint()
    parser.add_precisions()
    parser.add_rounds(11)
    parser.add_json()
    return parser.parse_args()


def start(bundle: Path, precision: str, side: str) -> list[float]:
    """One process's `FIELDS`."""
    command = [sys.executable, "-c", CHILD, str(bundle), precision, side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SideError(done.stderr.strip().splitlines()[-1])
    return [float(value) for value in json.loads(done.stdout)]


def make_table(tables: dict[str, dict[str, list[list[float]]]]) -> Table:
    table = empty_table("precision", "weights", *FIELDS, left=2)
    for precision, sides in tables.items():
        for side, turns in sides.items():
            table.add_row(precision, side, *(spread(values) for values in zip(*turns, strict=True)))
    return table


if __name__ == "__main__":
    main()
