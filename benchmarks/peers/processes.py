"""A side's process: started, asked a line at a time or once from cold, and what is said of it when it fails."""

import json
import os
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.kept import ROOT
from benchmarks.common.turns import SideError

PATIENCE = 900  # seconds for an answer; slower is a failure, so that nothing waits for ever
NOT_OURS = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")  # compiled modules are kept, as pip installs them


class Worker:
    """A process that answers a line of JSON with a line of JSON; started when it is first asked."""

    def __init__(self, command: Sequence[object], environment: dict[str, str], log: Path) -> None:
        self.command, self.environment, self.log = command, environment, log
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, task: Any) -> Any:
        self.process = self.process or start(self.command, self.environment, self.log)
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(task).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise SideError(last_line(self.log)) from None
        answer = json.loads(line_of(self.process, self.log))
        if "error" in answer:
            raise SideError(answer["error"])
        return answer

    def close(self) -> None:
        if self.process:
            try:
                self.process.communicate(timeout=10)  # its input ends, and with it its work
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.communicate()


def start(command: Sequence[object], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        pipe = subprocess.PIPE
        texts = [str(part) for part in command]
        return subprocess.Popen(texts, stdin=pipe, stdout=pipe, stderr=errors, env=environment, cwd=ROOT)


def cold_start(command: Sequence[object], environment: dict[str, str], log: Path) -> tuple[float, float]:
    """Seconds to a process's first line, and the MiB of its peak; those count from this process's own, a small one."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=ROOT
        )
    assert process.stdout
    try:
        line_of(process, log)
        seconds = time.perf_counter() - started
    finally:
        process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SideError(f"{last_line(log)} (exit code {process.returncode})")
    return seconds, usage.ru_maxrss / 1024


def line_of(process: subprocess.Popen[bytes], log: Path) -> bytes:
    """Its next line of output."""
    assert process.stdout
    if not select.select([process.stdout], [], [], PATIENCE)[0]:
        process.kill()
        raise SideError(f"no answer in {PATIENCE} seconds")
    line = process.stdout.readline()
    if not line:
        process.wait()
        raise SideError(f"{last_line(log)} (exit code {process.returncode})")
    return line


def last_line(log: Path, starting: str = "") -> str:
    """The last one there, of those that start so if there are any: of a Python traceback, what went wrong."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    chosen = [line for line in lines if line.startswith(starting)] or lines
    return chosen[-1][:300] if chosen else "it said nothing"


def side_environment(**more: str) -> dict[str, str]:
    """This process's variables, but that nothing is looked up on the Hub: all that is needed is in folders."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
    return {**kept, "HF_HUB_OFFLINE": "1", **more}
