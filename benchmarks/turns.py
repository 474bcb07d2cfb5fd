"""Sides that take turns: each in a process of its own, so that neither's threads are in the other's way."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

PAUSE = 0.5  # seconds between turns, for the other side's threads to stop spinning


def make_parser(description: str, *, tokens: int, rounds: int) -> argparse.ArgumentParser:
    """The options of every benchmark, with these defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint folder; by default a seeded GPT-2 small")
    parser.add_argument("--tokens", type=int, default=tokens, help=f"tokens of a text (default: {tokens})")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each side (default: {rounds})")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all there are")
    parser.add_argument("--json", action="store_true")
    return parser


def take_turns(commands: Mapping[str, Sequence[Any]], rounds: int, description: str) -> dict[str, list[tuple]]:
    """(seconds, answer) of each side's turns, A B C A B C …; the first round warms up and is not counted.

    A side's process reads a line, does its work once, and answers with a line of JSON: [seconds, anything].
    """
    workers = {
        side: subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for side, command in commands.items()
    }
    turns: dict[str, list[tuple]] = {side: [] for side in workers}
    for _ in track(range(rounds + 1), description=description, console=Console(stderr=True)):
        for side, worker in workers.items():
            time.sleep(PAUSE)
            worker.stdin.write("go\n")
            worker.stdin.flush()
            turns[side].append(tuple(json.loads(worker.stdout.readline())))
    for worker in workers.values():
        worker.communicate()
    return {side: answers[1:] for side, answers in turns.items()}


def serve(work) -> None:
    """A side's process: `work` once a line on standard input, answering with its seconds and what it returns."""
    for _ in sys.stdin:
        started = time.perf_counter()
        answer = work()
        print(json.dumps([time.perf_counter() - started, answer]), flush=True)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Of the pairs, turn by turn."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> str:
    digits = 0 if min(values) > 100 else 2
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def machine(*packages: str) -> str:
    """The processor and the versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.processor()}, {len(names)} CPUs, {', '.join(map(describe, packages))}"


def describe(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
