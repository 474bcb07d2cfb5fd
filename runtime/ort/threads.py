"""How many CPUs this process may use, by affinity and cgroup quota; in a container, fewer than the machine has."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def available_cpus(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> int:
    """CPUs by scheduling affinity, bounded by the quotas of this process's cgroups (v2 or v1); at least 1."""
    quotas = [quota_cpus(folder) for folder in own_cgroups(cgroup, membership)]
    return max(1, math.ceil(min(affinity_cpus(), *quotas)))


def own_cgroups(cgroup: Path, membership: Path) -> list[Path]:
    """The root, and in v2 every group from there down to this process's own."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    folders = [cgroup]
    for part in next((line[3:].split("/") for line in lines if line.startswith("0::")), []):
        folders.append(folders[-1] / part)
    return folders


def affinity_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota_cpus(cgroup: Path) -> float:
    """One group's quota as a number of CPUs; infinite if there is none."""
    try:
        quota, period = read_quota(cgroup)
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # no cgroup here, or "max"
        return math.inf


def read_quota(cgroup: Path) -> tuple[str, str]:
    """(quota, period) in microseconds, from `cpu.max` (v2) or the two files of v1."""
    if (cgroup / "cpu.max").exists():
        quota, period = (cgroup / "cpu.max").read_text().split()
        return quota, period
    v1 = cgroup / "cpu"
    return (v1 / "cpu.cfs_quota_us").read_text(), (v1 / "cpu.cfs_period_us").read_text()
