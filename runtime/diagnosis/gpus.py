"""NVIDIA's cards and driver, as nvidia-smi knows them; it comes with the driver."""

import os
import subprocess
from dataclasses import dataclass

FIELDS = ("name", "memory.total", "memory.free", "driver_version", "compute_cap")
QUERY = ("nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card; memory in MiB, compute capability as NVIDIA writes it (9.0 for an H200)."""

    name: str
    memory_total: int
    memory_free: int
    driver: str
    compute_capability: float


def find_gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """The cards, and why there is none."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        return (), "nvidia-smi is not there"
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi does not run: {error}"
    if done.returncode:
        said = (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"
        return (), f"nvidia-smi: {said.splitlines()[0]}"
    return parse_gpus(done.stdout)


def visible(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """The cards as CUDA counts them in this process; none where CUDA_VISIBLE_DEVICES names them otherwise."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return gpus
    numbers = [int(part) for part in asked.split(",") if part.strip().isdigit()]
    return tuple(gpus[number] for number in numbers if number < len(gpus))


def parse_gpus(output: str) -> tuple[tuple[Gpu, ...], str | None]:
    rows = [[part.strip() for part in line.split(",")] for line in output.splitlines() if line.strip()]
    try:
        cards = tuple(Gpu(name, int(total), int(free), driver, float(cap)) for name, total, free, driver, cap in rows)
    except ValueError:
        return (), f"nvidia-smi said what nobody expects: {output.strip().splitlines()[0]!r}"
    return cards, None if cards else "nvidia-smi knows no card"
