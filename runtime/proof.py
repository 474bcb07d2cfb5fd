"""Whether a graph says on a device what PyTorch said where the bundle was made, and the note of it in the manifest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.decode_session import DecodeSession, open_decode_session
from runtime.manifest import NAME, Continuation, read_object
from runtime.placement import Placement
from runtime.replay import greedy_tokens
from runtime.scoring import target_logprobs

FACTOR = 2.0
FLOOR = 2e-5  # two roundings of a logit near 100 in float32


@dataclass(frozen=True)
class Proof:
    """One precision on one device.

    Attributes:
        tokens: Greedy tokens that PyTorch gave.
        replayed: How many of them are said again, each text up to its first difference.
        error: The largest difference of a token's log-probability from PyTorch's float64; None where the bundle was
            made before those were noted.
        allowed: Twice that of PyTorch in this precision.
    """

    precision: str
    tokens: int
    replayed: int
    error: float | None
    allowed: float | None

    @property
    def passed(self) -> bool:
        """float32 says every token again; in lower precisions tokens that are nearly as likely may change places."""
        same = 0 < self.tokens == self.replayed
        if self.error is None or self.allowed is None:
            return same
        near = self.error <= self.allowed  # which no NaN is
        return near and self.tokens > 0 and (same or self.precision != "fp32")

    def __str__(self) -> str:
        words = f"{self.precision}: {self.replayed} of {self.tokens} greedy tokens as PyTorch's"
        if self.error is not None and self.allowed is not None:
            words += f", log-probabilities within {self.error:.1e} of float64's (at most {self.allowed:.1e})"
        return words


def prove(bundle: Bundle, precision: str, placement: Placement) -> Proof:
    """Replay the manifest's greedy tokens, and hold their log-probabilities against PyTorch's."""
    session = open_decode_session(bundle, precision=precision, placement=placement)
    probes = bundle.manifest.probes()
    equal = sum(
        agreement(greedy_tokens(session, probe.prompt_ids, len(probe.token_ids)), probe.token_ids) for probe in probes
    )
    tokens = sum(len(probe.token_ids) for probe in probes)
    likelihoods = bundle.manifest.likelihoods()
    if likelihoods is None or precision not in likelihoods.pytorch_errors:
        return Proof(precision, tokens, equal, None, None)
    pairs = zip(probes, likelihoods.logprobs, strict=False)  # a caller may have shortened the probes
    error = float(np.max([largest_error(session, probe, truth) for probe, truth in pairs]))
    return Proof(precision, tokens, equal, error, max(FACTOR * likelihoods.pytorch_errors[precision], FLOOR))


def agreement(tokens: Sequence[int], expected: Sequence[int]) -> int:
    """How many tokens are equal before the first that is not."""
    differing = [n for n, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b]
    return differing[0] if differing else len(expected)


def largest_error(session: DecodeSession, probe: Continuation, truth: Sequence[float]) -> float:
    """Of the log-probabilities of the probe's first tokens."""
    targets = probe.token_ids[: len(truth)]
    ids = [*probe.prompt_ids, *targets]
    with session.sequence(len(ids)) as state:
        found = target_logprobs(state.read(ids[:-1], last=len(targets)).logits, targets)
    return float(np.max(np.abs(np.subtract(found, truth[: len(targets)]))))  # NaN if any is


def note_proof(bundle: Bundle, proof: Mapping[str, Any]) -> None:
    """Add it to the manifest; OSError where the bundle cannot be written."""
    path = bundle.folder / NAME
    content = read_object(path)
    content["parity"] = {**content["parity"], "proofs": [*content["parity"].get("proofs", []), dict(proof)]}
    beside = path.with_suffix(".tmp")
    try:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
