"""Many texts at once: what callers gain by sharing steps, and what they wait for each other.

    python -m benchmarks.serving before DIR         # tokens a second, beside the code in another checkout
    python -m benchmarks.serving arrivals           # time between tokens while long prompts keep coming
    python -m benchmarks.serving beginnings         # a second prompt with the same beginning
    python -m benchmarks.serving drafts             # batches of texts that repeat themselves
    python -m benchmarks.serving cache              # int8 keys and values beside float32's
    python -m benchmarks.serving slots              # as many callers as slots: 4 to 64

All of a seeded GPT-2 small, unless --checkpoint says otherwise. `benchmarks.peers` has the batches of other runtimes.
"""

import argparse
import os
import random
import statistics
import sys
import threading
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import runtime
from benchmarks.callers import WAYS, text
from benchmarks.common.kept import ROOT, exported, seeded_checkpoint
from benchmarks.common.study import OneLineParser, count, ratios, spread, timed
from benchmarks.common.turns import counted, empty_table, print_results, take_turns
from benchmarks.peers.contestants import Worker
from benchmarks.serve.engine_side import run
from benchmarks.serve.load import Outcome, figures, request
from export.parity.greedy import PROMPTS
from runtime.graphs.work import Slots, Work

ROWS = 8
LONG = 900  # tokens of the prompts that arrive
EVERY = 1.0  # seconds between them
CACHES = ("float32", "int8")
FILLED = (("16 rows at 900", 16, 900), ("one row at 900", 1, 900), ("16 rows at 100", 16, 100))
STEPS = 24  # of a turn
SLOTS = (4, 8, 16, 32, 64)


def main() -> None:
    parser = OneLineParser("python -m benchmarks.serving", __doc__)
    before, arrivals, beginnings, drafts, cache, slots = parser.add_studies(
        before="tokens a second in several ways, beside the code in another checkout",
        arrivals="time between tokens while long prompts keep coming",
        beginnings="what a second prompt with the same beginning costs",
        drafts="what drafts give batches of texts that repeat themselves",
        cache="tokens a second with int8 keys and values, beside float32's",
        slots="tokens a second, and between tokens, of as many callers as slots",
    )
    before.add_argument("folder", type=Path, metavar="DIR", help="a checkout of the code before")
    for study, how in ((before, beside_before), (arrivals, time_arrivals), (beginnings, time_beginnings)):
        study.set_defaults(study=how)
    drafts.set_defaults(study=time_drafts)
    cache.set_defaults(study=time_caches)
    slots.set_defaults(study=time_slots)
    for study in (before, arrivals, beginnings, drafts, cache, slots):
        study.add_checkpoint()
        study.add_precisions()
        study.add_threads()
        study.add_rounds(5)
        study.add_json()
    arrivals.add_argument("--seconds", type=count, default=15, help="how long prompts arrive (default: 15)")
    options = parser.parse_args()
    checkpoint, cached = options.checkpoint or seeded_checkpoint("small"), options.study is time_caches
    options.bundle = exported(checkpoint, options.precisions, cache=cached)
    options.study(options)


def beside_before(options: argparse.Namespace) -> None:
    """Both in processes of their own, in turns, and each way's ratios of the pairs."""
    table = empty_table("", "before, tokens/s", "now, tokens/s", "times", left=1)
    found: dict[str, Any] = {}
    for precision in options.precisions:
        workers = {name: caller(path, options, precision) for name, path in (("before", options.folder), ("now", ROOT))}
        for way in WAYS:
            turns = {name: partial(speed, worker, way) for name, worker in workers.items()}
            speeds, failed = take_turns(turns, options.rounds, f"{precision}, {way}")
            if failed:
                sys.exit("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
            found[f"{precision}, {way}"] = speeds
            gains = ratios(speeds["now"], speeds["before"])
            table.add_row(f"{precision}, {way}", spread(speeds["before"]), spread(speeds["now"]), spread(gains))
        for worker in workers.values():
            worker.close()
    print_results(
        f"{options.bundle.name}, {options.threads} threads", {"results": found}, [table], as_json=options.json
    )


def caller(checkout: Path, options: argparse.Namespace, precision: str) -> Worker:
    command = [sys.executable, ROOT / "benchmarks" / "callers.py", options.bundle, precision, options.threads]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    return Worker(command, environment, ROOT / "build" / "benchmarks" / "logs" / "callers.log")


def speed(worker: Worker, way: str) -> float:
    answer = worker.ask(way)
    return float(answer["tokens"] / answer["seconds"])


def time_arrivals(options: argparse.Namespace) -> None:
    """Eight streams decode while a long prompt arrives every second."""
    table = empty_table("", "median, ms", "99th percentile, ms", "longest, ms", "times the median", "a prompt, s")
    found: dict[str, Any] = {}
    for precision in options.precisions:
        model = runtime.load(options.bundle, precision=precision, threads=options.threads)
        gaps, prompts = measure_arrivals(model, options.seconds)
        middle, late = statistics.median(gaps), statistics.quantiles(gaps, n=100)[98]
        figures = [f"{1e3 * value:,.0f}" for value in (middle, late, max(gaps))]
        table.add_row(precision, *figures, f"{late / middle:.2f}", spread(prompts))
        found[precision] = {"gaps": gaps, "prompts": prompts}
    title = f"{options.bundle.name}: between the tokens of {ROWS} streams, {LONG} tokens arriving every {EVERY:g} s"
    print_results(title, {"results": found}, [table], as_json=options.json)


def measure_arrivals(model: runtime.Model, seconds: int) -> tuple[list[float], list[float]]:
    """(seconds between two pieces of a stream, seconds from a prompt's arrival to its first token)."""
    gaps, prompts, stop = list[float](), list[float](), threading.Event()

    def stream(row: int) -> None:
        while not stop.is_set():
            before = None
            for _ in model.stream(text(random.Random(row), 10), max_new_tokens=800, ignore_eos=True, draft=False):
                now = time.perf_counter()
                if before is not None and begun.is_set():
                    gaps.append(now - before)
                before = now
                if stop.is_set():
                    break

    def arrive(number: int) -> None:
        prompt = model.decode(model.encode(text(random.Random(number), LONG))[:LONG])
        prompts.append(timed(partial(model.complete, prompt, max_new_tokens=1))[0])

    begun = threading.Event()
    threads = [threading.Thread(target=stream, args=(row,)) for row in range(ROWS)]
    with counted() as progress:
        for thread in threads:
            thread.start()
        time.sleep(EVERY)
        begun.set()
        for number in progress.track(range(round(seconds / EVERY)), description="prompts arrive"):
            threads.append(threading.Thread(target=arrive, args=(1000 + number,)))
            threads[-1].start()
            time.sleep(EVERY)
        stop.set()
        for thread in threads:
            thread.join()
    return gaps, prompts


def time_beginnings(options: argparse.Namespace) -> None:
    """A prompt of some 800 tokens, then one that goes on from it otherwise."""
    table = empty_table("", "tokens", "the first, ms", "the second, ms", "share")
    found: dict[str, Any] = {}
    for precision in options.precisions:
        model = runtime.load(options.bundle, precision=precision, threads=options.threads)
        pairs = []
        for turn in range(options.rounds + 1):
            prompt = model.decode(model.encode(text(random.Random(turn), 800))[:800])
            prompts = (f"{prompt} and then the rain", f"{prompt}. She said that he")
            pairs.append([1e3 * timed(partial(model.complete, each, max_new_tokens=1))[0] for each in prompts])
        first, second = zip(*pairs[1:], strict=True)
        table.add_row(precision, "800", spread(first), spread(second), spread(ratios(second, first)))
        found[precision] = {"first": first, "second": second}
    print_results(f"{options.bundle.name}: the same beginning", {"results": found}, [table], as_json=options.json)


def time_drafts(options: argparse.Namespace) -> None:
    """Greedy texts of eight rows, plainly and with drafts; only fp32 drafts by default."""
    table = empty_table("", "plain, tokens/s", "drafted, tokens/s", "times")
    found: dict[str, Any] = {}
    for precision in options.precisions:
        model = runtime.load(options.bundle, precision=precision, threads=options.threads)
        sides = {
            name: partial(batch_speed, model, draft=draft) for name, draft in (("plain", False), ("drafted", True))
        }
        speeds, _ = take_turns(sides, options.rounds, precision)
        gains = ratios(speeds["drafted"], speeds["plain"])
        table.add_row(precision, spread(speeds["plain"]), spread(speeds["drafted"]), spread(gains))
        found[precision] = speeds
    print_results(f"{options.bundle.name}: batches of {ROWS}", {"results": found}, [table], as_json=options.json)


def batch_speed(model: runtime.Model, *, draft: bool) -> float:
    prompts = [prompt + end for end in ("", " and") for prompt in PROMPTS][:ROWS]
    options: dict[str, Any] = {"max_new_tokens": 128, "ignore_eos": True, "draft": draft}
    seconds, completions = timed(lambda: model.complete(prompts, batch_size=ROWS, **options))
    return sum(len(completion.token_ids) for completion in completions) / seconds


def time_caches(options: argparse.Namespace) -> None:
    """Steps of one id a row, and a whole prompt, by both caches in turns."""
    table = empty_table("", "float32", "int8", "times as fast")
    found: dict[str, Any] = {}
    for precision in options.precisions:
        sides = {
            cache: runtime.load(options.bundle, precision=precision, threads=options.threads, cache=cache)
            for cache in CACHES
        }
        for name, rows, past in FILLED:
            turns = {cache: partial(step_speed, filled(model, rows, past), past) for cache, model in sides.items()}
            found[f"{precision}, {name}, tokens/s"], _ = take_turns(turns, options.rounds, f"{precision}, {name}")
        turns = {cache: partial(prompt_speed, model) for cache, model in sides.items()}
        found[f"{precision}, a prompt of {LONG}, tokens/s"], _ = take_turns(turns, options.rounds, precision)
    for name, speeds in found.items():
        gains = ratios(speeds["int8"], speeds["float32"])
        table.add_row(name, spread(speeds["float32"]), spread(speeds["int8"]), spread(gains))
    print_results(f"{options.bundle.name}: caches", {"results": found}, [table], as_json=options.json)


def time_slots(options: argparse.Namespace) -> None:
    """Callers that stream, each with the next prompt when it has its answer, in turns of each number of slots."""
    table = empty_table("", "tokens/s", "between tokens, ms", "p99", "first token, ms")
    found: dict[str, list[dict[str, float]]] = {}
    source = random.Random(0)
    for precision in options.precisions:
        for _ in range(options.rounds):
            for slots in SLOTS:
                model = runtime.load(options.bundle, precision=precision, threads=options.threads, slots=slots)
                asked = [asdict(request(source, 0.0, model.encode)) for _ in range(max(32, 2 * slots))]
                told = figures([Outcome(**each) for each in run(model, asked, slots)])
                found.setdefault(f"{precision}, {slots} slots", []).append(told)
    for name, turns in found.items():
        names = ("tokens/s", "between tokens p50", "between tokens p99", "first token p50")
        table.add_row(name, *(spread([each[figure] for each in turns]) for figure in names))
    print_results(f"{options.bundle.name}: slots", {"results": found}, [table], as_json=options.json)


def filled(model: runtime.Model, rows: int, past: int) -> Slots:
    """Slots that hold a text each: read once, and copied, as what it says makes no difference."""
    slots = model.decode_graph.slots(rows)
    slots.run([Work(0, ids_of(model, past), 0)])
    for row in range(1, rows):
        slots.copy(0, row, past)
    return slots


def ids_of(model: runtime.Model, count: int) -> list[int]:
    return model.encode(text(random.Random(0), count))[:count]


def step_speed(slots: Slots, past: int) -> float:
    """Tokens a second of some steps of every row."""

    def steps() -> None:
        for step in range(STEPS):
            slots.run([Work(row, [11], past + step) for row in range(slots.count)])

    return STEPS * slots.count / timed(steps)[0]


def prompt_speed(model: runtime.Model) -> float:
    slots, ids = model.decode_graph.slots(1), ids_of(model, LONG)
    return LONG / timed(lambda: slots.run([Work(0, ids, 0)]))[0]


if __name__ == "__main__":
    main()
