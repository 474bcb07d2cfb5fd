"""The measurement: what every side is asked to do, in turns, and what figures come of the seconds.

Tasks are in token ids, so that no tokenizer counts. Decoding's speed is (tokens - 1) / (seconds of a call for all the
tokens - seconds of a call for one): a call's prompt and first token cost the same in both and go out, whether or not a
library tells when its first token came.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks.common.kept import ROOT
from benchmarks.common.turns import SideError, step, take_turns
from benchmarks.peers.contestants import TRUTH, Ready, Worker, cold_start

TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful property "
    "of some one or other of their daughters. My dear Mr. Bennet, said his lady to him one day, have you heard that "
    "Netherfield Park is let at last?"
)
FILLER = " and"
PREFILL = 512  # tokens, or what the context leaves
BATCH_TOKENS = 64
SHORTEST, LONGEST = 16, 128  # prompts of a batch
START = "start"  # what a cold start is called among the failures
Task = dict[str, Any]
Answer = dict[str, Any]
Results = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured of a side's answers in a turn.

    Attributes:
        name: Of it in the results.
        heading: Of its column.
        best: `max` or `min`.
        figure: What comes of the answers to a turn's tasks, one by one.
    """

    name: str
    heading: str
    best: Callable[..., Any]
    figure: Callable[[list[Answer]], float]


def decode_speed(answers: list[Answer]) -> float:
    first, whole = answers
    return float((len(whole["token_ids"][0]) - 1) / (whole["seconds"] - first["seconds"]))


def batch_speed(answers: list[Answer]) -> float:
    return float(sum(map(len, answers[-1]["token_ids"])) / answers[-1]["seconds"])


METRICS = (
    Metric("decode", "decode, tokens/s", max, decode_speed),
    Metric("prefill", "prefill, ms", min, lambda answers: answers[-1]["seconds"] * 1000),
    Metric("batch", "batch, tokens/s", max, batch_speed),
)


def make_tasks(bundle: Path, context: int, prompt: int, tokens: int, rows: int) -> dict[str, list[Task]]:
    """{metric: a turn's tasks}."""
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    alone = [ids_of(tokenizer, prompt)]
    together = [ids_of(tokenizer, length, skipped=3 * n) for n, length in enumerate(batch_lengths(context, rows))]
    return {
        "decode": [task(alone, 1), task(alone, tokens)],
        "prefill": [task([ids_of(tokenizer, min(PREFILL, context - 1))], 1)],
        "batch": [task(together, BATCH_TOKENS)],
    }


def task(prompts: list[list[int]], new_tokens: int) -> Task:
    return {"prompts": prompts, "new_tokens": new_tokens}


def batch_lengths(context: int, rows: int) -> list[int]:
    longest = min(LONGEST, context - BATCH_TOKENS)
    shortest = min(SHORTEST, longest)
    return [shortest + n * (longest - shortest) // (rows - 1) for n in range(rows)]


def ids_of(tokenizer: Any, length: int, skipped: int = 0) -> list[int]:
    """Ids of a text of so many tokens, from its so manieth word on; whole words, so that the text has no other ids."""
    words, text = TEXT.split(), ""
    for word in cycle(words[skipped:] + words[:skipped]):
        longer = f"{text} {word}".strip()
        if len(tokenizer.encode(longer).ids) > length:
            break
        text = longer
    text += FILLER * (length - len(tokenizer.encode(text).ids))
    return list(tokenizer.encode(text).ids[:length])


def measure(ready: Sequence[Ready], tasks: dict[str, list[Task]], threads: int, rounds: int) -> Results:
    """{side: its values of each metric, the seconds of each call, how its tokens compare, and what failed}."""
    results: Results = {
        one.side.name: {"facts": one.facts, "values": {}, "seconds": {}, "same_tokens": {}, "failed": {}}
        for one in ready
    }
    for metric in METRICS:
        measure_metric(metric, ready, tasks[metric.name], threads, rounds, results)
    starts, failed = take_turns({one.side.name: partial(start, one, threads) for one in ready}, rounds, START)
    for name, found in starts.items():
        results[name]["values"] |= {"start": [one[0] for one in found], "memory": [one[1] for one in found]}
    note(failed, START, results)
    return results


def measure_metric(
    metric: Metric, ready: Sequence[Ready], tasks: list[Task], threads: int, rounds: int, results: Results
) -> None:
    """The values of one metric, each side in a process of its own."""
    workers = {one.side.name: serving(one, threads) for one in ready}
    turns = {name: partial(turn, worker, tasks) for name, worker in workers.items()}
    try:
        answers, failed = take_turns(turns, rounds, metric.name)
    finally:
        for worker in workers.values():
            worker.close()
    for name, found in answers.items():
        results[name]["values"][metric.name] = [metric.figure(turn) for turn in found]
        results[name]["seconds"][metric.name] = [[answer["seconds"] for answer in turn] for turn in found]
    note(failed, metric.name, results)
    compare({name: found[-1][-1]["token_ids"] for name, found in answers.items()}, metric.name, results)


def serving(one: Ready, threads: int) -> Worker:
    return Worker(one.command("serve", threads), one.environment, one.log("serve"))


def turn(worker: Worker, tasks: list[Task]) -> list[Answer]:
    return [completed(worker, task) for task in tasks]


def completed(worker: Worker, task: Task) -> Answer:
    """The answer, if it has as many tokens as were asked for: fewer would be an unfair gain."""
    answer: Answer = worker.ask(task)
    wanted = [task["new_tokens"]] * len(task["prompts"])
    if [len(row) for row in answer["token_ids"]] != wanted:
        raise SideError(f"it gave {[len(row) for row in answer['token_ids']]} tokens, not {wanted}")
    return answer


def start(one: Ready, threads: int) -> tuple[float, float]:
    """(seconds, MiB), with the side's own tokenizer; the round that warms up fills the page cache."""
    return cold_start(one.command("first", threads, TEXT), one.environment, one.log("first"))


def note(failed: dict[str, str], name: str, results: Results) -> None:
    for side, reason in failed.items():
        results[side]["failed"][name] = reason


def compare(token_ids: dict[str, list[list[int]]], name: str, results: Results) -> None:
    """Rows of greedy tokens with those of transformers in float32: [equal, of so many] for each row."""
    if TRUTH not in token_ids:
        return
    for side, rows in token_ids.items():
        pairs = zip(rows, token_ids[TRUTH], strict=True)
        results[side]["same_tokens"][name] = [[alike(row, right), len(right)] for row, right in pairs]


def alike(found: Sequence[Any], right: Sequence[Any]) -> int:
    """How many are equal before the first that is not."""
    for count, (one, other) in enumerate(zip(found, right, strict=True)):
        if one != other:
            return count
    return len(right)


def measure_bandwidth(threads: int) -> dict[str, float]:
    """In a process of its own, as its memory is none of this one's."""
    with step("memory bandwidth"):
        command = [sys.executable, "-m", "benchmarks.threads", "--bandwidth", str(threads)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)
        return {str(pages): float(speed) for pages, speed in found.items()}
