"""Proves decode, reference and lens graphs on a device against PyTorch's numbers in the manifest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Floats
from runtime.bundle.bundle import Bundle
from runtime.bundle.json_files import read_object
from runtime.bundle.manifest import Continuation, Likelihoods
from runtime.bundle.signature import PROOFS
from runtime.engine.scoring import target_logprobs
from runtime.errors import BundleError
from runtime.files import whole_file
from runtime.graphs.decode import DecodeGraph, open_decode_graph
from runtime.graphs.lens import LensGraph
from runtime.graphs.reference import ReferenceGraph
from runtime.ort.placement import Placement

FACTOR = 2.0
FLOOR = 2e-5  # two roundings of a logit near 100 in float32
MOST = {"fp32": 1e-2, "fp16": 0.5}  # whatever the manifest says of PyTorch's own error


@dataclass(frozen=True)
class Proof:
    """The proof of one graph in one precision on one device.

    Attributes:
        tokens: PyTorch's greedy tokens.
        replayed: How many of them the graph gives again, each text up to its first difference.
        error: The largest difference of a token's log-probability from PyTorch's float64; None in older bundles, which
            do not record those.
        allowed: Twice PyTorch's own error in this precision.
        graph: "decode"; "reference", which predicts each token after PyTorch's previous ones; or "lens", which counts
            the tokens whose log-probabilities in each layer are PyTorch's.
    """

    precision: str
    tokens: int
    replayed: int
    error: float | None
    allowed: float | None
    graph: str = "decode"

    @property
    def passed(self) -> bool:
        """float32 must give every token again; in lower precisions tokens nearly as likely may change places."""
        same = 0 < self.tokens == self.replayed
        if self.error is None or self.allowed is None:
            return same
        near = self.error <= self.allowed  # False for NaN
        return near and self.tokens > 0 and (same or self.precision != "fp32")

    def __str__(self) -> str:
        counted = "likelihoods in its layers" if self.graph == "lens" else "greedy tokens"
        words = f"{self.graph} {self.precision}: {self.replayed} of {self.tokens} {counted} as PyTorch's"
        if self.error is not None and self.allowed is not None:
            words += f", log-probabilities within {self.error:.1e} of float64's (at most {self.allowed:.1e})"
        return words


def prove(bundle: Bundle, precision: str, placement: Placement) -> Proof:
    """Replay the manifest's greedy tokens with the decode graph, and compare log-probabilities with PyTorch's."""
    graph = open_decode_graph(bundle, precision=precision, placement=placement)
    probes = bundle.manifest.probes()
    equal = sum(
        agreement(greedy_tokens(graph, probe.prompt_ids, len(probe.token_ids)), probe.token_ids) for probe in probes
    )
    tokens = sum(len(probe.token_ids) for probe in probes)
    likelihoods = bundle.manifest.likelihoods()
    if likelihoods is None or precision not in likelihoods.pytorch_errors:
        return Proof(precision, tokens, equal, None, None)
    pairs = zip(probes, likelihoods.logprobs, strict=False)  # a caller may have shortened the probes
    errors = [largest_error(decode_logits(graph, probe, len(truth)), probe, truth) for probe, truth in pairs]
    return Proof(precision, tokens, equal, float(np.max(errors)), allowed_error(likelihoods, precision))


def prove_reference(bundle: Bundle, placement: Placement) -> Proof | None:
    """Prove the reference graph over the probes' texts; None for bundles that lack it or PyTorch's numbers."""
    manifest, likelihoods = bundle.manifest, bundle.manifest.likelihoods()
    if likelihoods is None or not manifest.has_graph("reference", "fp32"):
        return None
    graph = ReferenceGraph(bundle.graph_path("reference"), manifest.architecture, placement=placement)
    tokens, equal, errors = 0, 0, []
    for probe, truth in zip(manifest.probes(), likelihoods.logprobs, strict=False):
        logits = reference_logits(graph, probe, len(truth))
        errors.append(largest_error(logits, probe, truth))
        tokens += len(logits)
        equal += int((logits.argmax(axis=1) == probe.token_ids[: len(logits)]).sum())
    return Proof("fp32", tokens, equal, float(np.max(errors)), allowed_error(likelihoods, "fp32"), "reference")


def prove_lens(bundle: Bundle, placement: Placement) -> Proof | None:
    """Prove how likely each layer finds the first probe's tokens; None for bundles that lack the lens."""
    manifest, truth = bundle.manifest, bundle.manifest.lens_likelihoods()
    if truth is None or not (manifest.has_graph("lens", "fp32") and manifest.has_graph("reference", "fp32")):
        return None
    reference = ReferenceGraph(bundle.graph_path("reference"), manifest.architecture, placement=placement)
    lens = LensGraph(bundle.graph_path("lens"), manifest.architecture, placement=placement)
    probe, allowed = manifest.probes()[0], allowed_error(truth, "fp32")
    count = min(len(probe.token_ids), *map(len, truth.logprobs))
    known = np.array([layer[:count] for layer in truth.logprobs])
    errors = np.abs(lens_logprobs(reference, lens, probe, known.shape) - known)
    return Proof("fp32", errors.size, int((errors <= allowed).sum()), float(np.max(errors)), allowed, "lens")


def lens_logprobs(
    reference: ReferenceGraph, lens: LensGraph, probe: Continuation, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Log-probabilities [layers, tokens] of the probe's first tokens."""
    layers, count = shape
    targets = np.array(probe.token_ids[:count])
    names = [f"hidden_states.{layer}" for layer in range(layers)]
    states = reference.run(np.array([[*probe.prompt_ids, *targets[:-1]]]), outputs=names)
    found = [lens.read_states(states[name][0, -count:], targets, 1).answer_logprobs for name in names]
    return np.array(found, np.float64)


def allowed_error(likelihoods: Likelihoods, precision: str) -> float:
    """Twice PyTorch's own error, but never more than what would tell a graph from another model's."""
    return min(max(FACTOR * likelihoods.pytorch_errors[precision], FLOOR), MOST.get(precision, MOST["fp32"]))


def agreement(tokens: Sequence[int], expected: Sequence[int]) -> int:
    """How many tokens are equal before the first difference."""
    differing = [n for n, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b]
    return differing[0] if differing else len(expected)


def decode_logits(graph: DecodeGraph, probe: Continuation, most: int) -> Floats:
    """The decode graph's logits [tokens, V] that predict the probe's first tokens, at most `most`."""
    targets = probe.token_ids[:most]
    ids = [*probe.prompt_ids, *targets]
    with graph.sequence(len(ids)) as state:
        return state.read(ids[:-1], last=len(targets)).logits.copy()


def reference_logits(graph: ReferenceGraph, probe: Continuation, most: int) -> Floats:
    """The reference graph's logits for the same tokens."""
    targets = probe.token_ids[:most]
    outputs = graph.run(np.array([[*probe.prompt_ids, *targets][:-1]]))
    return outputs["logits"][0, -len(targets) :]


def largest_error(logits: Floats, probe: Continuation, truth: Sequence[float]) -> float:
    """The largest error among the log-probabilities of the probe's first tokens; NaN if any is NaN."""
    found = target_logprobs(logits, probe.token_ids[: len(logits)])
    return float(np.max(np.abs(np.subtract(found, truth[: len(found)]))))


def note_proof(bundle: Bundle, proof: Mapping[str, Any]) -> None:
    """Add a proof to proofs.json, beside what is signed; OSError or BundleError if that cannot be done."""
    path = bundle.folder / PROOFS
    proofs = read_object(path).get("proofs") if path.exists() else []
    if not isinstance(proofs, list):
        raise BundleError(f"{path} is damaged: its proofs are not a list; remove it")
    with whole_file(path) as beside:
        beside.write_text(json.dumps({"proofs": [*proofs, dict(proof)]}, indent=2) + "\n", encoding="utf-8")


def greedy_tokens(graph: DecodeGraph, prompt_ids: Sequence[int], count: int) -> list[int]:
    """The `count` most likely ids after `prompt_ids`."""
    with graph.sequence() as sequence:
        tokens = [sequence.advance(prompt_ids)]
        while len(tokens) < count:
            tokens.append(sequence.advance(tokens[-1:]))
    return tokens[:count]
