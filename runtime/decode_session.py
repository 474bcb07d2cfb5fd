"""One ONNX Runtime session over the decode graph, and the memory it lends to what is under way."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.bound_graph import BoundGraph
from runtime.decode_batch import DecodeBatch
from runtime.decode_state import DecodeState
from runtime.errors import BundleError
from runtime.manifest import Architecture
from runtime.session import make_session

MOST_IDLE = 4  # caches kept between calls, each up to 75 MB for GPT-2 small; more are made when needed, and dropped


class DecodeSession:
    """Shared by all threads; every sequence or batch under way has keys and values of its own."""

    def __init__(self, path: Path, architecture: Architecture, *, device: str, threads: int | None) -> None:
        self._session = make_session(path, device=device, threads=threads)
        self._architecture = architecture
        check_graph(self._session, path, architecture)
        self._idle: list[DecodeState] = []
        self._lock = threading.RLock()  # a stream that nobody holds may be collected while this thread has it

    @contextmanager
    def sequence(self) -> Iterator[DecodeState]:
        """Lend an empty cache for one sequence, kept for the next caller afterwards."""
        with self._lock:
            state = self._idle.pop() if self._idle else None
        state = state or DecodeState(BoundGraph(self._session, self._architecture))
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
            return DecodeBatch(BoundGraph(self._session, self._architecture, rows=rows))
        except OSError as error:
            raise MemoryError(f"no room for the keys and values of {rows} sequences; choose a smaller batch") from error


def check_graph(session: Any, path: Path, architecture: Architecture) -> None:
    """Raise BundleError unless the graph has the manifest's layers, heads and vocabulary."""
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    heads = {name: (shape[1], shape[3]) for name, shape in shapes.items() if name.startswith("present.")}
    expected = dict.fromkeys(architecture.cache_names("present"), (architecture.n_head, architecture.head_size))
    if heads != expected or shapes.get("logits", [None])[-1] != architecture.vocab_size:
        raise BundleError(f"{path} is not the decode graph of its manifest's architecture; export the bundle again")
    if "logits_indices" not in shapes:
        raise BundleError(f"{path} was made by an older gpt2-onnx (it has no logits_indices); export the bundle again")
