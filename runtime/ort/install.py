"""Checks that exactly one ONNX Runtime is installed, and imports it without telemetry."""

import importlib
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

WHEELS = ("onnxruntime", "onnxruntime-gpu")
COMMANDS = {"-m", "gpt2-onnx", "gpt2-onnx.exe"}
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads it once, at its import


def ensure_onnxruntime() -> None:
    """Raise ImportError, naming the fix, unless exactly one ONNX Runtime can be imported."""
    if all(is_installed(wheel) for wheel in WHEELS):
        raise ImportError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            'keep one: pip uninstall -y onnxruntime onnxruntime-gpu && pip install "gpt2-onnx[cpu]" (or [gpu])'
        )
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:  # no origin: a folder that an uninstalled wheel left behind
        raise ImportError('no ONNX Runtime is installed; install one: pip install "gpt2-onnx[cpu]" (or [gpu] for CUDA)')


@cache
def load_onnxruntime() -> ModuleType:
    """The onnxruntime module; its installation is checked once, as every new sequence asks for it."""
    ensure_onnxruntime()
    return importlib.import_module("onnxruntime")


def is_installed(wheel: str) -> bool:
    """Whether a wheel's dist-info is on the path; importlib.metadata tells the same, but takes 30 ms to import."""
    pattern = f"{wheel.replace('-', '_')}-*.dist-info"
    return any(any(Path(entry).glob(pattern)) for entry in sys.path if entry)


def started_as_command() -> bool:
    """Whether this process is `python -m …` (still locating its module) or the installed `gpt2-onnx`."""
    return bool(sys.argv) and Path(sys.argv[0]).name in COMMANDS
