"""Rounds to int8 in PyTorch what graphs round, to measure the error that they may have.

The arithmetic is that of the graphs. Of int8 and int4, they are the inputs of matrix products: `MatMulNBits` rounds
blocks of a row around zero, each scaled by its largest; integer products round whole rows, and the activation
function's outputs from their least to their largest. Of an int8 cache, they are keys and values, by fixed scales.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from export.architecture import LM_HEAD, WTE
from export.quantization.codes import QuantizedMatrix, QuantizedWeights, Scales

Rounding = Callable[[Tensor], Tensor]
LEAST = 1e-30  # a step is never zero


@contextmanager
def rounded_inputs(model: GPT2LMHeadModel, weights: QuantizedWeights, *, integer: bool) -> Iterator[None]:
    """Round the inputs of every matrix of `model` as the decode graph does, or as `integer` products do."""
    with ExitStack() as hooks:
        for name, matrix in multiplied(weights).items():
            rounding = find_rounding(name, matrix, integer=integer)
            module = model.get_submodule(name)
            hooks.callback(module.register_forward_pre_hook(as_hook(rounding)).remove)
        yield


@contextmanager
def rounded_cache(model: GPT2LMHeadModel, scales: Scales) -> Iterator[None]:
    """Round the keys and values of every layer of `model`, those of the ids that are read too."""
    with ExitStack() as hooks:
        for layer, block in enumerate(model.transformer.h):
            found = [scales[f"present.{layer}.{part}"] for part in ("key", "value")]
            steps = [torch.from_numpy(scale).reshape(-1) for scale in found]  # [C] each
            hooks.callback(block.attn.c_attn.register_forward_hook(rounding_hook(*steps)).remove)
        yield


def rounding_hook(key_step: Tensor, value_step: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def hook(_: nn.Module, __: object, packed: Tensor) -> Tensor:
        query, key, value = packed.chunk(3, dim=-1)
        return torch.cat([query, to_codes(key, key_step), to_codes(value, value_step)], dim=-1)

    return hook


def to_codes(rows: Tensor, step: Tensor) -> Tensor:
    """Round rows [..., C] to int8's codes of steps [C]."""
    step = step.to(rows.dtype)
    return (rows / step).round().clamp(-128, 127) * step


def multiplied(weights: QuantizedWeights) -> dict[str, QuantizedMatrix]:
    """The multiplied matrices by module name: without look-ups in `wte`, which also is `lm_head` if they are tied."""
    head = weights.matrices.get(LM_HEAD, weights.matrices[WTE])
    blocks = {name: matrix for name, matrix in weights.matrices.items() if name not in (WTE, LM_HEAD)}
    return {name.removesuffix(".weight"): matrix for name, matrix in {**blocks, LM_HEAD: head}.items()}


def find_rounding(name: str, matrix: QuantizedMatrix, *, integer: bool) -> Rounding:
    if not integer or name == LM_HEAD.removesuffix(".weight"):
        return lambda rows: by_block(rows, matrix.kernel_block)
    return one_sided if name.endswith("mlp.c_proj") else by_row


def as_hook(rounding: Rounding) -> Callable[[object, tuple[Tensor, ...]], tuple[Tensor]]:
    return lambda _, inputs: (rounding(inputs[0]),)


def by_block(rows: Tensor, block: int) -> Tensor:
    """Round rows [..., K] block by block along K."""
    return by_row(rows.reshape(*rows.shape[:-1], -1, block)).reshape(rows.shape)


def by_row(rows: Tensor) -> Tensor:
    """Round each row to 127 steps on either side of zero."""
    step = (rows.abs().amax(-1, keepdim=True) / 127).clamp(min=LEAST)
    return (rows / step).round() * step


def one_sided(rows: Tensor) -> Tensor:
    """Round each row to 255 steps from its least to its largest, zero among them."""
    low, high = rows.amin(-1, keepdim=True).clamp(max=0), rows.amax(-1, keepdim=True).clamp(min=0)
    step = ((high - low) / 255).clamp(min=LEAST)
    zero = (-low / step).round()
    return (((rows / step).round() + zero).clamp(0, 255) - zero) * step
