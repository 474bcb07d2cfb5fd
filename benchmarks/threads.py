"""What threads give, from one to all there are: decoding and prefill, in every precision.

    python -m benchmarks.threads                # a seeded GPT-2 small
    python -m benchmarks.threads --json

All in one process, taking turns, with pauses for the last one's threads to stop spinning.
"""

import argparse
import os
import statistics
import time
from functools import partial
from pathlib import Path

from rich.table import Table

import runtime
from benchmarks.common.kept import exported, seeded_checkpoint
from benchmarks.common.study import OneLineParser, ratios, spread
from benchmarks.common.turns import empty_table, print_results, take_turns

PROMPT, NEW, LONG = 64, 96, 512  # tokens


def main() -> None:
    options = parse_arguments()
    bundle = exported(options.checkpoint or seeded_checkpoint("small"), options.precisions)
    counts = range(1, len(os.sched_getaffinity(0)) + 1)
    tables = {precision: measure(bundle, precision, counts, options.rounds) for precision in options.precisions}
    print_results(f"{bundle.name}, batch 1", {"results": tables}, [make_table(tables)], as_json=options.json)


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser("benchmarks.threads", __doc__)
    parser.add_checkpoint()
    parser.add_precisions()
    parser.add_rounds(7)
    parser.add_json()
    return parser.parse_args()


def measure(bundle: Path, precision: str, counts: range, rounds: int) -> dict[int, list[tuple[float, float]]]:
    """(tokens per second, milliseconds to read a long prompt) of each turn, by the number of threads."""
    models = {count: runtime.load(bundle, precision=precision, threads=count) for count in counts}
    sides = {str(count): partial(turn, model) for count, model in models.items()}
    answers, _ = take_turns(sides, rounds, precision)
    return {count: answers[str(count)] for count in counts}


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
        for count, turns in found.items():
            speed, prefill = zip(*turns, strict=True)
            gains = [spread(ratios(speed, alone[0])), spread(ratios(alone[1], prefill))]
            table.add_row(
                precision, str(count), spread(speed), gains[0], f"{statistics.median(prefill):,.0f}", gains[1]
            )
    return table


if __name__ == "__main__":
    main()
