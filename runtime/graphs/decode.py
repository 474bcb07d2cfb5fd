"""DecodeGraph: the sessions of the decode and the prefill graph, and the slots over them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from runtime.bundle.architecture import Architecture
from runtime.bundle.bundle import Bundle
from runtime.bundle.same_files import same_files
from runtime.checks import MAX_SLOTS
from runtime.errors import BundleError
from runtime.graphs.cache import KeyValueCache, slot_bytes
from runtime.graphs.chunks import ChunkedRuns
from runtime.graphs.device.runs import DeviceRuns
from runtime.graphs.device.slots import DeviceSlots
from runtime.graphs.kinds import decode_path, prefill_path
from runtime.graphs.padded import PaddedGraph, PaddedRuns
from runtime.graphs.ragged import RaggedRuns
from runtime.graphs.slots import HostSlots, Runs
from runtime.graphs.state import DecodeState
from runtime.graphs.work import Slots
from runtime.ort.host_memory import available_memory
from runtime.ort.own_pages import own_pages
from runtime.ort.placement import CPU, Placement
from runtime.ort.sessions import make_session

ON_DEVICE = {"fp16"}  # precisions whose decode graph keeps its state on the device, on the CPU too


class DecodeGraph:
    """The sessions of the decode and the prefill graph, shared by all threads; each set of slots has its own cache.

    Args:
        path: The decode graph, ragged or not.
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

        self.architecture = architecture
        self._session = make(path, capture=True)
        self._device = DeviceRuns(self._session, placement) if placement.on_device else None
        self._prefill = Prefill(partial(make, prefill_path)) if prefill_path else None

    def slots(self, count: int) -> Slots:
        """Empty slots: on the CPU they take memory as they grow, on a device when they are reserved."""
        if self._device:
            return DeviceSlots(self._device, self.architecture, count)
        try:
            cache = KeyValueCache(self.architecture, count, kind=cache_kind(self._session))
        except (OSError, OverflowError) as error:
            raise MemoryError(f"no room for the keys and values of {count:,} texts; choose fewer slots") from error
        prefill = partial(self._prefill.over, cache) if self._prefill else None
        return HostSlots(cache, runs_over(self._session, cache), prefill)

    def slots_for(self, asked: int | None) -> int:
        """As many as were asked for, else as fill half of the memory that is left, if all texts fill the context.

        MemoryError if the machine could not hold those that were asked for.
        """
        memory, each = None if self._device else available_memory(), self._slot_bytes
        most = MAX_SLOTS if memory is None else max(1, memory // each)
        if asked is None:
            return min(max(1, most // 2), MAX_SLOTS) if memory is not None else most
        if asked > most:
            raise MemoryError(
                f"slots must be at most {most:,} here, as each takes up to {each / 1e6:,.0f} MB and "
                f"{(memory or 0) / 1e9:,.1f} GB are left, got {asked:,}"
            )
        return asked

    @property
    def _slot_bytes(self) -> int:
        return slot_bytes(self.architecture, cache_kind(self._session))

    @contextmanager
    def sequence(self, tokens: int | None = None) -> Iterator[DecodeState]:
        """One text in a slot of its own, driven by hand; with room for the whole context, or for `tokens`."""
        slots = self.slots(1)
        slots.reserve(0, tokens or self.architecture.n_positions)
        yield DecodeState(slots)


class Prefill:
    """The graph for many tokens at a time; `make` returns its session, and is called on first use.

    Slots refer to this and not to their `DecodeGraph`, which is thus freed with its weights once it is not referenced.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._session: Any = None
        self._loading = threading.Lock()

    def over(self, cache: KeyValueCache) -> Runs:
        with self._loading:
            self._session = self._session or self._make()
        return runs_over(self._session, cache)


def runs_over(session: Any, cache: KeyValueCache) -> Runs:
    """Ragged runs where the graph has them, in chunks where its keys and values are int8."""
    if cache_kind(session) == "int8":
        return ChunkedRuns(RaggedRuns(session, cache))
    if is_ragged(session):
        return RaggedRuns(session, cache)
    return PaddedRuns(PaddedGraph(session, cache), cache.written, cache.architecture.n_positions)


def is_ragged(session: Any) -> bool:
    return any(value.name == "query_seqlens" for value in session.get_inputs())


def cache_kind(session: Any) -> str:
    """The type of a decode graph's keys and values in host memory."""
    types = {value.name: value.type for value in session.get_inputs()}
    return "int8" if types.get("past_key_values.0.key") == "tensor(int8)" else "float32"


def open_decode_graph(
    bundle: Bundle,
    *,
    precision: str = "fp32",
    cache: str = "float32",
    placement: Placement = CPU,
    threads: int | None = None,
    own: bool = False,
) -> DecodeGraph:
    """Open a bundle's decode graph, and its prefill graph where there is one, in a precision that it has.

    Args:
        cache: The type of its keys and values, "float32" or "int8".
        own: Whether to protect the loaded weights from later writes into their files, where the system allows it.
    """
    placement = placement.as_on_device() if precision in ON_DEVICE else placement
    prefill = prefill_path(bundle, precision, placement, cache)
    return DecodeGraph(
        decode_path(bundle, precision, placement, cache),
        bundle.manifest.architecture,
        placement=placement,
        threads=threads,
        prefill_path=bundle.place.lasting(prefill) if prefill else None,
        around=partial(opened_whole, bundle, own=own and placement.device == "cpu"),
    )


@contextmanager
def opened_whole(bundle: Bundle, path: Path, *, own: bool) -> Iterator[None]:
    """Check, around the making of a session, that its files are those that the bundle was opened with."""
    with same_files(bundle, path) as weights, own_pages(bundle.folder / name for name in weights if own):
        yield


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
