"""Judges a quantized precision: its graph's parity with dequantized weights, and its cost in perplexity.

Parity is checked as for float32, against the checkpoint with dequantized weights, in the served graph except for
`accuracy_level`, so that inputs are not rounded to int8. Perplexity is measured on texts that were not used for
calibration, as the served graphs read them: each text at once, and all side by side, token by token.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel

from export.architecture import LM_HEAD, WTE
from export.parity.logits import distance
from export.parity.rounding import rounded_inputs
from export.quantization.codes import QuantizedWeights
from runtime.engine.scoring import target_logprobs
from runtime.graphs.decode import DecodeGraph
from runtime.graphs.work import Work

MOST_ROUNDING = 0.03  # more than twice what trained checkpoints have shown
FACTOR = 2.0  # times PyTorch's own error by rounding: an untrained checkpoint's logits may be almost only noise
FLOAT32_ARITHMETIC = 1  # of MatMulNBits' accuracy_level
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Quality:
    """Perplexities of the same texts: PyTorch's in float32, the graphs' reading all at once and token by token.

    `agreement` is the share of positions where the most likely id is PyTorch's. `rounding` is the error of rounding
    inputs: the relative distance of logits read all at once from PyTorch's with dequantized weights.
    `pytorch_rounding` is the same error in PyTorch itself.
    """

    precision: str
    float32: float
    at_once: float
    token_by_token: float
    agreement: float
    rounding: float
    most_cost: float
    pytorch_rounding: float = 0.0

    @property
    def cost(self) -> float:
        """The larger of the graphs' two perplexities, relative to float32's, minus 1."""
        return max(self.at_once, self.token_by_token) / self.float32 - 1

    @property
    def most_rounding(self) -> float:
        return max(MOST_ROUNDING, FACTOR * self.pytorch_rounding)

    @property
    def passed(self) -> bool:
        return self.cost <= self.most_cost and self.rounding <= self.most_rounding

    @property
    def problem(self) -> str:
        """Why it fails, as part of a line."""
        if not self.cost <= self.most_cost:
            return f"perplexity {self.cost:+.2%} over float32's {self.float32:.2f} (at most {self.most_cost:+.1%})"
        return f"logits {self.rounding:.2%} off by rounding (at most {self.most_rounding:.1%})"

    def line(self) -> str:
        return (
            f"{self.precision}: perplexity {self.cost:+.2%} over float32's {self.float32:.2f} (at most "
            f"{self.most_cost:.1%}), "
            f"logits {self.rounding:.2%} off by rounding (at most {self.most_rounding:.1%}), "
            f"{self.agreement:.1%} of the likeliest tokens the same: {'pass' if self.passed else 'FAIL'}"
        )

    def as_manifest(self) -> dict[str, Any]:
        return {**asdict(self), "cost": self.cost, "passed": self.passed}


def with_weights(model: GPT2LMHeadModel, weights: QuantizedWeights) -> GPT2LMHeadModel:
    """Put the dequantized weights and the tensors beside them into `model`."""
    matrices = {name: matrix.dequantized() for name, matrix in weights.matrices.items()}
    as_stored = {name: matrix if name in (WTE, LM_HEAD) else matrix.T for name, matrix in matrices.items()}
    with torch.no_grad():
        for name, tensor in {**weights.tensors, **as_stored}.items():
            model.get_parameter(name).copy_(tensor)
    return model


@contextmanager
def exact_graph(path: Path) -> Iterator[Path]:
    """Lend a copy of the graph at `path`, beside it, with float32 arithmetic."""
    proto = onnx.load(path, load_external_data=False)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = FLOAT32_ARITHMETIC
    exact = path.with_suffix(".exact.onnx")
    onnx.save(proto, exact)
    try:
        yield exact
    finally:
        exact.unlink()


@dataclass(frozen=True)
class Readings:
    """How PyTorch reads `texts` [B, S]: the mean negative log-probability of an id, its most likely ids [B, S - 1]."""

    texts: Ids
    loss: float
    expected: Ids


def judge_quality(
    graph: DecodeGraph,
    readings: Readings,
    model: GPT2LMHeadModel,
    weights: QuantizedWeights | None,
    *,
    precision: str,
    most_cost: float,
    integer: bool = False,
) -> Quality:
    """Measure perplexities and rounding.

    Args:
        readings: PyTorch's, of the checkpoint's own weights.
        model: In float32 with the weights of the graph.
        integer: Whether texts read all at once go through integer products.
    """
    at_once, rounding, pytorch_rounding = [], [0.0], [0.0]
    for text in readings.texts:
        truth = logits_of(model, text)
        with graph.sequence() as state:
            logits = state.read(text.tolist(), last=len(text)).logits
            at_once.append(target_logprobs(logits[:-1], text[1:].tolist()))
            rounding.append(distance(logits, truth))
        if weights:
            with rounded_inputs(model, weights, integer=integer):
                pytorch_rounding.append(distance(logits_of(model, text), truth))
    by_token, chosen = read_in_steps(graph, readings.texts)
    return Quality(
        precision,
        float32=math.exp(readings.loss),
        at_once=math.exp(-np.mean(at_once)),
        token_by_token=math.exp(-np.mean(by_token)),
        agreement=float(np.mean(chosen == readings.expected)),
        rounding=max(rounding),
        most_cost=most_cost,
        pytorch_rounding=max(pytorch_rounding),
    )


def read_by_pytorch(model: GPT2LMHeadModel, texts: Ids) -> Readings:
    """How PyTorch reads `texts` [B, S]."""
    logits = [torch.from_numpy(logits_of(model, text[:-1])) for text in texts]
    losses = [cross_entropy(row, torch.from_numpy(text[1:])).item() for row, text in zip(logits, texts, strict=True)]
    return Readings(texts, float(np.mean(losses)), torch.stack(logits).argmax(-1).numpy())


@torch.no_grad()
def logits_of(model: GPT2LMHeadModel, text: Ids) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = model(torch.from_numpy(text[None]), use_cache=False).logits[0].numpy()
    return logits


def read_in_steps(graph: DecodeGraph, texts: Ids) -> tuple[NDArray[np.float64], Ids]:
    """(log-probabilities, the most likely ids), [B, S - 1] each, after each id: all texts side by side, id by id."""
    slots, logprobs, chosen = graph.slots(len(texts)), [], []
    for row, text in enumerate(texts):
        slots.reserve(row, len(text))
    for place, (ids, following) in enumerate(pairwise(texts.T.tolist())):
        answers = slots.run([Work(row, [token], place, logits=True) for row, token in enumerate(ids)])
        logprobs.append(target_logprobs(np.concatenate([answer.logits for answer in answers]), following))
        chosen.append([answer.next_ids[0] for answer in answers])
    return np.array(logprobs).T, np.array(chosen).T
