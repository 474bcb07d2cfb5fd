"""The shared libraries that ONNX Runtime's CUDA provider is linked with, and where the loader would find them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

CUDNN = "libcudnn.so.9"


def wanted_libraries(cuda: int) -> tuple[str, ...]:
    """By the major version of CUDA that the wheel was built for."""
    numbered = [f"lib{name}.so.{cuda}" for name in ("cublasLt", "cublas", "cudart")]
    return (*numbered, "libcurand.so.10", "libcufft.so.12" if cuda >= 13 else "libcufft.so.11", CUDNN)


def find_libraries(names: Iterable[str]) -> dict[str, str | None]:
    """Where each lies: in NVIDIA's wheels, under LD_LIBRARY_PATH, or in the loader's cache; None where nowhere."""
    folders, cache = [*wheel_folders(), *path_folders()], loader_cache()
    return {name: find_library(name, folders) or cache.get(name) for name in names}


def find_library(name: str, folders: Iterable[Path]) -> str | None:
    return next((str(folder / name) for folder in folders if (folder / name).exists()), None)


def wheel_folders() -> Iterator[Path]:
    """Where NVIDIA's wheels put libraries: nvidia/cudnn/lib, nvidia/cu13/lib and the like."""
    for entry in sys.path:
        if entry:
            yield from sorted(Path(entry).glob("nvidia/*/lib"))


def path_folders() -> list[Path]:
    return [Path(part) for part in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part]


def loader_cache() -> dict[str, str]:
    """What ldconfig has noted; empty where there is no ldconfig."""
    for command in ("ldconfig", "/sbin/ldconfig"):
        try:
            done = subprocess.run([command, "-p"], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        return dict(re.findall(r"^\s*(\S+) \(.*\) => (\S+)$", done.stdout, flags=re.MULTILINE))
    return {}
