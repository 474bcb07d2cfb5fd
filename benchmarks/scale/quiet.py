"""How quiet the machine was while something was measured: CPUs that other processes took."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def watched(processes: Iterable[int]) -> Iterator[list[float]]:
    """A list that holds, at the end, the CPUs that all but this process and those given took on average."""
    own, found = [os.getpid(), *processes], list[float]()
    began, before = monotonic(), busy() - sum(map(taken, own))
    yield found
    found.append(max(0.0, busy() - sum(map(taken, own)) - before) / (monotonic() - began))


def busy() -> float:
    """CPU seconds of the whole machine since it started, without those that were idle or waited for a disk."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + sum(rest)) / TICKS


def taken(process: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
