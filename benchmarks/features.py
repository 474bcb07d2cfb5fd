"""What each way of generating costs a token, against plain greedy; and what going on in a session costs.

    python -m benchmarks.features               # a seeded GPT-2 small, whose flat logits are the worst case for top-p

All in one process, taking turns.
"""

import argparse
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

import runtime
from benchmarks.common.kept import exported, seeded_checkpoint
from benchmarks.common.study import OneLineParser, ratios, spread, timed
from benchmarks.common.turns import empty_table, print_results

PROMPT = "It is a truth universally acknowledged, that a single man in possession of a good fortune"
HISTORY, NEW = 900, 20  # tokens
SAMPLED: dict[str, Any] = {"seed": 1, "ignore_eos": True}
WAYS: dict[str, dict[str, Any]] = {
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
    tables = [
        make_table("milliseconds a token", ways, "greedy"),
        make_table("milliseconds to the next token", costs, f"{NEW} tokens from scratch"),
    ]
    print_results(title, {"ways": ways, "costs": costs}, tables, as_json=options.json)


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser("benchmarks.features", __doc__)
    parser.add_checkpoint()
    parser.add_tokens(64)
    parser.add_rounds(7)
    parser.add_threads()
    parser.add_json()
    return parser.parse_args()


def measure_ways(model: runtime.Model, options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds a token of each way's turns; the first turn warms up."""
    found: dict[str, list[float]] = {way: [] for way in (*WAYS, "greedy, streamed")}
    for turn in track(range(options.rounds + 1), description="ways", console=Console(stderr=True)):
        for way, settings in WAYS.items():
            elapsed, completion = timed(partial(model.complete, PROMPT, max_new_tokens=options.tokens, **settings))
            found[way] += [1e3 * elapsed / len(completion.token_ids)] if turn else []
        stream = model.stream(PROMPT, max_new_tokens=options.tokens, draft=False)
        elapsed, _ = timed(partial(list, stream))
        assert stream.completion, "the stream has been read to its end"
        found["greedy, streamed"] += [1e3 * elapsed / len(stream.completion.token_ids)] if turn else []
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
                partial(model.complete, new),
                partial(session.complete, new),
                partial(model.complete, history + new),
            )
            answers = [timed(partial(way, max_new_tokens=1)) for way in ways]
        assert answers[1][1] == answers[2][1], "a session says something else than the whole text"
        for name, (elapsed, _) in zip(names, answers, strict=True):
            found[name] += [1e3 * elapsed] if turn else []
    return found


def text_of(model: runtime.Model, tokens: int) -> str:
    """A text of so many tokens."""
    text = " the house by the sea" * tokens
    return model.decode(model.encode(text)[:tokens])


def make_table(heading: str, found: dict[str, list[float]], base: str) -> Table:
    table = empty_table(heading, "median (min to max)", f"times {base}")
    for name, values in found.items():
        table.add_row(name, spread(values), "" if name == base else spread(ratios(values, found[base])))
    return table


if __name__ == "__main__":
    main()
