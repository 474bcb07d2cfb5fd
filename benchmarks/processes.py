"""A side's process: started, asked a line at a time, and what is said of it when it fails."""

import json
import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATIENCE = 900  # seconds for an answer; slower is a failure, so that nothing waits for ever
NOT_OURS = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")  # compiled modules are kept, as pip installs them


class SideError(RuntimeError):
    """A side that cannot go on, with the reason in one line."""


class Worker:
    """A process that answers a line of JSON with a line of JSON; started when it is first asked."""

    def __init__(self, command: Sequence[object], environment: dict[str, str], log: Path) -> None:
        self.command, self.environment, self.log = command, environment, log
        self.process: subprocess.Popen | None = None

    def ask(self, task: Any) -> Any:
        self.process = self.process or start(self.command, self.environment, self.log)
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
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()


def start(command: Sequence[object], environment: dict[str, str], log: Path) -> subprocess.Popen:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        pipe = subprocess.PIPE
        return subprocess.Popen([str(p) for p in command], stdin=pipe, stdout=pipe, stderr=errors, env=environment)


def line_of(process: subprocess.Popen, log: Path) -> bytes:
    """Its next line of output."""
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
