"""Servers under load: this runtime's, llama.cpp's, and OpenVINO GenAI's continuous batching, of one checkpoint.

    python -m benchmarks.serve                              # a seeded GPT-2 small, every side, fp32 and int8
    python -m benchmarks.serve --peers llama.cpp --precisions int8 --seconds 10 --json results.json
    python -m benchmarks.serve --report results.json --chart serving.svg   # tables and chart, without measuring

Prompts of 16 to 128 tokens get 64 new ones each, sampled at temperature 1 past any end of text, told as they come. All
sides have the same threads and 16 slots.

- callers: tokens a second of 16 callers who each send the next prompt when they have the answer; in turns. One side is
  this runtime's engine without HTTP: threads that call `model.stream`.
- arrivals: prompts that arrive at random (Poisson), at shares of what this runtime's server can do with 16 callers.
- idle: milliseconds to the first token of a short prompt while nothing else runs, over HTTP and by `complete`.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.common.kept import exported, seeded_checkpoint
from benchmarks.common.study import OneLineParser, count, machine, number_from, remark
from benchmarks.common.turns import SideError, take_turns
from benchmarks.serve.chart import draw
from benchmarks.serve.load import NEW_TOKENS, Outcome, Request, arrivals, figures, request, speed
from benchmarks.serve.sides import ENGINE, GENAI, LLAMA, OURS, SLOTS, AnySide, Served, started
from benchmarks.serve.tables import print_report
from runtime.text.tokenizer import Tokenizer

PEERS = (LLAMA, GENAI)
PRECISIONS = ("fp32", "int8")
SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
SHORT = 8  # tokens of a prompt, on an idle server
Report = dict[str, Any]


def main() -> None:
    parser = OneLineParser("python -m benchmarks.serve", __doc__)
    parser.add_checkpoint()
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, metavar="PRECISION")
    parser.add_threads()
    parser.add_argument("--callers", type=count, default=16, help="at once (default: 16)")
    parser.add_argument("--requests", type=partial(number_from, 2), default=64, help="of a turn (default: 64)")
    parser.add_argument("--seconds", type=count, default=20, help="how long prompts arrive (default: 20)")
    parser.add_rounds(5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything that was measured")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="latency over the rate of arrivals")
    parser.add_argument("--report", type=Path, metavar="FILE", help="what --json wrote; nothing is measured")
    options = parser.parse_args()
    report = json.loads(options.report.read_text()) if options.report else measured(options)
    if options.json and not options.report:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print_report(report)
    if options.chart:
        draw(report, options.chart)


def measured(options: argparse.Namespace) -> Report:
    checkpoint = options.checkpoint or seeded_checkpoint("small")
    bundle = exported(checkpoint, options.precisions)
    encode = Tokenizer(bundle / "tokenizer.json").encode
    report: Report = {
        "title": f"{checkpoint.name}: {options.threads} threads, {SLOTS} slots, {options.callers} callers",
        "machine": machine("onnxruntime", "uvicorn", "starlette"),
        "precisions": {},
    }
    for precision in options.precisions:
        report["precisions"][precision] = measure(precision, checkpoint, bundle, encode, options)
    return report


def measure(
    precision: str, checkpoint: Path, bundle: Path, encode: Callable[[str], list[int]], options: argparse.Namespace
) -> Report:
    """One precision: all sides are up, and one at a time is asked."""
    with ExitStack() as stack:
        sides = dict[str, AnySide]()
        for name in (OURS, ENGINE, *options.peers):
            try:
                sides[name] = stack.enter_context(started(name, precision, checkpoint, bundle, options.threads))
            except SideError as error:
                remark(f"{name} {precision} is left out: {error}")
        found: Report = {
            "callers": callers(sides, encode, options, precision),
            "idle": idle(sides, encode, options, precision),
        }
        capacity = statistics.median(found["callers"][OURS]) / NEW_TOKENS
        found["capacity"] = capacity
        found["arrivals"] = {
            name: arriving(name, side, capacity, encode, options, precision)
            for name, side in sides.items()
            if name != ENGINE
        }
        return found


def callers(
    sides: dict[str, AnySide], encode: Any, options: argparse.Namespace, precision: str
) -> dict[str, list[float]]:
    """Tokens a second; this runtime's server also without streaming."""
    turn = Random(0)

    def work(call: Callable[[Sequence[Request], int], list[Outcome]]) -> float:
        return speed(call([request(turn, 0.0, encode) for _ in range(options.requests)], options.callers))

    turns = {name: partial(work, side.call) for name, side in sides.items()}
    ours = sides[OURS]
    if isinstance(ours, Served):
        turns[f"{OURS}, not streamed"] = partial(work, ours.call_whole)
    speeds, failed = take_turns(turns, options.rounds, f"{precision}, {options.callers} callers")
    for name, reason in failed.items():
        remark(f"{name}: {reason}")
    if OURS not in speeds:
        sys.exit(f"{OURS}: {failed[OURS]}")
    return speeds


def idle(sides: dict[str, AnySide], encode: Any, options: argparse.Namespace, precision: str) -> dict[str, list[float]]:
    """Milliseconds to the first token, of single requests."""
    turn = Random(1)

    def first(side: AnySide) -> float:
        asked = [short(turn, encode) for _ in range(5)]
        return 1e3 * statistics.median(outcome.pieces[0] for outcome in side.call(asked, 1))

    found, _ = take_turns(
        {name: partial(first, side) for name, side in sides.items()}, options.rounds, f"{precision}, idle"
    )
    return found


def short(turn: Random, encode: Any) -> Request:
    asked = request(turn, 0.0, encode)
    return Request(0.0, asked.ids[:SHORT], asked.seed, 2)


def arriving(
    name: str, side: AnySide, capacity: float, encode: Any, options: argparse.Namespace, precision: str
) -> list[dict[str, float]]:
    """The same arrivals for each side, from light to more than this runtime's server can serve."""
    found = []
    for share in SHARES:
        remark(f"{precision}, {name}: {share:g} of {capacity:.1f} requests a second")
        asked = arrivals(share * capacity, options.seconds, encode, seed=round(100 * share))
        found.append({"share": share, "rate": share * capacity, **figures(side.arrive(asked))})
    return found


if __name__ == "__main__":
    main()
