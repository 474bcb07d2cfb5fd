"""Figures as they are told: ratios of pairs, a median with its spread, and the machine they come from."""

import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Of the pairs, turn by turn."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> str:
    """The median and, between brackets, the least and the most, to three digits or the unit."""
    middle = statistics.median(values)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def machine(*packages: str) -> str:
    """The processor and the versions."""
    return ", ".join([processor(), *map(describe, packages)])


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.processor()}, {len(names)} CPUs"


def describe(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
