"""The ONNX Runtime sessions that generate, and the memory they lend to what is under way."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle
from runtime.decode_batch import DecodeBatch
from runtime.decode_state import DecodeState
from runtime.errors import BundleError
from runtime.forward import Forward
from runtime.key_value_cache import KeyValueCache
from runtime.manifest import Architecture
from runtime.session import make_session

MOST_IDLE = 4  # caches kept between calls, each up to 75 MB for GPT-2 small; more are made when needed, and dropped


class DecodeSession:
    """Shared by all threads; every sequence or batch under way has keys and values of its own.

    Args:
        path: The decode graph.
        prefill_path: A graph of the same inputs and outputs that is faster over many tokens; loaded when there are.
    """

    def __init__(
        self,
        path: Path,
        architecture: Architecture,
        *,
        device: str,
        threads: int | None,
        prefill_path: Path | None = None,
    ) -> None:
        self._make = partial(make_checked, architecture=architecture, device=device, threads=threads)
        self._session = self._make(path)
        self._prefill_path = prefill_path
        self._prefill: Any = None
        self._loading = threading.Lock()
        self._architecture = architecture
        self._idle: list[DecodeState] = []
        self._lock = threading.RLock()  # a stream that nobody holds may be collected while this thread has it

    @contextmanager
    def sequence(self) -> Iterator[DecodeState]:
        """Lend an empty cache for one sequence, kept for the next caller afterwards."""
        with self._lock:
            state = self._idle.pop() if self._idle else None
        state = state or DecodeState(self._forward(rows=1))
        state.rewind(0)
        try:
            yield state
        finally:
            with self._lock:
                if len(self._idle) < MOST_IDLE:
                    self._idle.append(state)

    def batch(self, rows: int) -> DecodeBatch:
        """Empty caches for at most `rows` sequences side by side; memory is taken as they grow."""
        try:
            return DecodeBatch(self._forward(rows))
        except OSError as error:
            raise MemoryError(f"no room for the keys and values of {rows} sequences; choose a smaller batch") from error

    def _forward(self, rows: int) -> Forward:
        return Forward(self._session, self._prefill_session, KeyValueCache(self._architecture, rows))

    def _prefill_session(self) -> Any:
        """Made once; None if there is no such graph."""
        with self._loading:
            if self._prefill is None and self._prefill_path:
                self._prefill = self._make(self._prefill_path)
            return self._prefill


def open_decode_session(
    bundle: Bundle, *, precision: str = "fp32", device: str = "cpu", threads: int | None = None
) -> DecodeSession:
    """The graphs of a bundle that generate, in a precision that it has."""
    manifest = bundle.manifest
    return DecodeSession(
        bundle.graph_path("decode", precision),
        manifest.architecture,
        device=device,
        threads=threads,
        prefill_path=bundle.graph_path("prefill", precision) if manifest.has_graph("prefill", precision) else None,
    )


def make_checked(path: Path, *, architecture: Architecture, device: str, threads: int | None) -> Any:
    session = make_session(path, device=device, threads=threads)
    check_graph(session, path, architecture)
    return session


def check_graph(session: Any, path: Path, architecture: Architecture) -> None:
    """Raise BundleError unless the graph has the manifest's layers, heads and vocabulary."""
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    heads = {name: (shape[1], shape[3]) for name, shape in shapes.items() if name.startswith("present.")}
    expected = dict.fromkeys(architecture.cache_names("present"), (architecture.n_head, architecture.head_size))
    if heads != expected or shapes.get("logits", [None])[-1] != architecture.vocab_size:
        raise BundleError(f"{path} is no decode graph of its manifest's architecture; export the bundle again")
    for name in ("logits_indices", "token_indices"):
        if name not in shapes:
            raise BundleError(f"{path} was made by an older gpt2-onnx (it has no {name}); export the bundle again")
