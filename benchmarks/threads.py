"""What threads give, from one to all there are: decoding and prefill, in every precision.

    python -m benchmarks.threads                # a seeded GPT-2 small
    python -m benchmarks.threads --json
    python -m benchmarks.threads --bandwidth 2  # how fast two threads read memory, in bytes a second

All in one process, taking turns, with pauses for the last one's threads to stop spinning.

Memory's bandwidth is the limit of decoding, which reads every weight for every token. The threads each go once over
their own part of an array that no cache holds, and the best of several goes counts. Once with huge pages, which is what
the memory can give, and once with ordinary ones, in which weights mostly lie.
"""

import argparse
import json
import mmap
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

import runtime
from benchmarks.common.kept import exported, seeded_checkpoint
from benchmarks.common.study import OneLineParser, count, ratios, spread, timed
from benchmarks.common.turns import empty_table, print_results, take_turns

PROMPT, NEW, LONG = 64, 96, 512  # tokens
SIZE = 2**30  # bytes
GOES = 12
PAGES = {"huge pages": mmap.MADV_HUGEPAGE, "ordinary pages": mmap.MADV_NOHUGEPAGE}


def main() -> None:
    options = parse_arguments()
    if options.bandwidth:
        print(json.dumps({name: read_bandwidth(options.bandwidth, advice) for name, advice in PAGES.items()}))
    else:
        measure_all(options)


def measure_all(options: argparse.Namespace) -> None:
    bundle = exported(options.checkpoint or seeded_checkpoint("small"), options.precisions)
    counts = range(1, len(os.sched_getaffinity(0)) + 1)
    tables = {precision: measure(bundle, precision, counts, options.rounds) for precision in options.precisions}
    print_results(f"{bundle.name}, batch 1", {"results": tables}, [make_table(tables)], as_json=options.json)


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser("python -m benchmarks.threads", __doc__)
    parser.add_checkpoint()
    parser.add_precisions()
    parser.add_rounds(7)
    parser.add_json()
    parser.add_argument(
        "--bandwidth", type=count, metavar="THREADS", help="only how fast so many threads read memory, as JSON"
    )
    return parser.parse_args()


def measure(bundle: Path, precision: str, counts: range, rounds: int) -> dict[int, list[tuple[float, float]]]:
    """(tokens per second, milliseconds to read a long prompt) of each turn, by the number of threads."""
    models = {threads: runtime.load(bundle, precision=precision, threads=threads) for threads in counts}
    sides = {str(threads): partial(turn, model) for threads, model in models.items()}
    answers, _ = take_turns(sides, rounds, precision)
    return {threads: answers[str(threads)] for threads in counts}


def turn(model: runtime.Model) -> tuple[float, float]:
    with model.decode_graph.sequence() as state:
        token = state.advance(range(100, 100 + PROMPT))
        started = time.perf_counter()
        for _ in range(NEW):
            token = state.advance([token])
        decoded = time.perf_counter()
        state.rewind(0)
        state.advance(range(100, 100 + min(LONG, model.prompting.context - 1)))
        return NEW / (decoded - started), 1e3 * (time.perf_counter() - decoded)


def make_table(tables: dict[str, dict[int, list[tuple[float, float]]]]) -> Table:
    table = empty_table("precision", "threads", "tokens per second", "times one thread's", "ms for 512 tokens", "times")
    for precision, found in tables.items():
        alone = list(zip(*found[1], strict=True))
        for threads, turns in found.items():
            speed, prefill = zip(*turns, strict=True)
            gains = [spread(ratios(speed, alone[0])), spread(ratios(alone[1], prefill))]
            table.add_row(
                precision, str(threads), spread(speed), gains[0], f"{statistics.median(prefill):,.0f}", gains[1]
            )
    return table


def read_bandwidth(threads: int, advice: int) -> float:
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(advice)
    array = np.frombuffer(memory, np.int64)
    array[:] = 1  # pages that nobody wrote to are all one page
    parts = np.array_split(array, threads)
    with ThreadPoolExecutor(threads) as pool:
        return max(SIZE / timed(partial(go_over, pool, parts))[0] for _ in range(GOES))


def go_over(pool: ThreadPoolExecutor, parts: list[NDArray[np.int64]]) -> None:
    """Bitwise or: one instruction for 64 bytes, and NumPy lets go of the interpreter meanwhile."""
    list(pool.map(np.bitwise_or.reduce, parts))


if __name__ == "__main__":
    main()
