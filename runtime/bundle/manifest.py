"""manifest.json: what a bundle contains, where it came from, and how its parity was proved."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar, get_origin, get_type_hints

from runtime.errors import BundleError

SCHEMA_VERSION = 1
NAME = "manifest.json"
PARTS = {"source": dict, "architecture": dict, "graphs": list, "files": dict, "made_with": dict, "parity": dict}
Kind = Literal["reference", "decode", "prefill", "ragged", "ragged_prefill", "int8_cache", "decode_cuda", "lens"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """The checkpoint: a Hub id or folder name, the Hub commit or "", the SHA-256 over its weight files."""

    id: str
    revision: str
    weights_sha256: str


@dataclass(frozen=True, slots=True)
class Architecture:
    """GPT-2's own numbers, under the names of its config.json; `parameters` counts a tied `wte` once."""

    n_layer: int
    n_head: int
    n_embd: int
    n_inner: int
    n_positions: int
    vocab_size: int
    activation_function: str
    tie_word_embeddings: bool
    parameters: int

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    def cache_names(self, prefix: str) -> list[str]:
        """`prefix.0.key`, `prefix.0.value` and so on, layer by layer."""
        return [f"{prefix}.{layer}.{part}" for layer in range(self.n_layer) for part in ("key", "value")]


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX file.

    "prefill" is a decode graph for many tokens at once, "decode_cuda" the one for CUDA in float32, "int8_cache" a
    ragged one whose keys and values are int8.
    """

    path: str
    kind: Kind
    precision: str


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Continuation:
    """Ids of a prompt, and the ids that greedy decoding gives after it."""

    prompt_ids: list[int]
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Log-probabilities in PyTorch's float64 of each probe's first tokens, or of one probe's in each layer.

    `pytorch_errors` are PyTorch's largest absolute errors by precision.
    """

    logprobs: list[list[float]]
    pytorch_errors: dict[str, float]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A bundle's manifest. `files` is keyed by path within the bundle, with forward slashes, without manifest.json.

    `adapter` is what was merged into the checkpoint, its SHA-256 taken over adapter_config.json and its weights; None
    if nothing was merged.
    """

    source: Source
    architecture: Architecture
    graphs: tuple[Graph, ...]
    files: Mapping[str, FileRecord]
    made_with: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    adapter: Source | None = None

    def graph(self, kind: Kind, precision: str = "fp32") -> Graph:
        for graph in self.graphs:
            if (graph.kind, graph.precision) == (kind, precision):
                return graph
        made = ", ".join(f"{graph.kind} {graph.precision}" for graph in self.graphs) or "none"
        added = "" if precision == "fp32" else f" --precision {precision}"
        command = f"python -m export CHECKPOINT{added} …"
        raise BundleError(f"this bundle has no {kind} graph in {precision}; it has: {made}; add it: {command}")

    def has_graph(self, kind: Kind, precision: str) -> bool:
        return any((graph.kind, graph.precision) == (kind, precision) for graph in self.graphs)

    def probes(self) -> list[Continuation]:
        """PyTorch's greedy tokens, which any machine can replay."""
        try:
            probes = [build(Continuation, probe) for probe in self.parity["greedy"]["probes"]]
            ids = {token for probe in probes for token in (*probe.prompt_ids, *probe.token_ids)}
            longest = max(len(probe.prompt_ids) + len(probe.token_ids) for probe in probes)
            if not ids.issubset(range(self.architecture.vocab_size)) or not all(probe.prompt_ids for probe in probes):
                raise ValueError("ids out of range")
            if longest > self.architecture.n_positions:
                raise ValueError(f"{longest} tokens in a context of {self.architecture.n_positions}")
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the greedy probes of {NAME} are damaged ({error}); export the bundle again") from None
        return probes

    def likelihoods(self) -> Likelihoods | None:
        """How likely PyTorch finds the probes' tokens; None in older bundles, which do not record it."""
        return self._likelihoods("likelihoods", lambda rows: rows >= len(self.probes()))

    def lens_likelihoods(self) -> Likelihoods | None:
        """How likely PyTorch finds the first probe's tokens in each layer, by the lens; None in older bundles."""
        return self._likelihoods("lens", lambda rows: rows == self.architecture.n_layer)

    def _likelihoods(self, name: str, enough: Callable[[int], bool]) -> Likelihoods | None:
        if name not in self.parity:
            return None
        try:
            found = finite(build(Likelihoods, self.parity[name]))
            if not enough(len(found.logprobs)):
                raise ValueError(f"{len(found.logprobs)} rows of log-probabilities are too few or too many")
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"parity.{name} of {NAME} is damaged ({error}); export the bundle again") from None
        return found

    def write(self, folder: Path) -> None:
        content = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        (folder / NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in `folder`; BundleError says what is wrong with it."""
    path = folder / NAME
    content = read_object(path)
    version = content.get("schema_version")
    if type(version) is not int or version < 1:
        raise BundleError(f"{path} has no valid schema_version (got {version!r}); export the bundle again")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema_version {version}, this gpt2-onnx reads 1 to {SCHEMA_VERSION}; "
            "upgrade it: pip install --upgrade gpt2-onnx"
        )
    try:
        return parse(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is damaged ({error}); export the bundle again") from None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise BundleError(f"{path} is damaged: its top is not a JSON object")
    return content


def parse(content: dict[str, Any]) -> Manifest:
    for name, kind in PARTS.items():
        if not isinstance(content.get(name), kind):
            raise TypeError(f"its {name} is not a {kind.__name__}")
    files = {checked_path(path): build(FileRecord, record) for path, record in content["files"].items()}
    graphs = tuple(build(Graph, graph) for graph in content["graphs"])
    for graph in graphs:
        if graph.path not in files:
            raise ValueError(f"graph {graph.path!r} is not among its files")
    return Manifest(
        source=build(Source, content["source"]),
        architecture=positive(build(Architecture, content["architecture"])),
        graphs=graphs,
        files=files,
        made_with=content["made_with"],
        parity=content["parity"],
        adapter=None if content.get("adapter") is None else build(Source, content["adapter"]),
    )


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from JSON, every field present and of its type; unknown keys are ignored."""
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in names:
        expected = get_origin(hints[name]) or hints[name]
        expected = str if expected is Literal else expected  # a newer bundle may have kinds of graphs unknown here
        if not isinstance(values[name], expected) or (expected is int and isinstance(values[name], bool)):
            raise TypeError(f"{kind.__name__}.{name} is {values[name]!r}, not {expected.__name__}")
    return kind(**{name: values[name] for name in names})


def finite(likelihoods: Likelihoods) -> Likelihoods:
    """`likelihoods`, if all its numbers are finite and it has an error for float32."""
    if not all(isinstance(row, list) and row for row in likelihoods.logprobs):
        raise ValueError("a row of log-probabilities is empty, or not a list")
    if likelihoods.pytorch_errors["fp32"] < 0:
        raise ValueError("an error is less than 0")
    numbers = [*likelihoods.pytorch_errors.values(), *(number for row in likelihoods.logprobs for number in row)]
    for number in numbers:
        if not isinstance(number, float) or not math.isfinite(number):
            raise ValueError(f"{number!r} is not a finite number")
    return likelihoods


def positive(architecture: Architecture) -> Architecture:
    """`architecture`, if all its sizes are 1 or more."""
    for name, value in asdict(architecture).items():
        if type(value) is int and value < 1:
            raise ValueError(f"Architecture.{name} is {value}")
    return architecture


def checked_path(path: str) -> str:
    """`path`, if it is relative and stays within the bundle."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or ":" in path or ".." in parts:
        raise ValueError(f"file {path!r} lies outside the bundle")
    return path
