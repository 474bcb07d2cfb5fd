"""The memory that this process may take: what the system has left, or its container's limit."""

from contextlib import suppress
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUPS = (  # (limit, usage) of version 2 and of version 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def available_memory() -> int | None:
    """Bytes; None where the system does not say."""
    sizes = [system_memory(), *(left_in_cgroup(limit, usage) for limit, usage in CGROUPS)]
    known = [size for size in sizes if size is not None]
    return max(0, min(known)) if known else None


def system_memory() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def left_in_cgroup(limit: Path, usage: Path) -> int | None:
    with suppress(OSError, ValueError):  # no such control group, or "max"
        return int(limit.read_text()) - int(usage.read_text())
    return None
