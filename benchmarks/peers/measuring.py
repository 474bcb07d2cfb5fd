"""The measurement itself: who can take part, their turns at every metric, their starts, and the machine's bandwidth."""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.common.kept import ROOT
from benchmarks.common.turns import SideError, step, take_turns
from benchmarks.peers.contestants import TRUTH
from benchmarks.peers.preparing import Ready
from benchmarks.peers.processes import Worker, cold_start
from benchmarks.peers.tasks import METRICS, TEXT, Answer, Metric, Task, alike

START = "start"  # what a cold start is called among the failures
Results = dict[str, dict[str, Any]]


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


def measure_bandwidth(threads: int) -> dict[str, float]:
    """In a process of its own, as its memory is none of this one's."""
    with step("memory bandwidth"):
        command = [sys.executable, "-m", "benchmarks.bandwidth", "--threads", str(threads)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)
        return {str(pages): float(speed) for pages, speed in found.items()}
