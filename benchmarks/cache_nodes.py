"""Where the time of a step goes, with float32 and with int8 keys and values: ONNX Runtime's own profile of the nodes.

    python -m benchmarks.cache_nodes            # 16 rows at 900 tokens of a seeded GPT-2 small

`python -m benchmarks.serving cache` measures whole steps, without a profile.
"""

import argparse
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import runtime
import runtime.ort.sessions
from benchmarks.common.kept import exported, seeded_checkpoint
from benchmarks.common.study import OneLineParser, count
from benchmarks.common.turns import empty_table, print_results
from benchmarks.serving import CACHES, filled
from runtime.graphs.work import Work

WARM = 4  # steps that are not counted


def main() -> None:
    parser = OneLineParser("python -m benchmarks.cache_nodes", __doc__)
    parser.add_checkpoint()
    parser.add_precisions()
    parser.add_threads()
    parser.add_json()
    parser.add_argument("--rows", type=count, default=16)
    parser.add_argument("--past", type=count, default=900, help="tokens that each row holds (default: 900)")
    parser.add_argument("--steps", type=count, default=36)
    options = parser.parse_args()
    bundle = exported(options.checkpoint or seeded_checkpoint("small"), options.precisions, cache=True)
    table = empty_table("milliseconds of a step", "attention", "all other nodes", "GB of keys and values", "GB/s")
    found: dict[str, Any] = {}
    for precision in options.precisions:
        for cache in CACHES:
            steps = list(profiled(bundle, precision, cache, options))
            attention = statistics.median(step["GroupQueryAttention"] for step in steps)
            rest = statistics.median(step.total() - step["GroupQueryAttention"] for step in steps)
            size = read_bytes(bundle, cache, options) / 1e9
            figures = (f"{attention:.1f}", f"{rest:.1f}", f"{size:.2f}", f"{1e3 * size / attention:.0f}")
            table.add_row(f"{precision}, {cache} keys and values", *figures)
            found[f"{precision}, {cache}"] = steps
    title = f"{bundle.name}: {options.rows} rows at {options.past}, {options.threads} threads"
    print_results(title, {"results": found}, [table], as_json=options.json)


def profiled(bundle: Path, precision: str, cache: str, options: argparse.Namespace) -> Iterator[Counter[str]]:
    """Milliseconds by operator, of each counted step."""
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.object(runtime.ort.sessions, "make_options", profiling(Path(folder))):
            model = runtime.load(bundle, precision=precision, threads=options.threads, cache=cache)
            slots = filled(model, options.rows, options.past)
        for step in range(WARM + options.steps):
            slots.run([Work(row, [11], options.past + step) for row in range(options.rows)])
        events = json.loads(Path(model.decode_graph._session.end_profiling()).read_text(encoding="utf-8"))
    runs = sorted((event for event in events if event["name"] == "model_run"), key=lambda event: event["ts"])
    nodes = [event for event in events if event["name"].endswith("_kernel_time")]
    for run in runs[-options.steps :]:
        times = Counter[str]()
        for node in nodes:
            if 0 <= node["ts"] - run["ts"] < run["dur"]:
                times[node["args"]["op_name"]] += node["dur"] / 1e3
        yield times


def profiling(folder: Path) -> Any:
    """`make_options` that writes a profile into a folder."""
    make = runtime.ort.sessions.make_options

    def make_options(*args: Any) -> Any:
        options = make(*args)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        return options

    return make_options


def read_bytes(bundle: Path, cache: str, options: argparse.Namespace) -> float:
    """Of keys and values, that the middle one of the counted steps reads."""
    shape = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["architecture"]
    tokens = options.past + WARM + (options.steps + 1) / 2
    return float(options.rows * tokens * 2 * shape["n_layer"] * shape["n_embd"] * {"float32": 4, "int8": 1}[cache])


if __name__ == "__main__":
    main()
