"""The decode graph with its cache: preallocated, bound once, shared by past and present."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BundleError
from runtime.manifest import Architecture
from runtime.onnx_runtime import load_onnxruntime
from runtime.session import make_session

MOST_IDLE = 4  # caches kept between calls, each up to 75 MB for GPT-2 small; more are made when needed, and dropped


class DecodeSession:
    """One session over decode.onnx, lending a cache of its own to every sequence under way."""

    def __init__(self, path: Path, architecture: Architecture, *, device: str, threads: int | None) -> None:
        self._session = make_session(path, device=device, threads=threads)
        self._architecture = architecture
        check_shapes(self._session, path, architecture)
        self._idle: list[DecodeState] = []
        self._lock = threading.Lock()

    @contextmanager
    def sequence(self) -> Iterator["DecodeState"]:
        """Lend an empty cache, kept for the next caller afterwards."""
        with self._lock:
            state = self._idle.pop() if self._idle else None
        state = state or DecodeState(self._session, self._architecture)
        state.length = 0
        try:
            yield state
        finally:
            with self._lock:
                if len(self._idle) < MOST_IDLE:
                    self._idle.append(state)


class DecodeState:
    """A sequence under way: its keys and values, how long it is, and its last logits.

    The graph reads and writes the same buffers [1, n_head, n_positions, head_size]. What lies behind `length` is never
    read, so a new sequence needs no clearing; memory is touched, and thus taken, only as far as a sequence has grown.
    """

    def __init__(self, session: Any, architecture: Architecture) -> None:
        self._session = session
        self._value = load_onnxruntime().OrtValue.ortvalue_from_numpy  # shares the array's memory on the CPU
        self._binding = session.io_binding()
        self.length = 0
        self.capacity = architecture.n_positions
        self._seqlens_k = self._bind_input("seqlens_k", np.zeros(1, np.int32))
        self._total_sequence_length = self._bind_input("total_sequence_length", np.zeros(1, np.int32))
        self._one_id, self._one_position = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64)
        self._one = self._value(self._one_id), self._value(self._one_position)
        self._next_token = self._bind_output("next_token", np.zeros((1, 1), np.int64))
        self._logits = self._bind_output("logits", np.zeros((1, architecture.vocab_size), np.float32))
        self._cache = self._bind_cache(architecture)
        self._bind_ids(*self._one)

    def advance(self, token_ids: Sequence[int]) -> int:
        """Run over `token_ids` (at least one) behind what is there; the most likely next id."""
        count = len(token_ids)
        if count == 1:
            self._one_id[0, 0], self._one_position[0, 0] = token_ids[0], self.length
            self._run(count)
        else:
            ids = np.array([token_ids], np.int64)  # [1, S]
            positions = np.arange(self.length, self.length + count, dtype=np.int64)[None]  # [1, S]
            self._bind_ids(self._value(ids), self._value(positions))
            try:
                self._run(count)
            finally:
                self._bind_ids(*self._one)
        return int(self._next_token[0, 0])

    @property
    def logits(self) -> NDArray[np.float32]:
        """Logits [V] behind the last id; the next `advance` overwrites them."""
        logits: NDArray[np.float32] = self._logits[0]
        return logits

    def cache(self) -> dict[str, NDArray[np.float32]]:
        """Keys and values [1, n_head, length, head_size] by their names as outputs; views, not copies."""
        return {name: array[:, :, : self.length] for name, array in self._cache.items()}

    def _run(self, count: int) -> None:
        total = self.length + count
        self._seqlens_k[0], self._total_sequence_length[0] = total - 1, total
        self._session.run_with_iobinding(self._binding)
        self.length = total

    def _bind_cache(self, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
        shape = (1, architecture.n_head, self.capacity, architecture.head_size)
        cache = {name: np.zeros(shape, np.float32) for name in architecture.cache_names("present")}
        for past, present in zip(architecture.cache_names("past_key_values"), cache, strict=True):
            value = self._value(cache[present])
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)
        return cache

    def _bind_ids(self, ids: Any, positions: Any) -> None:
        self._binding.bind_ortvalue_input("input_ids", ids)
        self._binding.bind_ortvalue_input("position_ids", positions)

    def _bind_input(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        self._binding.bind_ortvalue_input(name, self._value(array))
        return array

    def _bind_output(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        self._binding.bind_ortvalue_output(name, self._value(array))
        return array


def check_shapes(session: Any, path: Path, architecture: Architecture) -> None:
    """Raise BundleError unless the graph has the manifest's layers, heads and vocabulary."""
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    heads = {name: (shape[1], shape[3]) for name, shape in shapes.items() if name.startswith("present.")}
    expected = dict.fromkeys(architecture.cache_names("present"), (architecture.n_head, architecture.head_size))
    if heads != expected or shapes.get("logits", [None])[-1] != architecture.vocab_size:
        raise BundleError(f"{path} is not the decode graph of its manifest's architecture; export the bundle again")
