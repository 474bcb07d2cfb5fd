"""What an export and a load take of memory and of time, each in a process of its own.

    python -m benchmarks.memory export          # GPT-2 small and medium, seeded, made once in build/benchmarks
    python -m benchmarks.memory load            # a seeded GPT-2 small
    python -m benchmarks.memory load --json

`export` is a whole one, verification included; its peak is also told as a multiple of the checkpoint's size.

`load` is what it costs to keep checked weights out of their file, and a model's first call in a process that is forked
off. Fresh processes take turns: load, and complete one token; with what `runtime.load` does, with the weights left
mapped, and without any check. Memory is the process's peak, and what of it is its own and not a file's.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common.kept import ROOT, SIZES, WORK, exported, seeded_checkpoint
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
    parser = OneLineParser("python -m benchmarks.memory", __doc__)
    exporting, loading = parser.add_studies(
        export="peak memory of a whole export, verification included, as a multiple of the checkpoint's size",
        load="what it costs to keep checked weights out of their file, and a first call after a fork",
    )
    exporting.add_argument(
        "sizes", nargs="*", metavar="SIZE", default=["small", "medium"], help=f"of {', '.join(SIZES)}"
    )
    exporting.set_defaults(study=study_export)
    loading.add_checkpoint()
    loading.add_precisions()
    loading.add_rounds(11)
    loading.add_json()
    loading.set_defaults(study=study_load)
    options = parser.parse_args()
    options.study(options)


def study_export(options: argparse.Namespace) -> None:
    table = empty_table("GPT-2", "checkpoint, MB", "peak memory, MB", "ratio", "seconds")
    for size in options.sizes:
        table.add_row(size, *export(seeded_checkpoint(size)))
    Console(width=100).print(table)


def export(checkpoint: Path) -> tuple[str, ...]:
    """Of one export in a process of its own: sizes in MB (10^6 bytes), their ratio and the seconds it took."""
    output = WORK / "export-memory"
    shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "export", checkpoint, "--output", output], stdout=subprocess.DEVNULL, cwd=ROOT
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    shutil.rmtree(output, ignore_errors=True)
    if process.returncode:
        sys.exit(f"the export of {checkpoint} failed with exit code {process.returncode}")
    size, peak = (checkpoint / "model.safetensors").stat().st_size / 1e6, usage.ru_maxrss * 1024 / 1e6
    return f"{size:,.0f}", f"{peak:,.0f}", f"{peak / size:.2f}", f"{seconds:.0f}"


def study_load(options: argparse.Namespace) -> None:
    bundle = exported(options.checkpoint or seeded_checkpoint("small"), options.precisions)
    tables = {
        precision: take_turns(
            {side: partial(load, bundle, precision, side) for side in SIDES}, options.rounds, precision
        )[0]
        for precision in options.precisions
    }
    results = {"fields": FIELDS, "results": tables}
    print_results(bundle.name, results, [load_table(tables)], as_json=options.json)


def load(bundle: Path, precision: str, side: str) -> list[float]:
    """One process's `FIELDS`."""
    command = [sys.executable, "-c", CHILD, str(bundle), precision, side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SideError(done.stderr.strip().splitlines()[-1])
    return [float(value) for value in json.loads(done.stdout)]


def load_table(tables: dict[str, dict[str, list[list[float]]]]) -> Table:
    table = empty_table("precision", "weights", *FIELDS, left=2)
    for precision, sides in tables.items():
        for side, turns in sides.items():
            table.add_row(precision, side, *(spread(values) for values in zip(*turns, strict=True)))
    return table


if __name__ == "__main__":
    main()
