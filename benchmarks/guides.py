"""What a guided text costs: the mask of each token, and what is saved where ids are forced.

    python -m benchmarks.guides            # a seeded GPT-2 small, with GPT-2's vocabulary
    python -m benchmarks.guides --bundle models/gpt2

A mask's cost is all that a guide adds to a token: following the id before, finding the ids that fit, and choosing the
likeliest of them. Texts are of ids at random among those that fit, so that a grammar is seen from all sides; each text
begins with what no text before it has found out. Forced ids are told from the same text with `draft=False`.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from benchmarks.common.kept import exported, seeded_checkpoint
from benchmarks.common.study import OneLineParser, ratios, spread, timed
from benchmarks.common.turns import empty_table, print_results
from runtime.text.guide import Guides
from runtime.text.options import Settings, check_settings
from runtime.text.sampling import Sampler

PROMPT = "It is a truth universally acknowledged, that a single man in possession of a good fortune"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "profession": {"enum": ["engineer", "physician", "librarian"]},
        "is married": {"type": "boolean"},
    },
    "required": ["name", "age", "profession", "is married"],
    "additionalProperties": False,
}
SUM = 'start: term (("+" | "-") term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[1-9][0-9]{0,5}/\n'
GUIDED: dict[str, dict[str, Any]] = {
    "regex, an address": {"regex": r"[a-z.]{1,20}@[a-z]{1,20}\.(com|org|net)"},
    "regex, sentences": {"regex": r"([A-Z][a-z]+( [a-z]+){2,12}\. ?)+"},
    "regex, any text": {"regex": r"(?s:.+)"},
    "schema, a person": {"json_schema": PERSON},
    "schema, any JSON": {"json_schema": {}},
    "grammar, sums": {"grammar": SUM},
}
MASK_FIGURES = ("median (min to max)", "mean", "99th percentile", "tokens")
ANSWERS: dict[str, dict[str, Any]] = {
    "a person": {"json_schema": PERSON},
    "a date": {"regex": "On the [1-9](st|nd|rd|th) of (January|June) 18[0-9]{2}, in the town of (York|Bath)\\."},
}


def main() -> None:
    parser = OneLineParser("python -m benchmarks.guides", __doc__)
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="by default a seeded GPT-2 small's")
    parser.add_tokens(100)
    parser.add_rounds(7)
    parser.add_threads()
    parser.add_json()
    options = parser.parse_args()
    model = runtime.load(options.bundle or exported(seeded_checkpoint("small")), threads=options.threads)
    masks = {name: measure_masks(model, guided, options) for name, guided in GUIDED.items()}
    texts = {name: measure_texts(model, guided, options) for name, guided in ANSWERS.items()}
    size = model.bundle.manifest.architecture.vocab_size
    tables = [masks_table(masks), texts_table(texts)]
    title = f"{model.bundle.folder.name}, {size:,} ids, float32, {options.threads} threads"
    print_results(title, {"masks": masks, "texts": texts}, tables, as_json=options.json)


def measure_masks(model: runtime.Model, guided: dict[str, Any], options: argparse.Namespace) -> list[float]:
    """Milliseconds of a processor that a guide adds to each token of some texts."""
    grammar = check_settings(guided).guided_by
    assert grammar is not None
    size = model.bundle.manifest.architecture.vocab_size
    chance, found = np.random.default_rng(0), []
    logits = chance.standard_normal(size, np.float32)
    sampler = Sampler(Settings(), [])
    for _ in range(options.rounds):
        guide = Guides(model.prompting.tokenizer, size).begin(grammar, [])
        for _ in range(options.tokens):
            token = int(chance.choice(guide.allowed))
            started = time.thread_time()
            guide.take(token)
            if not guide.over:
                sampler.choose(logits, guide.allowed)
            found.append(1e3 * (time.thread_time() - started))
            if guide.over:
                break
    return found


def measure_texts(model: runtime.Model, guided: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a text with forced ids taken at once, and one by one; the first turn warms up."""
    found: dict[str, Any] = {"at once": [], "one by one": [], "tokens": 0, "same": True}
    for turn in range(options.rounds + 1):
        complete = partial(model.complete, PROMPT, seed=turn, **guided)
        fast, completion = timed(complete)
        slow, other = timed(partial(complete, draft=False))
        if turn:
            found["at once"].append(1e3 * fast)
            found["one by one"].append(1e3 * slow)
            found["tokens"] += len(completion.token_ids)
        found["same"] &= completion == other
    return found


def masks_table(masks: dict[str, list[float]]) -> Any:
    table = empty_table("milliseconds of a processor that a guide adds to a token", *MASK_FIGURES)
    for name, values in masks.items():
        high = statistics.quantiles(values, n=100, method="inclusive")[98]
        middle = f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        table.add_row(name, middle, f"{statistics.mean(values):.3f}", f"{high:.3f}", f"{len(values):,}")
    return table


def texts_table(texts: dict[str, dict[str, Any]]) -> Any:
    table = empty_table("milliseconds a sampled text", "forced ids at once", "one by one", "times", "tokens", "same")
    for name, found in texts.items():
        saved = spread(ratios(found["one by one"], found["at once"]))
        same = "yes" if found["same"] else "NO"
        both = spread(found["at once"]), spread(found["one by one"])
        table.add_row(name, *both, saved, f"{found['tokens'] / len(found['at once']):.0f}", same)
    return table


if __name__ == "__main__":
    main()
