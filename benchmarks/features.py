"""What each way of generating costs a token, against plain greedy; and what going on in a session costs.

    python benchmarks/features.py               # a seeded GPT-2 small, whose flat logits are the worst case for top-p

All in one process, taking turns.
"""

import argparse
import json
import os
import time
from pathlib import Path

from figures import machine, ratios, spread
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from seeded import exported, seeded_checkpoint

import runtime

PROMPT = "It is a truth universally acknowledged, that a single man in possession of a good fortune"
HISTORY, NEW = 900, 20  # tokens
SAMPLED = {"seed": 1, "ignore_eos": True}
WAYS = {
    "greedy": {"draft": False},
    "greedy, drafted": {},
    "greedy, stop strings": {"draft": False, "stop": ["\n\n\n", "never said"]},
    "greedy, 5 log-probabilities": {"logprobs": 5},
    "greedy, repetition penalty": {"repetition_penalty": 1.2},
    "temperature": {"temperature": 0.8, **SAMPLED},
    "temperature, top-k 50": {"temperature": 0.8, "top_k": 50, **SAMPLED},
    "temperature, top-p 0.9": {"temperature": 0.8, "top_p": 0.9, **SAMPLED},
    "temperature, min-p 0.05": {"temperature": 0.8, "min_p": 0.05, **SAMPLED},
}


def main() -> None:
    options = parse_arguments()
    checkpoint = options.checkpoint or seeded_checkpoint("small")
    model = runtime.load(exported(checkpoint), threads=options.threads)
    ways = measure_ways(model, options)
    costs = measure_session(model, options)
    title = f"{checkpoint.name}, float32, batch 1, {options.tokens} tokens a turn, {options.threads} threads"
    if options.json:
        print(json.dumps({"title": title, "machine": machine("onnxruntime"), "ways": ways, "costs": costs}, indent=2))
        return
    console = Console(width=110)
    console.print(f"{title}\n{machine('onnxruntime')}\n")
    console.print(make_table("milliseconds a token", ways, "greedy"))
    console.print(make_table("milliseconds to the next token", costs, f"{NEW} tokens from scratch"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint folder; by default a seeded GPT-2 small")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a text (default: 64)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each way (default: 7)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all there are")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def measure_ways(model: runtime.Model, options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds a token of each way's turns; the first turn warms up."""
    found: dict[str, list[float]] = {way: [] for way in (*WAYS, "greedy, streamed")}
    for turn in track(range(options.rounds + 1), description="ways", console=Console(stderr=True)):
        for way, settings in WAYS.items():
            elapsed, completion = timed(lambda s=settings: model.complete(PROMPT, max_new_tokens=options.tokens, **s))
            found[way] += [elapsed / len(completion.token_ids)] if turn else []
        stream = model.stream(PROMPT, max_new_tokens=options.tokens, draft=False)
        elapsed, _ = timed(lambda s=stream: list(s))
        found["greedy, streamed"] += [elapsed / len(stream.completion.token_ids)] if turn else []
    return found


def measure_session(model: runtime.Model, options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds from a text to its next token, with and without a history that was read before."""
    history, new = text_of(model, HISTORY), " and" * NEW
    names = (
        f"{NEW} tokens from scratch",
        f"{NEW} tokens more in a session of {HISTORY}",
        f"{HISTORY + NEW} from scratch",
    )
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in track(range(options.rounds + 1), description="session", console=Console(stderr=True)):
        with model.session() as session:
            session.complete(history, max_new_tokens=1)
            session.rewind(len(session.token_ids) - HISTORY)
            ways = (
                lambda: model.complete(new, max_new_tokens=1),
                lambda s=session: s.complete(new, max_new_tokens=1),
                lambda: model.complete(history + new, max_new_tokens=1),
            )
            answers = [timed(way) for way in ways]
        assert answers[1][1] == answers[2][1], "a session says something else than the whole text"
        for name, (elapsed, _) in zip(names, answers, strict=True):
            found[name] += [elapsed] if turn else []
    return found


def text_of(model: runtime.Model, tokens: int) -> str:
    """A text of so many tokens."""
    text = " the house by the sea" * tokens
    return model.decode(model.encode(text)[:tokens])


def timed(work) -> tuple[float, runtime.Completion]:
    """(milliseconds, what `work` gives)."""
    started = time.perf_counter()
    answer = work()
    return (time.perf_counter() - started) * 1000, answer


def make_table(heading: str, found: dict[str, list[float]], base: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(heading)
    table.add_column("median (min to max)", justify="right")
    table.add_column(f"times {base}", justify="right")
    for name, values in found.items():
        table.add_row(name, spread(values), "" if name == base else spread(ratios(values, found[base])))
    return table


if __name__ == "__main__":
    main()
