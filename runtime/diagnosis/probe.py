"""Probes whether an execution provider really computes, by running a model of one node.

ONNX Runtime's list of available providers only says what it was built for; a session says what it got.
"""

from contextlib import redirect_stdout
from io import StringIO
from types import ModuleType
from typing import Any

from runtime.ort.corners import inexact_products
from runtime.ort.one_node import one_node_model

CUDA = "CUDAExecutionProvider"
UNUSED = {
    "AzureExecutionProvider",  # computes nothing here
    "TensorrtExecutionProvider",  # needs its own libraries, and nothing here uses it
}


def probe_providers(onnxruntime: ModuleType) -> dict[str, str | None]:
    """By provider, why it does not work, or None if it does."""
    names = [name for name in onnxruntime.get_available_providers() if name not in UNUSED]
    return {name: probe(onnxruntime, name) for name in names}


def probe_products() -> tuple[str, ...]:
    """Wrong products of int8 and int4 at extreme values; empty if none can run, which other facts report."""
    try:
        return tuple(inexact_products())
    except Exception:  # ONNX Runtime's exceptions share no public base; two wheels over each other raise ImportError
        return ()


def preload(onnxruntime: ModuleType) -> None:
    """Load CUDA's libraries from NVIDIA's wheels, where the loader does not look."""
    if hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(StringIO()):  # it prints what it does not find, which the findings report too
            onnxruntime.preload_dlls(directory="")


def probe(onnxruntime: ModuleType, provider: str, **settings: Any) -> str | None:
    """Why a provider with these settings does not compute; None if it does."""
    if provider == CUDA:
        preload(onnxruntime)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # only the result matters
    try:
        session = onnxruntime.InferenceSession(one_node_model("Neg"), options, providers=[(provider, settings)])
        got = session.get_providers()
        if got[:1] != [provider]:
            return f"a session for it runs on {', '.join(got) or 'nothing'} instead"
        (output,) = session.run(None, {"x": [2.0]})
        return None if output.tolist() == [-2.0] else f"-(2) is {output.tolist()} there"
    except Exception as error:  # ONNX Runtime's own share no public base
        return " ".join(str(error).split()) or type(error).__name__
