"""How many CPUs this process may use, which in a container is fewer than the machine has."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = CGROUP) -> int:
    """CPUs by scheduling affinity, bounded by the cgroup's quota (v2 or v1); at least 1."""
    return max(1, min(affinity_cpus(), math.ceil(quota_cpus(cgroup))))


def affinity_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota_cpus(cgroup: Path) -> float:
    """The quota as a number of CPUs; the CPU count where there is none."""
    unlimited = float(os.cpu_count() or 1)
    try:
        quota, period = read_quota(cgroup)
        return int(quota) / int(period) if int(quota) > 0 else unlimited
    except (OSError, ValueError):  # no cgroup here, or "max"
        return unlimited


def read_quota(cgroup: Path) -> tuple[str, str]:
    """(quota, period) in microseconds, from `cpu.max` (v2) or the two files of v1."""
    if (cgroup / "cpu.max").exists():
        quota, period = (cgroup / "cpu.max").read_text().split()
        return quota, period
    v1 = cgroup / "cpu"
    return (v1 / "cpu.cfs_quota_us").read_text(), (v1 / "cpu.cfs_period_us").read_text()
