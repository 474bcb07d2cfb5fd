"""Makes the standards by which served int8 and int4 graphs are proved without PyTorch (`runtime.proof.rounded`)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from export.majors import cache_of
from export.parity.report import FLOOR, Row
from export.parity.rounding import LEAST, rounded_cache, rounded_inputs
from export.quantization.codes import QuantizedWeights, Scales
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import Kind
from runtime.graphs.work import MANY
from runtime.proof.rounded import LAST, RoundedStandard, centred, errors
from runtime.proof.sketch import sketches

LENGTH = MANY + 32  # tokens, if the context has as many
Tensors = dict[str, Any]


def measure_rounding(
    model: GPT2LMHeadModel,
    weights: QuantizedWeights,
    token_ids: Sequence[int],
    *,
    precision: str,
    kinds: Sequence[Kind],
) -> RoundedStandard:
    """The standard from `model`, in float64 with dequantized weights, over a text of at most `LENGTH` tokens."""
    ids = list(token_ids[:LENGTH])
    truth = read(model, ids)
    noise = {}
    for integer in {"prefill" in kind for kind in kinds}:
        with rounded_inputs(model, weights, integer=integer):
            noise[integer] = errors_of(read(model, ids), truth)
    return make_standard(precision, ids, truth, {kind: noise["prefill" in kind] for kind in kinds})


def measure_cache_rounding(
    model: GPT2LMHeadModel,
    weights: QuantizedWeights | None,
    token_ids: Sequence[int],
    scales: Scales,
    *,
    precision: str,
) -> RoundedStandard:
    """The same for int8 keys and values, which are in units of their scales, as the cache holds them.

    PyTorch's error is that with keys and values rounded, beside the inputs of products if there are `weights`. Float32
    noise is no unit: a key near the middle between two codes becomes the one or the other by its last bits.
    """
    ids = list(token_ids[:LENGTH])
    truth = in_steps(read(model, ids), scales)
    with ExitStack() as rounding:
        if weights:
            rounding.enter_context(rounded_inputs(model, weights, integer=False))
        rounding.enter_context(rounded_cache(model, scales))
        noise = errors_of(in_steps(read(model, ids), scales), truth)
    return make_standard(precision, ids, truth, {"int8_cache": noise})


def in_steps(tensors: Tensors, scales: Scales) -> Tensors:
    """Keys and values in units of their scales."""
    return {name: tensor / scales[name] if name in scales else tensor for name, tensor in tensors.items()}


def errors_of(rounded: Tensors, truth: Tensors) -> dict[str, float]:
    return {name: error_of(rounded[name], true) for name, true in truth.items()}


def make_standard(
    precision: str, ids: list[int], truth: Tensors, noise: dict[Kind, dict[str, float]]
) -> RoundedStandard:
    return RoundedStandard(precision, ids, sketches(truth), noise)


def error_of(rounded: Any, truth: Any) -> float:
    """The absolute error, at least float32's tolerance, for tensors that rounding does not change."""
    floor = max(FLOOR * float(np.linalg.norm(truth)), LEAST)
    return max(float(np.linalg.norm(rounded - truth)), floor)


@torch.no_grad()
def read(model: GPT2LMHeadModel, token_ids: Sequence[int]) -> Tensors:
    """Keys, values, and the last logits minus their mean, under the names of the graphs' outputs."""
    result = model(torch.tensor([list(token_ids)]), use_cache=True)
    found: Tensors = {}
    for number, layer in enumerate(cache_of(result).layers):
        found[f"present.{number}.key"], found[f"present.{number}.value"] = layer.keys.numpy(), layer.values.numpy()
    return {**found, "logits": centred(result.logits[0, -LAST:].numpy())}


def judge_rounded(bundle: Bundle, standard: RoundedStandard) -> Iterator[Row]:
    """Rows for the graphs of a precision as they are served here; errors are relative to the norm of the truth."""
    for kind, noise in standard.pytorch_errors.items():
        for name, error in errors(bundle, standard, kind).items():
            size = float(np.sqrt(np.mean(np.square(standard.sketches[name])))) or 1.0
            case = f"{len(standard.token_ids)} tokens, inputs rounded"
            yield Row(f"{kind} {standard.precision} rounded", name, case, error / size, noise[name] / size)
