"""ONNX Runtime sessions, all made in one place."""

from pathlib import Path
from typing import Any

from runtime.errors import BundleError
from runtime.onnx_runtime import load_onnxruntime
from runtime.threads import available_cpus

PROVIDERS = {"cpu": ["CPUExecutionProvider"]}


def make_session(path: Path, *, device: str, threads: int | None) -> Any:
    """A session for the graph at `path`, by path because external data is found relative to it."""
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.log_severity_level = 3  # errors; a warning a node would hide them
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=PROVIDERS[device])
    except Exception as error:  # its own exception classes share no public base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {reason}") from None
