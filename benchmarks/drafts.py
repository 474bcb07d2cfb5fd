"""What drafting gives and what it costs: several tokens out of one run, the same tokens.

    python -m benchmarks.drafts                 # a seeded GPT-2 small, and the shipped checkpoint
    python -m benchmarks.drafts --json

Each text once plainly and once drafted, in turns: greedy continuations, which repeat themselves, drafted from the text
alone and with int4's help; and a novel that the model is made to read a token at a time, which does not repeat itself.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

import runtime
from benchmarks.common.kept import NOVELIST, ROOT, exported, seeded_checkpoint
from benchmarks.common.study import OneLineParser, ratios, spread, timed
from benchmarks.common.turns import empty_table, print_results
from export.parity.greedy import PROMPTS
from runtime.engine.drafts import DraftModel, PromptLookup
from runtime.engine.steps import DraftedStep

NOVEL = ROOT.parent / "shared" / "corpus" / "The-War-of-the-Worlds_36.txt"


def main() -> None:
    options = parse_arguments()
    results = {}
    for checkpoint in options.checkpoint or (seeded_checkpoint("small"), NOVELIST):
        bundle = exported(checkpoint, ["fp32", "int4"])
        for name, draft in (("the text itself", None), ("the text itself, then int4", "int4")):
            model = runtime.load(bundle, draft=draft, threads=options.threads)
            results[f"{checkpoint.name}, greedy, drafted by {name}"] = measure(model, greedy_turns(model, options))
        if NOVEL.exists():
            results[f"{checkpoint.name}, a novel read"] = measure(model, novel_turns(model, options))
    title = f"float32, {options.tokens} tokens a text, {options.threads} threads"
    print_results(title, {"results": results}, [make_table(results)], as_json=options.json)


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser("benchmarks.drafts", __doc__)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", action="append", help="may be repeated")
    parser.add_tokens(128)
    parser.add_threads()
    parser.add_json()
    return parser.parse_args()


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


def measure(model: runtime.Model, turns: Iterator[tuple[float, float, bool]]) -> dict[str, Any]:
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


def read_through(model: runtime.Model, ids: list[int], count: int, *, drafted: bool) -> float:
    """Seconds for the last `count` of `ids`."""
    with model.decode_graph.sequence() as state:
        plain = partial(state.step, logits=False)
        step = DraftedStep(state, [PromptLookup()], (), len(ids), logits=False) if drafted else plain
        step(ids[:-count])
        return timed(lambda: [step([token]) for token in ids[-count:]])[0]


def make_table(results: dict[str, dict[str, Any]]) -> Table:
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
