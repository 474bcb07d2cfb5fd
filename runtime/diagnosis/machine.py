"""Looks up installed packages, the CUDA provider's libraries, and NVIDIA cards on this machine."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("gpt2-onnx", "numpy", "tokenizers")
# each contains a module `onnxruntime`
ONNX_RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-training",
)


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of the packages that are installed, by their metadata: modules may be broken or overwritten."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


CUDNN = "libcudnn.so.9"


def wanted_libraries(cuda: int) -> tuple[str, ...]:
    """The libraries that ONNX Runtime's CUDA provider is linked with, for the wheel's major version of CUDA."""
    numbered = [f"lib{name}.so.{cuda}" for name in ("cublasLt", "cublas", "cudart")]
    return (*numbered, "libcurand.so.10", "libcufft.so.12" if cuda >= 13 else "libcufft.so.11", CUDNN)


def find_libraries(names: Iterable[str]) -> dict[str, str | None]:
    """Where each library is: in NVIDIA's wheels, in LD_LIBRARY_PATH, or in the loader's cache; None if nowhere."""
    folders, cache = [*wheel_folders(), *path_folders()], loader_cache()
    return {name: find_library(name, folders) or cache.get(name) for name in names}


def find_library(name: str, folders: Iterable[Path]) -> str | None:
    return next((str(folder / name) for folder in folders if (folder / name).exists()), None)


def wheel_folders() -> Iterator[Path]:
    """The folders of NVIDIA's wheels for libraries: nvidia/cudnn/lib, nvidia/cu13/lib and the like."""
    for entry in sys.path:
        if entry:
            yield from sorted(Path(entry).glob("nvidia/*/lib"))


def path_folders() -> list[Path]:
    return [Path(part) for part in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part]


def loader_cache() -> dict[str, str]:
    """The libraries that ldconfig knows; empty if there is no ldconfig."""
    for command in ("ldconfig", "/sbin/ldconfig"):
        try:
            done = subprocess.run([command, "-p"], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        return dict(re.findall(r"^\s*(\S+) \(.*\) => (\S+)$", done.stdout, flags=re.MULTILINE))
    return {}


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
    """The NVIDIA cards that nvidia-smi lists (it comes with the driver), and why there is none."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        return (), "nvidia-smi is not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi does not run: {error}"
    if done.returncode:
        said = (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"
        return (), f"nvidia-smi: {said.splitlines()[0]}"
    return parse_gpus(done.stdout)


def visible(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """The cards as CUDA numbers them in this process; none if CUDA_VISIBLE_DEVICES uses names, not numbers."""
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
        return (), f"nvidia-smi gave unexpected output: {output.strip().splitlines()[0]!r}"
    return cards, None if cards else "nvidia-smi lists no card"
