"""The parts: what each is told and answers, and how each runs in a process of its own, within a budget.

    python -m benchmarks.gpu.parts NAME PLAN RESULT     # one part, in this process

What a part prints is there whatever becomes of it.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common.kept import ROOT

Piece = tuple[str, Any, str]  # a key and what belongs there in the results, and a table of it

# What a part takes on a GPU, about: it is not begun with less left.
PART_SECONDS = {"checkpoint": 5, "parity-fp16": 20, "parity-fp32": 20, "split": 20, "prefill": 40}
SPEED_SECONDS = 45  # of each batch
GRACE = 5  # seconds for a part to end by itself; it looks at the clock between turns


@dataclass
class Plan:
    """The choices of the command line, and the `folder` of what is prepared."""

    device: str
    checkpoint: str
    layers: int | None
    prompt: int
    tokens: int
    long: int
    batches: list[int]
    rounds: int
    threads: int
    compiled: bool
    folder: str
    deadline: float = 0.0  # when a part has to have ended, as time.time() has it

    @property
    def is_full(self) -> bool:
        """Whether bars apply, which are of GPT-2 small on a GPU."""
        return self.device == "cuda" and self.checkpoint == "seeded-small" and self.layers is None


def part_names(plan: Plan) -> list[str]:
    """What the bars need first."""
    speeds = [f"speed-{rows}" for rows in plan.batches]
    return ["parity-fp16", "parity-fp32", *speeds[:1], "split", "prefill", *speeds[1:]]


def expected_seconds(name: str, plan: Plan) -> float:
    return PART_SECONDS.get(name, SPEED_SECONDS) if plan.device == "cuda" else 1


def one_line(error: Exception) -> str:
    """What happened and where, without the pages that compilers add."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})"


class Budget:
    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()


def run_part(name: str, plan: Plan, budget: Budget) -> dict[str, Any]:
    """What the part found, and under "failed" why that is not all."""
    needed, left = expected_seconds(name, plan), budget.left()
    if left < needed:
        return told(name, f"skipped: {max(0, left):.0f} s of the budget are left, and it takes about {needed:.0f}", {})
    print(f"[{name}: {left:.0f} s of the budget are left]", file=sys.stderr, flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        problem = run_process(name, replace(plan, deadline=time.time() + left - GRACE), result, left)
        found = json.loads(result.read_text()) if result.exists() else {}
    found["seconds"] = time.monotonic() - started
    return told(name, found.get("failed") or problem, found)


def run_process(name: str, plan: Plan, result: Path, seconds: float) -> str | None:
    """Why it did not end well, if so."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "benchmarks.gpu.parts", name, json.dumps(asdict(plan)), str(result)]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s, as the budget is spent"
    finally:
        end(process)
    return None if code == 0 else f"died by signal {-code}" if code < 0 else f"ended with code {code}"


def end(process: subprocess.Popen[bytes]) -> None:
    """It and what it started: compilers run in processes of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def told(name: str, problem: str | None, found: dict[str, Any]) -> dict[str, Any]:
    if problem is None:
        return found
    print(f"{name}: {problem}\n", flush=True)
    return {**found, "failed": problem}


def main() -> None:
    name, plan, result = sys.argv[1], Plan(**json.loads(sys.argv[2])), Path(sys.argv[3])
    found: dict[str, Any] = {}
    try:
        for key, value, text in pieces(name, plan):
            print(text, end="\n\n", flush=True)
            found[key] = value
            result.write_text(json.dumps(found))
    except Exception as error:
        found |= {"failed": one_line(error), "traceback": traceback.format_exc()}
        result.write_text(json.dumps(found))
        sys.exit(1)


def pieces(name: str, plan: Plan) -> Iterator[Piece]:
    """What the part finds, as soon as it does; a part imports no more than it needs."""
    module, _, detail = name.partition("-")
    part = importlib.import_module(f"benchmarks.gpu.{module}")
    found: Iterator[Piece] = part.pieces(plan, detail) if detail else part.pieces(plan)
    return found


if __name__ == "__main__":
    main()
