"""Checks a graph before ONNX Runtime sees it: only known operators, inputs and outputs as the runtime uses them, and
no tensor and no work larger than the architecture explains.

ONNX Runtime would run what a graph says: loops without end, constants of any size, or reads past the end of what
another graph has allocated. So a large run's shapes are computed here, node by node, without running anything.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from runtime.bundle.architecture import Architecture
from runtime.bundle.contracts import Contract, Given, Signature, contract_of
from runtime.bundle.onnx_model import Model, Node, Value, read_model
from runtime.bundle.operators import MICROSOFT, RULES, Call, Found, Tensor
from runtime.errors import BundleError

MOST_GRAPH_BYTES = (2**20, 2**20)  # of a graph's file: and again for each layer
MOST_NODES = (256, 512)  # the same
OPSETS = {"": range(18, 25), MICROSOFT: range(1, 2)}
MANY_TIMES = 8  # as large, or as much work, as what the architecture explains
CANDIDATES = 64  # rows of `wte` that a shortlist reads for an id
CACHED = "GroupQueryAttention"
CACHE_INPUTS = {5: "seqlens_k", 6: "total_sequence_length", 16: "query_seqlens"}
SCALES = (12, 13)


def check_graph(path: Path, architecture: Architecture, files: Mapping[str, int]) -> None:
    """Raise BundleError for a graph that is not one of the architecture's.

    Args:
        files: The sizes of the files in which constants may lie, by the names that the graph gives them.
    """
    try:
        model = read_graph(path, architecture)
        check_model(model, architecture, files)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = str(error) if isinstance(error, ValueError) else "not an ONNX model that export writes"
        raise BundleError(f"{path} is not a graph of its manifest's architecture: {reason}; export it again") from None


def read_graph(path: Path, architecture: Architecture) -> Model:
    base, each = MOST_GRAPH_BYTES
    most = base + each * architecture.n_layer
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return read_model(content)


def check_model(model: Model, architecture: Architecture, files: Mapping[str, int]) -> None:
    base, each = MOST_NODES
    if len(model.nodes) > base + each * architecture.n_layer:
        raise ValueError(f"it has {len(model.nodes):,} nodes")
    for domain, version in model.opsets.items():
        if version not in OPSETS.get(domain, ()):
            raise ValueError(f"it uses version {version} of the operators {domain!r}")
    contract = contract_of(model, architecture)
    check_signature("input", model.inputs, contract.inputs)
    check_signature("output", model.outputs, contract.outputs)
    check_places(model, files)
    found = Sizes(model, architecture, contract).check()
    for name, given in contract.outputs.items():
        shape = sized(given, contract.sizes)
        if name not in found or found[name].shape != shape:
            raise ValueError(f"it gives {name} as {list(found[name].shape) if name in found else None}, not {shape}")


def check_signature(what: str, found: Mapping[str, Value], expected: Signature) -> None:
    """Check that all inputs, or outputs, are there, of the right types and shapes, and no others."""
    if found.keys() != expected.keys():
        name = min(found.keys() ^ expected.keys())
        raise ValueError(f"its {what} {name[:60]!r} is {'not known' if name in found else 'missing'}")
    for name, given in expected.items():
        shape = tuple(size if isinstance(size, int) else None for size in given.shape)
        if found[name] != Value(given.kind, shape):
            raise ValueError(f"its {what} {name} is {found[name].kind} {list(found[name].shape)}, not as {list(given)}")


def check_places(model: Model, files: Mapping[str, int]) -> None:
    """Check that every constant lies in a file of the bundle, as far as it says."""
    for constant in model.constants:
        if constant.location is not None and constant.offset + constant.length > files.get(constant.location, 0):
            raise ValueError(f"its constant {constant.name[:60]!r} lies beyond the end of {constant.location[:60]!r}")


def sized(given: Given, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else sizes[size] for size in given.shape)


class Sizes:
    """Computes the shapes of a large run, and bounds them and the work."""

    def __init__(self, model: Model, architecture: Architecture, contract: Contract) -> None:
        self._model, self._of, self._contract = model, architecture, contract
        self._known: dict[str, Tensor] = {}
        self._work = self._fixed_work = 0
        sizes = contract.sizes
        rows = max(sizes.get("packed", 0), sizes.get("batch", 1) * sizes.get("sequence", sizes.get("states", 1)))
        asked = sizes.get("logits", 0) + sizes.get("tokens", 0) + sizes.get("rows", 0)
        wide = max(3 * self._of.n_embd, self._of.n_inner)
        logits = (asked or rows) * self._of.vocab_size
        maps = sizes.get("batch", 0) * sizes.get("sequence", 0) * self._of.n_positions * self._of.n_head
        weights = max(self._of.vocab_size, self._of.n_positions, wide) * self._of.n_embd
        self._most = MANY_TIMES * max(rows * wide, logits, maps, weights, asked * CANDIDATES * self._of.n_embd, 2**16)
        products = (rows + asked) * (self._of.parameters + self._of.vocab_size * self._of.n_embd)
        self._most_work = MANY_TIMES * (products + 2 * self._of.n_layer * maps * self._of.head_size + 2**22)
        self._most_work += 64 * (asked + 1) * self._of.vocab_size * CANDIDATES
        self._most_fixed_work = MANY_TIMES * (self._of.parameters + 2**18)

    def check(self) -> Mapping[str, Tensor]:
        """What is known of each tensor; ValueError for what is too large, too much, or does not fit."""
        for constant in self._model.constants:
            self._define(constant.name, Tensor(constant.shape, constant.value, True))
        for name, given in self._contract.inputs.items():
            self._define(name, self._input(name, sized(given, self._contract.sizes)))
        for node in self._model.nodes:
            try:
                self._run(node)
            except ValueError as error:
                raise ValueError(f"{node.operator[:40]} that gives {node.outputs[:1]}: {error}") from None
        return self._known

    def _input(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return Tensor(shape, np.array([self._contract.sizes["k"]]) if name == "k" else None)

    def _define(self, name: str, tensor: Tensor) -> None:
        if not name or name in self._known:
            raise ValueError(f"{name[:60]!r} is there twice, or has no name")
        if tensor.size > self._most:
            raise ValueError(f"{name[:60]!r} would have {tensor.size:,} elements, more than {self._most:,}")
        self._known[name] = tensor

    def _run(self, node: Node) -> None:
        rule = RULES.get(node.domain, {}).get(node.operator)
        if rule is None or not node.attributes.keys() <= rule.attributes:
            raise ValueError("no operator that export writes, or not with these attributes")
        if node.operator == CACHED:
            self._check_cache(node)
        given = [self._known[name] if name else None for name in node.inputs]
        found = rule.apply(Call(node, given))
        outputs, work = found if isinstance(found, Found) else ([found], 0)
        if len(node.outputs) != len(outputs):
            raise ValueError(f"it has {len(node.outputs)} outputs")
        fixed = all(tensor is None or tensor.fixed for tensor in given)
        for name, tensor in zip(node.outputs, outputs, strict=True):
            self._define(name, tensor._replace(fixed=fixed))
            work = max(work, tensor.size)
        self._count(work, fixed=fixed)

    def _count(self, work: int, *, fixed: bool) -> None:
        self._work += work
        self._fixed_work += work if fixed else 0  # which ONNX Runtime does as it makes the session
        if self._work > self._most_work or self._fixed_work > self._most_fixed_work:
            raise ValueError("it would be more work than the architecture explains")

    def _check_cache(self, node: Node) -> None:
        """Attention trusts its lengths: they and the cache have to be the runtime's, which fit each other."""
        layer = node.outputs[1].split(".")[1]
        past, present = (f"{name}.{layer}" for name in ("past_key_values", "present"))
        expected = {3: f"{past}.key", 4: f"{past}.value", **CACHE_INPUTS}
        for place, name in enumerate(node.inputs[1:], 1):
            known = expected.get(place) if place < 16 or name else ""
            if place not in SCALES and name != (known or ""):
                raise ValueError(f"its input {place} is {name[:60]!r}")
        if node.outputs[1:] != [f"{present}.key", f"{present}.value"] or len(node.inputs) < 7:
            raise ValueError("its keys and values are not a layer's")
