"""manifest.json: what a bundle contains, where it came from, and how its parity was proved."""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar, get_origin, get_type_hints

from runtime.bundle.architecture import Architecture, check_sizes
from runtime.bundle.json_files import Bounds, read_object, shown
from runtime.errors import BundleError

SCHEMA_VERSION = 1
NAME = "manifest.json"
WEIGHTS_SUFFIX = ".onnx_data"
BOUNDS = Bounds(2**24, 2**18)  # that of 48 layers in every precision has 2 MB and 50,000 values
MOST_FILES, MOST_GRAPHS = 256, 64
MOST_PROBES, MOST_PROBED = 32, 8192  # probes, and ids in all of them: verifying takes a run for nearly every id
LONGEST_NAME = 200
MOST_PARSED = 2**27  # bytes of all files but weights, which are hashed before they are parsed
FILE_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
WORD = re.compile(r"\w{1,32}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")
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
        whole = any(graph.precision == precision for graph in self.graphs) or precision == "fp32"
        how = "export the bundle again" if whole else f"add it: python -m export --add {precision} --output DIR"
        raise BundleError(f"this bundle has no {kind} graph in {precision}; it has: {made}; {how}")

    def has_graph(self, kind: Kind, precision: str) -> bool:
        return any((graph.kind, graph.precision) == (kind, precision) for graph in self.graphs)

    def probes(self) -> list[Continuation]:
        """PyTorch's greedy tokens, which any machine can replay."""
        try:
            probes = [build(Continuation, probe) for probe in self.parity["greedy"]["probes"]]
            ids = [token for probe in probes for token in (*probe.prompt_ids, *probe.token_ids)]
            longest = max(len(probe.prompt_ids) + len(probe.token_ids) for probe in probes)
            if len(probes) > MOST_PROBES or len(ids) > MOST_PROBED:
                raise ValueError(f"{len(probes):,} of {len(ids):,} ids, more than {MOST_PROBES} of {MOST_PROBED:,}")
            if not are_ids(ids, self.architecture.vocab_size) or not all(map(is_whole, probes)):
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
    content = read_object(path, BOUNDS)
    version = content.get("schema_version")
    if type(version) is not int or version < 1:
        raise BundleError(f"{path} has no valid schema_version (got {shown(version)}); export the bundle again")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema_version {shown(version)}, this gpt2-onnx reads 1 to {SCHEMA_VERSION}; "
            "upgrade it: pip install --upgrade gpt2-onnx"
        )
    try:
        return parse(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is damaged ({error}); export the bundle again") from None


def parse(content: dict[str, Any]) -> Manifest:
    for name, kind in PARTS.items():
        if not isinstance(content.get(name), kind):
            raise TypeError(f"its {name} is not a {kind.__name__}")
    for name, most in (("files", MOST_FILES), ("graphs", MOST_GRAPHS)):
        if len(content[name]) > most:
            raise ValueError(f"it names {len(content[name]):,} {name}, more than {most}")
    files = {checked_path(path): checked_record(build(FileRecord, record)) for path, record in content["files"].items()}
    graphs = tuple(checked_graph(build(Graph, graph), files) for graph in content["graphs"])
    weights = [record.size for name, record in files.items() if name.endswith(WEIGHTS_SUFFIX)]
    others = sum(record.size for record in files.values()) - sum(weights)
    if others > MOST_PARSED:
        raise ValueError(f"its files but for weights have {others:,} bytes, more than {MOST_PARSED:,}")
    return Manifest(
        source=build(Source, content["source"]),
        architecture=check_sizes(build(Architecture, content["architecture"]), weights),
        graphs=graphs,
        files=files,
        made_with=texts(content["made_with"]),
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
            raise TypeError(f"{kind.__name__}.{name} is {shown(values[name])}, not {expected.__name__}")
    return kind(**{name: values[name] for name in names})


def are_ids(values: Collection[object], vocab_size: int) -> bool:
    return all(type(value) is int and 0 <= value < vocab_size for value in values)


def is_whole(probe: Continuation) -> bool:
    return bool(probe.prompt_ids and probe.token_ids)


def finite(likelihoods: Likelihoods) -> Likelihoods:
    """`likelihoods`, if all its numbers are finite and it has an error for float32."""
    if not all(isinstance(row, list) and row for row in likelihoods.logprobs):
        raise ValueError("a row of log-probabilities is empty, or not a list")
    if likelihoods.pytorch_errors["fp32"] < 0:
        raise ValueError("an error is less than 0")
    numbers = [*likelihoods.pytorch_errors.values(), *(number for row in likelihoods.logprobs for number in row)]
    for number in numbers:
        if not isinstance(number, float) or not math.isfinite(number):
            raise ValueError(f"{shown(number)} is not a finite number")
    return likelihoods


def checked_record(record: FileRecord) -> FileRecord:
    """`record`, if a file can have it."""
    if record.size < 0 or not SHA256.fullmatch(record.sha256):
        raise ValueError(f"{shown(record.size)} bytes of SHA-256 {shown(record.sha256)} are no file's")
    return record


def checked_graph(graph: Graph, files: Collection[str]) -> Graph:
    """`graph`, if it is one of the files."""
    if graph.path not in files:
        raise ValueError(f"graph {shown(graph.path)} is not among its files")
    if not (WORD.fullmatch(graph.kind) and WORD.fullmatch(graph.precision)):
        raise ValueError(f"{graph.path} cannot be a graph of kind {shown(graph.kind)} in {shown(graph.precision)}")
    return graph


def texts(values: Mapping[str, Any]) -> Mapping[str, str]:
    """`values`, if all are texts."""
    for name, value in values.items():
        if not isinstance(value, str):
            raise TypeError(f"{shown(name)} is {shown(value)}, not str")
    return values


def checked_path(path: str) -> str:
    """`path`, if it is relative, stays within the bundle, and reads the same on every system and to every eye."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or ":" in path or ".." in parts:
        raise ValueError(f"file {shown(path)} lies outside the bundle")
    if not FILE_NAME.fullmatch(path) or len(path) > LONGEST_NAME:
        raise ValueError(
            f"file {shown(path)} is no name of a bundle's file, of at most {LONGEST_NAME} letters, digits, _, . and -"
        )
    return path
