"""Proves the graphs that round to int8 on this processor: they match PyTorch up to that rounding.

The graphs of int8 and int4 round the inputs of products, those with an int8 cache keys and values, whose codes are
compared. The truth is PyTorch's float64 with dequantized weights; the unit of error is how far rounding takes PyTorch
from it. A few log-probabilities would scatter too much: where sums saturate, the shipped checkpoint's logits are 2.4
times as far off as by rounding, but its keys and values 3 to 6 times; where sums are right, all are 0.99 to 1.02 times
as far off. Sketches of them are right to within an eighth, so a bound of twice, as for float32, separates the two.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import NAME, Kind, Manifest, are_ids
from runtime.errors import BundleError
from runtime.graphs.decode import DecodeGraph
from runtime.graphs.kinds import runs
from runtime.proof.sketch import SUMS, distance, sketches

FACTOR = 2.0
LAST = 8  # positions whose logits are compared with PyTorch's
MOST_SHARE = 0.25  # of a tensor's norm that rounding may cost PyTorch, whatever the manifest says; 0.1 was seen
MOST_STANDARDS = 16
Sketches = dict[str, list[float]]


@dataclass(frozen=True)
class RoundedStandard:
    """What a precision's graphs should compute for a text.

    Attributes:
        token_ids: The text.
        sketches: Sketches of keys and values by output name, in units of their scales where those are int8, and of the
            last logits, centred at each position.
        pytorch_errors: By kind of graph, each tensor's absolute error in PyTorch when it rounds as the graph does.
    """

    precision: str
    token_ids: list[int]
    sketches: Sketches
    pytorch_errors: dict[Kind, dict[str, float]]


@dataclass(frozen=True)
class RoundedProof:
    """The proof of one graph of a precision on this processor.

    Attributes:
        tokens: How many tokens the text has.
        tensor: The tensor with the largest error.
        error: Its distance from float64's, in units of PyTorch's own error by rounding.
        allowed: The largest error that passes.
    """

    precision: str
    graph: str
    tokens: int
    tensor: str
    error: float
    allowed: float = FACTOR

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # False for NaN

    def __str__(self) -> str:
        return (
            f"{self.graph} {self.precision}: keys, values and logits of {self.tokens} tokens as PyTorch's but for "
            f"rounding, {self.error:.2f} times what that costs PyTorch (at most {self.allowed:g})"
        )


def prove_rounded(bundle: Bundle, precision: str) -> Iterator[RoundedProof]:
    """A proof of each graph of a precision, on the CPU; none for older bundles, which do not record the numbers."""
    return prove_by(bundle, precision, read_standards(bundle.manifest))


def prove_int8_cache(bundle: Bundle, precision: str) -> Iterator[RoundedProof]:
    """A proof of a precision's graph with int8 keys and values; none if ONNX Runtime is too old to run it."""
    recorded = bundle.manifest.parity.get("int8_cache", {})
    return prove_by(bundle, precision, parse_all(bundle.manifest, recorded, "parity.int8_cache"))


def prove_by(bundle: Bundle, precision: str, standards: Sequence[RoundedStandard]) -> Iterator[RoundedProof]:
    for standard in standards:
        if standard.precision == precision:
            for kind, noise in standard.pytorch_errors.items():
                if not runs(kind):
                    continue
                shares = {
                    name: error / believed(noise[name], standard.sketches[name])
                    for name, error in errors(bundle, standard, kind).items()
                }
                worst = max(shares, key=lambda name: np.nan_to_num(shares[name], nan=np.inf))
                yield RoundedProof(precision, kind, len(standard.token_ids), worst, shares[worst])


def believed(noise: float, truth: Sequence[float]) -> float:
    """PyTorch's own error by rounding; less if that were a large part of the tensor itself."""
    return max(min(noise, MOST_SHARE * distance(truth, [0.0] * len(truth))), np.finfo(float).tiny)


def errors(bundle: Bundle, standard: RoundedStandard, kind: Kind) -> dict[str, float]:
    """Each tensor's absolute distance from the truth on this processor."""
    graph = DecodeGraph(bundle.graph_path(kind, standard.precision), bundle.manifest.architecture)
    found = sketches(read_text(graph, standard.token_ids, at_once="prefill" in kind))
    return {name: distance(found[name], truth) for name, truth in standard.sketches.items()}


def read_text(graph: DecodeGraph, token_ids: list[int], *, at_once: bool) -> dict[str, Any]:
    """Keys, values and the last logits; unless `at_once`, the second half of the text runs token by token."""
    half = len(token_ids) if at_once else len(token_ids) // 2
    with graph.sequence(len(token_ids)) as state:
        answer = state.read(token_ids[:half], last=min(LAST, half))
        logits = [row.copy() for row in answer.logits]
        logits += [state.step([token])[1].copy() for token in token_ids[half:]]
        cache = {name: array.copy() for name, array in state.cache().items()}
    return {**cache, "logits": centred(np.stack(logits[-LAST:]))}


def centred(logits: Any) -> Any:
    """Logits [S, V] minus their mean at each position, which no probability depends on."""
    logits = np.asarray(logits, np.float64)
    return logits - logits.mean(axis=1, keepdims=True)


def read_standards(manifest: Manifest) -> list[RoundedStandard]:
    """The standards in a manifest; empty for older bundles, which do not record them."""
    return parse_all(manifest, manifest.parity, "parity.rounded")


def parse_all(manifest: Manifest, recorded: Any, name: str) -> list[RoundedStandard]:
    """The standards under "rounded" in what was recorded under a name."""
    try:
        contents = recorded.get("rounded", [])
        if len(contents) > MOST_STANDARDS:
            raise ValueError(f"{len(contents):,} texts, more than {MOST_STANDARDS}")
        return [parse(manifest, content) for content in contents]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{name} of {NAME} is damaged ({error!r}); export the bundle again") from None


def parse(manifest: Manifest, content: Mapping[str, Any]) -> RoundedStandard:
    precision, ids = str(content["precision"]), list(content["token_ids"])
    architecture = manifest.architecture
    names = {*architecture.cache_names("present"), "logits"}
    if not 2 <= len(ids) <= architecture.n_positions or not are_ids(ids, architecture.vocab_size):
        raise ValueError(f"{len(ids)} tokens for a context of {architecture.n_positions}, or ids out of range")
    sketches = {name: numbers(row, SUMS) for name, row in content["sketches"].items()}
    noise = {
        kind: dict(zip(row, numbers(row.values()), strict=True)) for kind, row in content["pytorch_errors"].items()
    }
    kinds = {graph.kind for graph in manifest.graphs if graph.precision == precision}
    if sketches.keys() != names or not noise or any(row.keys() != names for row in noise.values()):
        raise ValueError("tensors are missing")
    if not noise.keys() <= kinds or min(min(row.values()) for row in noise.values()) <= 0:
        raise ValueError("a graph is missing, or an error is not over 0")
    return RoundedStandard(precision, ids, sketches, noise)


def numbers(values: Any, count: int | None = None) -> list[float]:
    """`values` as floats, if all are finite and there are `count` of them."""
    found = [float(value) for value in values]
    if not np.isfinite(found).all() or count not in (None, len(found)):
        raise ValueError(f"{len(found)} numbers, or not all of them finite")
    return found
