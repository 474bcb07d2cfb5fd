"""Parts in processes of their own, within a budget: what one prints is there whatever becomes of it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpu_parts.plan import Plan, expected_seconds

BENCHMARKS = Path(__file__).resolve().parent.parent
GRACE = 5  # seconds for a part to end by itself; it looks at the clock between turns


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
    path = [str(BENCHMARKS.parent), str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "gpu_parts.part", name, json.dumps(asdict(plan)), str(result)]
    process = subprocess.Popen(command, env=environment, cwd=BENCHMARKS, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s, as the budget is spent"
    finally:
        end(process)
    return None if code == 0 else f"died by signal {-code}" if code < 0 else f"ended with code {code}"


def end(process: subprocess.Popen) -> None:
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
