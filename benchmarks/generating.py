"""What each way of generating costs, what a session saves, and what drafting gives.

    python -m benchmarks.generating ways        # a seeded GPT-2 small, whose flat logits are the worst case for top-p
    python -m benchmarks.generating drafts      # a seeded GPT-2 small, and the shipped checkpoint
    python -m benchmarks.generating drafts --json

All in one process, taking turns. Drafting gives several tokens out of one run, the same tokens: each text is made once
plainly and once drafted. There are greedy continuations, which repeat themselves, drafted from the text alone and with
int4's help; and a novel that the model is made to read a token at a time, which does not repeat itself.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

import runtime
from benchmarks.common.kept import NOVELIST, ROOT, exported, seeded_checkpoint
from benchmarks.common.study import OneLineParser, ratios, spread, timed
from benchmarks.common.turns import empty_table, print_results
from export.parity.greedy import PROMPTS
from runtime.engine.drafts import DraftModel, PromptLookup
from runtime.engine.scheduler import Scheduler
from runtime.engine.texts import GeneratedText
from runtime.text.generation import Generation
from runtime.text.options import Settings
from runtime.text.tokenizer import Tokenizer

PROMPT = "It is a truth universally acknowledged, that a single man in possession of a good fortune"
HISTORY, NEW = 900, 20  # tokens; fewer of the first where the context is shorter
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
NOVEL = ROOT.parent / "shared" / "corpus" / "The-War-of-the-Worlds_36.txt"


def main() -> None:
    parser = OneLineParser("python -m benchmarks.generating", __doc__)
    ways, drafts = parser.add_studies(
        ways="what each way costs a token, against plain greedy, and what a session saves",
        drafts="what drafting gives and what it costs",
    )
    ways.add_checkpoint()
    ways.add_tokens(64)
    ways.add_rounds(7)
    ways.set_defaults(study=study_ways)
    drafts.add_argument("--checkpoint", type=Path, metavar="DIR", action="append", help="may be repeated")
    drafts.add_tokens(128)
    drafts.set_defaults(study=study_drafts)
    for study in (ways, drafts):
        study.add_threads()
        study.add_json()
    options = parser.parse_args()
    options.study(options)


def study_ways(options: argparse.Namespace) -> None:
    checkpoint = options.checkpoint or seeded_checkpoint("small")
    model = runtime.load(exported(checkpoint), threads=options.threads)
    ways = measure_ways(model, options)
    costs = measure_session(model, options)
    title = f"{checkpoint.name}, float32, batch 1, {options.tokens} tokens a turn, {options.threads} threads"
    tables = [
        ways_table("milliseconds a token", ways, "greedy"),
        ways_table("milliseconds to the next token", costs, f"{NEW} tokens from scratch"),
    ]
    print_results(title, {"ways": ways, "costs": costs}, tables, as_json=options.json)


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
    length = min(HISTORY, model.prompting.context - NEW - 1)
    history, new = text_of(model, length), " and" * NEW
    names = (
        f"{NEW} tokens from scratch",
        f"{NEW} tokens more in a session of {length}",
        f"{length + NEW} from scratch",
    )
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in track(range(options.rounds + 1), description="session", console=Console(stderr=True)):
        with model.session() as session:
            session.complete(history, max_new_tokens=1)
            session.rewind(len(session.token_ids) - length)
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


def ways_table(heading: str, found: dict[str, list[float]], base: str) -> Table:
    table = empty_table(heading, "median (min to max)", f"times {base}")
    for name, values in found.items():
        table.add_row(name, spread(values), "" if name == base else spread(ratios(values, found[base])))
    return table


def study_drafts(options: argparse.Namespace) -> None:
    results = {}
    for checkpoint in options.checkpoint or (seeded_checkpoint("small"), NOVELIST):
        bundle = exported(checkpoint, ["fp32", "int4"])
        for name, draft in (("the text itself", None), ("the text itself, then int4", "int4")):
            model = runtime.load(bundle, draft=draft, threads=options.threads)
            results[f"{checkpoint.name}, greedy, drafted by {name}"] = measure_drafts(
                model, greedy_turns(model, options)
            )
        if NOVEL.exists():
            results[f"{checkpoint.name}, a novel read"] = measure_drafts(model, novel_turns(model, options))
    title = f"float32, {options.tokens} tokens a text, {options.threads} threads"
    print_results(title, {"results": results}, [drafts_table(results)], as_json=options.json)


class Tally:
    """How many ids each kind of drafter has drafted, and how many of them were right."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}
        for kind in (PromptLookup, DraftModel):
            kind.judge = self.counting(kind.__name__, kind.judge)  # type: ignore[method-assign, assignment]

    def counting(self, name: str, judge: Callable[[Any, int, int], None]) -> Callable[[Any, int, int], None]:
        def count(drafter: Any, drafted: int, accepted: int) -> None:
            counts = self.counts.setdefault(name, [0, 0])
            counts[0] += drafted
            counts[1] += accepted
            judge(drafter, drafted, accepted)

        return count


TALLY = Tally()


def measure_drafts(model: runtime.Model, turns: Iterator[tuple[float, float, bool]]) -> dict[str, Any]:
    """Tokens per second of both ways, whether they said the same, and how many drafted ids were right."""
    TALLY.counts.clear()
    pairs = list(track(turns, description=f"{model.bundle.folder.name}", console=Console(stderr=True)))[1:]
    plain, drafted, same = zip(*pairs, strict=True)
    return {"plain": plain, "drafted": drafted, "same": all(same), "right": dict(TALLY.counts)}


def greedy_turns(model: runtime.Model, options: argparse.Namespace) -> Iterator[tuple[float, float, bool]]:
    settings: dict[str, Any] = {"max_new_tokens": options.tokens, "ignore_eos": True}
    for prompt in (PROMPTS[0], *PROMPTS):
        slow, plain = timed(partial(model.complete, prompt, draft=False, **settings))
        fast, drafted = timed(partial(model.complete, prompt, **settings))
        yield options.tokens / slow, options.tokens / fast, plain == drafted


def novel_turns(model: runtime.Model, options: argparse.Namespace) -> Iterator[tuple[float, float, bool]]:
    """Passages given a token at a time, whatever the model would have said."""
    ids = model.encode(NOVEL.read_text(encoding="utf-8")[20_000:80_000])
    for start in range(0, 7 * 2 * options.tokens, 2 * options.tokens):
        passage = ids[start : start + 2 * options.tokens]
        slow, fast = (read_through(model, passage, options.tokens, drafted=drafted) for drafted in (False, True))
        yield options.tokens / slow, options.tokens / fast, True


class Dictation(Generation):
    """A generation that is told what to say, whatever the model would."""

    def __init__(self, ids: list[int], count: int, tokenizer: Tokenizer) -> None:
        settings = Settings(max_new_tokens=count)
        super().__init__(ids[:-count], settings, tokenizer=tokenizer, eos_ids=(), room=count)
        self.told = iter(ids[-count:])

    def take(self, _most_likely: int, logits: NDArray[np.float32]) -> int:
        return super().take(next(self.told), logits)


def read_through(model: runtime.Model, ids: list[int], count: int, *, drafted: bool) -> float:
    """Seconds for the last `count` of `ids`."""
    dictation = Dictation(ids, count, model.prompting.tokenizer)
    text = GeneratedText(dictation, [PromptLookup()] if drafted else [])
    scheduler = Scheduler(model.decode_graph.slots(1))
    scheduler.add(text)
    scheduler.step()

    def run() -> None:
        while not text.finished:
            scheduler.step()

    return timed(run)[0]


def drafts_table(results: dict[str, dict[str, Any]]) -> Table:
    heading = "tokens per second, median (min to max)"
    table = empty_table(heading, "plain", "drafted", "times", "right", "same tokens")
    for name, found in results.items():
        table.add_row(
            name,
            spread(found["plain"]),
            spread(found["drafted"]),
            spread(ratios(found["drafted"], found["plain"])),
            ", ".join(f"{right / drafted:.0%} of {drafted:,}" for drafted, right in found["right"].values()),
            "yes" if found["same"] else "NO",
        )
    return table


if __name__ == "__main__":
    main()
