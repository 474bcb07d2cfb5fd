"""Makes the sessions of a bundle's graphs, with their options, and checks that a graph fits the manifest."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.errors import BundleError
from runtime.ort.install import load_onnxruntime
from runtime.ort.memory import memory_errors
from runtime.ort.placement import Placement
from runtime.ort.threads import available_cpus

EXACT_BYTES = "session.x64quantprecision"
LONGEST_REASON = 500  # characters
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
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {reason[:LONGEST_REASON]}"
        ) from None
    if session.get_providers()[0] != placement.provider:  # ONNX Runtime falls back to the CPU silently
        raise RuntimeError(f"{path} should run on {placement}, but runs on {session.get_providers()[0]}")
    return Session(session, path, placement)


class Session:
    """A session of ONNX Runtime, whose errors during a run become one line that names the graph.

    Raises, of its runs:
        BundleError: The graph cannot be run as the runtime runs it.
        MemoryError: There is no memory left for it.
        RuntimeError: A card could not run it.
    """

    def __init__(self, session: Any, path: Path, placement: Placement) -> None:
        self._session, self._path, self._placement = session, path, placement

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, names: Sequence[str] | None, inputs: Mapping[str, Any]) -> list[Any]:
        with self._errors():
            found: list[Any] = self._session.run(names, inputs)
        return found

    def run_with_iobinding(self, binding: Any, *options: Any) -> None:
        with self._errors():
            self._session.run_with_iobinding(binding, *options)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with memory_errors(self._placement):
                yield
        except MemoryError:
            raise
        except Exception as error:  # its own exception classes share no public base
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            kind = BundleError if self._placement.device == "cpu" else RuntimeError
            raise kind(f"{self._path} cannot be run on {self._placement}: {reason[:LONGEST_REASON]}") from None


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
