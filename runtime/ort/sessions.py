"""Makes the sessions of a bundle's graphs, with their options, and checks that a graph fits the manifest."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import BundleError
from runtime.ort.install import load_onnxruntime
from runtime.ort.memory import memory_errors
from runtime.ort.placement import Placement
from runtime.ort.threads import available_cpus

EXACT_BYTES = "session.x64quantprecision"
logger = logging.getLogger("runtime")


def make_session(
    path: Path, *, placement: Placement, threads: int | None, capture: bool = False, mapped: bool = False
) -> Any:
    """A session for the graph at `path`; by path, because external data is found relative to it.

    Args:
        capture: Whether its runs may be captured as CUDA graphs. If ONNX Runtime refuses, they are not.
        mapped: Whether the CPU reads weights from their mapped file, which takes no memory but the system's cache,
            instead of repacking them for fast single steps.
    """
    if placement.device == "cpu" or not (capture and placement.cuda_graph):
        return start(path, placement.without_cuda_graph(), threads, mapped=mapped)
    try:
        return start(path, placement, threads)
    except BundleError as error:
        logger.info("without CUDA graphs: %s", error)
        return start(path, placement.without_cuda_graph(), threads)


def start(path: Path, placement: Placement, threads: int | None, *, mapped: bool = False) -> Any:
    onnxruntime = load_onnxruntime()
    options = make_options(onnxruntime, threads)
    settings: dict[str, Any] = {"providers": [(placement.provider, placement.provider_options())]}
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
        settings["disabled_optimizers"] = {"ConstantFolding"}  # which stores `wte` a second time, transposed
    try:
        with memory_errors(placement):
            session = onnxruntime.InferenceSession(str(path), options, **settings)
    except MemoryError:
        raise
    except Exception as error:  # its own exception classes share no public base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {reason}") from None
    if session.get_providers()[0] != placement.provider:  # ONNX Runtime falls back to the CPU silently
        raise RuntimeError(f"{path} should run on {placement}, but runs on {session.get_providers()[0]}")
    return session


def make_options(onnxruntime: Any, threads: int | None) -> Any:
    """Options of every session.

    Without VNNI, AVX2 and AVX-512 add two products of an unsigned and a signed byte in 16 bits, where they saturate.
    With EXACT_BYTES, ONNX Runtime makes the signed bytes unsigned there, and changes nothing elsewhere.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.log_severity_level = 3  # errors only; a warning per node would hide them
    options.add_session_config_entry(EXACT_BYTES, "1")
    return options


def check_sizes(session: Any, path: Path, kind: str, sizes: Mapping[str, int]) -> None:
    """Raise BundleError unless inputs and outputs with these names exist and have these last dimensions."""
    found = {value.name: value.shape[-1] for value in (*session.get_inputs(), *session.get_outputs()) if value.shape}
    if any(found.get(name) != size for name, size in sizes.items()):
        raise BundleError(f"{path} is not a {kind} graph of its manifest's architecture; export the bundle again")


def captures(session: Any) -> bool:
    """Whether a session captures CUDA graphs."""
    options = session.get_provider_options().get("CUDAExecutionProvider", {})
    return bool(options.get("enable_cuda_graph") == "1")
