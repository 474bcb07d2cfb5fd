"""DecodeGraph: the sessions of the decode and prefill graphs, and the caches they lend to sequences and batches."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import finalize

import numpy as np

from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import Architecture, Kind
from runtime.bundle.same_files import same_files
from runtime.errors import BundleError
from runtime.forks import tell_children
from runtime.graphs.batch import DecodeBatch
from runtime.graphs.device.cache import DeviceCache, bucket, row_bucket
from runtime.graphs.device.graph import DeviceGraph
from runtime.graphs.device.runs import DeviceRuns
from runtime.graphs.forward import Forward
from runtime.graphs.host import HostGraph, KeyValueCache
from runtime.graphs.state import DecodeState
from runtime.ort.own_pages import own_pages
from runtime.ort.placement import CPU, Placement
from runtime.ort.sessions import make_session

MOST_IDLE = 4  # caches kept between calls, up to 75 MB per row for GPT-2 small; more are made when needed, then dropped
MOST_ROWS = 1024
ON_DEVICE = {"fp16"}  # precisions whose decode graph keeps its state on the device, on the CPU too
KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Idle(NamedTuple):
    """A cache that is not in use, and the graphs over it."""

    rows: int
    capacity: int
    forward: Forward


class Prefill:
    """The graph for many tokens at a time; `make` returns its session or None, and is called on first use.

    Caches refer to this and not to their `DecodeGraph`, which is thus freed with its weights once it is not referenced.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._session: Any = None
        self._loading = threading.Lock()

    def over(self, cache: KeyValueCache) -> HostGraph | None:
        with self._loading:
            self._session = self._session or self._make()
        return HostGraph(self._session, cache) if self._session else None


class DecodeGraph:
    """The decode graph, shared by all threads; every running sequence or batch has its own keys and values.

    Args:
        path: The decode graph.
        prefill_path: A graph with the same inputs and outputs that is faster over many tokens; loaded on first use.
        around: A context manager, called with a graph's path, that is entered while its session is made.
    """

    def __init__(
        self,
        path: Path,
        architecture: Architecture,
        *,
        placement: Placement = CPU,
        threads: int | None = None,
        prefill_path: Path | None = None,
        around: Callable[[Path], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        def make(path: Path, *, capture: bool = False) -> Any:
            with around(path):
                return make_checked(
                    path, architecture=architecture, placement=placement, threads=threads, capture=capture
                )

        self._session = make(path, capture=True)
        self._runs = DeviceRuns(self._session, placement) if placement.on_device else None
        self._prefill = Prefill(partial(make, prefill_path) if prefill_path else lambda: None)
        self._architecture = architecture
        self._idle: list[Idle] = []
        self._lock = threading.RLock()  # this thread may collect an unreferenced stream while it holds the lock
        tell_children(self, DecodeGraph._forked)

    @contextmanager
    def sequence(self, tokens: int | None = None) -> Iterator[DecodeState]:
        """Lend an empty cache for one sequence of at most `tokens`; afterwards it is kept for the next caller.

        Without `tokens`, it has room for the whole context.
        """
        shape = 1, self._capacity(tokens)
        state = DecodeState(self._forward(*shape))
        try:
            yield state
        finally:
            self._keep(Idle(*shape, state.forward))

    def batch(self, rows: int, tokens: int | None = None) -> DecodeBatch:
        """An empty cache for a batch of at most `rows` sequences of at most `tokens` each.

        On the CPU, memory is taken as rows grow and given back when the batch is dropped; on a device, it is taken at
        once and kept for the next batch.
        """
        shape = rows if self._runs is None else row_bucket(rows, MOST_ROWS), self._capacity(tokens)
        try:
            forward = self._forward(*shape)
        except OSError as error:
            raise MemoryError(f"no room for the keys and values of {rows} sequences; choose a smaller batch") from error
        batch = DecodeBatch(forward, rows)
        if self._runs:
            finalize(batch, self._keep, Idle(*shape, forward))
        return batch

    def _forked(self) -> None:
        """Replace the lock in a forked child: the graph is not used there, but lent caches may be given back."""
        self._lock = threading.RLock()

    def _capacity(self, tokens: int | None) -> int:
        most = self._architecture.n_positions
        return most if tokens is None or self._runs is None else bucket(tokens, most)

    def _forward(self, rows: int, capacity: int) -> Forward:
        """An idle Forward of this shape, or a new one."""
        with self._lock:
            for idle in self._idle:
                if (idle.rows, idle.capacity) == (rows, capacity):
                    self._idle.remove(idle)
                    return idle.forward
        if self._runs is None:
            cache = KeyValueCache(self._architecture, rows)
            return Forward(cache, HostGraph(self._session, cache), partial(self._prefill.over, cache))
        try:
            return self._on_device(self._runs, rows, capacity)
        except MemoryError:
            if not self._idle:
                raise
        self._idle.clear()  # to free their memory
        return self._on_device(self._runs, rows, capacity)

    def _on_device(self, runs: DeviceRuns, rows: int, capacity: int) -> Forward:
        kind = next(value.type for value in self._session.get_inputs() if value.name.startswith("past_key_values"))
        cache = DeviceCache(self._architecture, rows, capacity, dtype=KINDS[kind], placement=runs.placement)
        graph = DeviceGraph(runs, cache)
        return Forward(cache, graph, lambda: None, launcher=graph)

    def _keep(self, idle: "Idle") -> None:
        """Keep it for the next caller, unless it ran out of memory; of too many, drop the one idle longest."""
        if idle.forward.one.ran_out:
            return
        with self._lock:
            self._idle.append(idle)
            del self._idle[:-MOST_IDLE]


def open_decode_graph(
    bundle: Bundle,
    *,
    precision: str = "fp32",
    placement: Placement = CPU,
    threads: int | None = None,
    own: bool = False,
) -> DecodeGraph:
    """Open a bundle's decode graph, and its prefill graph where there is one, in a precision that it has.

    Args:
        own: Whether to protect the loaded weights from later writes into their files, where the system allows it.
    """
    manifest = bundle.manifest
    placement = placement.as_on_device() if precision in ON_DEVICE else placement
    prefill = not placement.on_device and manifest.has_graph("prefill", precision)
    return DecodeGraph(
        bundle.graph_path(decode_kind(precision, placement), precision),
        manifest.architecture,
        placement=placement,
        threads=threads,
        prefill_path=bundle.graph_path("prefill", precision) if prefill else None,
        around=partial(opened_whole, bundle, own=own and placement.device == "cpu"),
    )


@contextmanager
def opened_whole(bundle: Bundle, path: Path, *, own: bool) -> Iterator[None]:
    """Check, around the making of a session, that its files are those that the bundle was opened with."""
    with same_files(bundle, path) as weights, own_pages(bundle.folder / name for name in weights if own):
        yield


def decode_kind(precision: str, placement: Placement) -> Kind:
    """The kind of graph that generates there; float16 has one graph for the CPU and CUDA."""
    return "decode_cuda" if placement.on_device and precision == "fp32" else "decode"


def make_checked(
    path: Path, *, architecture: Architecture, placement: Placement, threads: int | None, capture: bool = False
) -> Any:
    session = make_session(path, placement=placement, threads=threads, capture=capture)
    check_graph(session, path, architecture, on_device=placement.on_device)
    return session


def check_graph(session: Any, path: Path, architecture: Architecture, *, on_device: bool = False) -> None:
    """Raise BundleError unless the graph has the manifest's layers, heads and vocabulary."""
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    heads = {name: (shape[1], shape[3]) for name, shape in shapes.items() if name.startswith("present.")}
    expected = dict.fromkeys(architecture.cache_names("present"), (architecture.n_head, architecture.head_size))
    if heads != expected or shapes.get("logits", [None])[-1] != architecture.vocab_size:
        raise BundleError(f"{path} is not a decode graph of its manifest's architecture; export the bundle again")
    for name in ("logits_indices", "token_log" if on_device else "token_indices"):
        if name not in shapes:
            raise BundleError(f"{path} was made by an older gpt2-onnx (it has no {name}); export the bundle again")
