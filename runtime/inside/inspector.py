"""Inspector: opens the reference and lens sessions on first use, and inspects texts with them."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from runtime.arrays import Floats
from runtime.bundle.architecture import Architecture
from runtime.bundle.bundle import Bundle, check_hashes
from runtime.bundle.manifest import Kind
from runtime.bundle.same_files import same_files
from runtime.checks import check_prompts, check_text
from runtime.exits import native
from runtime.graphs.lens import LensGraph
from runtime.graphs.reference import ReferenceGraph
from runtime.inside.inspection import Inspection, inspect_ids
from runtime.inside.lens import Lens, lens_ids
from runtime.ort.placement import Placement
from runtime.text.prompts import Prompting

T = TypeVar("T")
Texts = list[str] | tuple[str, ...]


class Inspector:
    """Inspects texts with the reference and lens graphs of one bundle.

    Args:
        hash_weights: Whether to check the weights' SHA-256 first, if that has not been done.
    """

    def __init__(
        self,
        bundle: Bundle,
        prompting: Prompting,
        *,
        placement: Placement,
        threads: int | None,
        hash_weights: bool,
    ) -> None:
        self._bundle, self._prompting = bundle, prompting
        self._placement, self._threads = placement, threads
        self._unhashed = hash_weights
        self._sessions: dict[str, Any] = {}
        self._making = threading.Lock()

    def inspect(
        self, text: str | Texts, outputs: Sequence[str], layers: Sequence[int]
    ) -> Inspection | list[Inspection]:
        def look(ids: list[int]) -> Inspection:
            return inspect_ids(
                self.reference(), self._prompting.tokenizer, ids, self._sizes, outputs=outputs, layers=layers
            )

        return self._each(text, look)

    def hidden_states(self, token_ids: Sequence[int], layer: int) -> Floats:
        """Those of one layer [S, C]: 0 is the embedding, n_layer the last, after `ln_f`."""
        states = np.zeros((len(token_ids), self._sizes.n_embd), np.float32)
        with native():
            self.reference().read(token_ids, {f"hidden_states.{layer}": states})
        return states

    def lens(self, text: str | Texts, k: int, progress: Callable[[int], object]) -> Lens | list[Lens]:
        def look(ids: list[int]) -> Lens:
            lens, pieces = self.lens_graph(), self._prompting.tokenizer
            return lens_ids(self.reference(), lens, pieces, ids, self._sizes, k=k, progress=progress)

        return self._each(text, look)

    def reference(self) -> ReferenceGraph:
        return self._session("reference", ReferenceGraph)

    def lens_graph(self) -> LensGraph:
        return self._session("lens", LensGraph)

    def _session(self, kind: Kind, make: Callable[..., T]) -> T:
        """The session of a graph, made on first use."""
        with self._making:
            if kind not in self._sessions:
                path = self._bundle.folder / self._bundle.manifest.graph(kind).path
                with same_files(self._bundle, path) as weights:
                    self._bundle.graph_path(kind)
                    self._check(weights)
                    self._sessions[kind] = make(path, self._sizes, placement=self._placement, threads=self._threads)
            found: T = self._sessions[kind]
            return found

    def _check(self, weights: set[str]) -> None:
        """Check the hashes of a graph's weights once. Both graphs share one weights file."""
        if self._unhashed:
            check_hashes(self._bundle, weights)
            self._unhashed = False

    def _each(self, text: str | Texts, look: Callable[[list[int]], T]) -> T | list[T]:
        """One result for a text, a list for a list; all texts are checked before the first is run."""

        def run(ids: list[int]) -> T:
            with native():
                return look(ids)

        if isinstance(text, list | tuple):
            named = [(each, f"text[{number}]") for number, each in enumerate(check_prompts(text, "text"))]
            return [run(ids) for ids in [self._prompting.encode_whole(*pair) for pair in named]]
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, or a list of strings, got {type(text).__name__}")
        return run(self._prompting.encode_whole(check_text("text", text), "text"))

    @property
    def _sizes(self) -> Architecture:
        return self._bundle.manifest.architecture
