"""Cold starts: from the start of a fresh process to the first token on a pipe, and its peak memory."""

import os
import subprocess
import time
from collections.abc import Sequence

from preparing import Ready
from processes import SideError, last_line, line_of
from turns import take_turns


def measure_starts(
    ready: Sequence[Ready], text: str, threads: int, rounds: int
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, str]]:
    """(seconds, MiB) of each side's starts, and why sides fell out; the first round fills the page cache."""
    return take_turns({one.side.name: lambda o=one: cold_start(o, text, threads) for one in ready}, rounds, "start")


def cold_start(one: Ready, text: str, threads: int) -> tuple[float, float]:
    """With the side's own tokenizer. Peak memory counts from this process's own, which therefore stays small."""
    command, log = [str(part) for part in one.command("first", threads, text)], one.log("first")
    with log.open("w") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=one.environment)
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
