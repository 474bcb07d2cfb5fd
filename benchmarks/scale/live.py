"""Live servers, each of one thread on a CPU of its own: what they take, and what becomes of texts that arrive there."""

import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.common.kept import ROOT, WORK
from benchmarks.peers.contestants import side_environment
from benchmarks.scale.choosers import chooser_of
from benchmarks.scale.replica import Speed, Text
from benchmarks.serve.load import Outcome, Request, Server
from benchmarks.serve.sides import free_port, wait_until_ready

LONG = 96  # tokens of the texts by which steps are timed
PROMPTS = (16, 96, 256)  # tokens of those by which reading is timed
TURNS = 5
OPTIONS = {"temperature": 1, "ignore_eos": True}


@dataclass(slots=True)
class Live:
    """A server, as a front knows it.

    Attributes:
        cold: Seconds from the start of its process to its first token.
    """

    server: Server
    process: "subprocess.Popen[bytes]"
    slots: int
    cold: float
    under_way: int = 0
    up: bool = True

    def memory(self, name: str) -> float:
        """MiB; VmRSS is what it has now, VmHWM the most that it had."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


@contextmanager
def live(bundle: Path, precision: str, slots: int, cpu: int) -> Iterator[Live]:
    """A server that is ready; its process has one CPU."""
    port, log = free_port(), WORK / "logs" / f"scale-{cpu}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    flags = ["--precision", precision, "--threads", 1, "--slots", slots, "--device", "cpu", "--port", port]
    command = [sys.executable, "-m", "runtime", "serve", "--model", bundle.resolve(), *flags]
    with log.open("w") as file:
        began = time.monotonic()
        process = subprocess.Popen(
            [str(part) for part in command], stdout=file, stderr=file, env=side_environment(), cwd=ROOT
        )
        try:
            os.sched_setaffinity(process.pid, {cpu})
            wait_until_ready(process, f"http://127.0.0.1:{port}/readyz", log)
            server = Server("127.0.0.1", port, OPTIONS)
            asyncio.run(server.ask(Request(0.0, [1, 2, 3], 0, 1), perf_counter()))
            yield Live(server, process, slots, time.monotonic() - began)
        finally:
            process.terminate()
            process.wait(60)


def measured_speed(servers: Sequence[Live], vocabulary: int, prompt: int) -> Speed:
    """What servers take while all of them are busy alike, HTTP and the client with it: medians of turns.

    Args:
        prompt: Tokens before those that are timed, as a step takes longer after many.
    """
    source = random.Random(0)
    numbers = counts(servers[0].slots)
    steps: dict[int, list[float]] = {texts: [] for texts in numbers}
    reading: dict[int, list[float]] = {length: [] for length in PROMPTS}
    for turn in range(TURNS + 1):  # the first warms up
        for texts in numbers:
            seconds = step_seconds(servers, texts, source, ids(random.Random(0), prompt, vocabulary))
            steps[texts] += seconds if turn else []
        for length in PROMPTS:
            reading_seconds(servers, length, source, vocabulary)  # the slots of the texts before are given back
            seconds = reading_seconds(servers, length, source, vocabulary)
            reading[length] += seconds if turn else []
    of_steps = {texts: statistics.median(seconds) for texts, seconds in steps.items()}
    token, fixed = np.polyfit(PROMPTS, [statistics.median(reading[length]) for length in PROMPTS], 1)
    return Speed(of_steps, token=float(token), request=max(0.0, float(fixed) - of_steps[1]))


def counts(slots: int) -> list[int]:
    """1, 2, 4 … and the slots."""
    return sorted({min(2**power, slots) for power in range(slots.bit_length() + 1)})


def step_seconds(servers: Sequence[Live], texts: int, source: random.Random, prompt: list[int]) -> list[float]:
    """Of a step in which so many texts of each server decode: between a text's tokens, for each text.

    They have one prompt, which is read once and copied, so that no step reads while they are timed.
    """
    asked = [Request(0.0, prompt, source.randrange(2**31), LONG) for _ in range(texts)]
    outcomes = at_once([(live, each) for live in servers for each in asked])
    return [(outcome.pieces[-1] - outcome.pieces[0]) / (LONG - 1) for outcome in outcomes]


def reading_seconds(servers: Sequence[Live], length: int, source: random.Random, vocabulary: int) -> list[float]:
    """To the first token of a prompt that is alone in its server, for each server."""
    asked = [(live, Request(0.0, ids(source, length, vocabulary), 0, 1)) for live in servers]
    return [outcome.pieces[0] for outcome in at_once(asked)]


def at_once(asked: Sequence[tuple[Live, Request]]) -> list[Outcome]:
    async def run() -> list[Outcome]:
        began = perf_counter()
        return await asyncio.gather(*(live.server.ask(each, began) for live, each in asked))

    return asyncio.run(run())


def arrive(servers: Sequence[Live], chooser: str, texts: Sequence[Text], vocabulary: int) -> list[Outcome]:
    """Send each text when it arrives, to the server that the chooser names."""
    choose = chooser_of(chooser, servers).choose
    requests = [request(number, text, vocabulary) for number, text in enumerate(texts)]

    async def run() -> list[Outcome]:
        began = perf_counter()

        async def one(asked: Request, kind: int) -> Outcome:
            await asyncio.sleep(asked.at - (perf_counter() - began))
            server = choose(kind)
            assert server is not None
            server.under_way += 1
            try:
                return await server.server.ask(asked, began)
            finally:
                server.under_way -= 1

        pairs = zip(requests, texts, strict=True)
        return await asyncio.gather(*(one(asked, text.kind) for asked, text in pairs))

    return asyncio.run(run())


def request(number: int, text: Text, vocabulary: int) -> Request:
    """Its beginning's ids are those of its kind."""
    begins = ids(random.Random(f"kind {text.kind}"), text.shared, vocabulary)
    own = random.Random(f"text {number} {text.arrived}")
    return Request(text.arrived, [*begins, *ids(own, text.own, vocabulary)], number, text.new)


def ids(source: random.Random, count: int, vocabulary: int) -> list[int]:
    return [source.randrange(300, vocabulary) for _ in range(count)]
