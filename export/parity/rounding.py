"""What rounding inputs to int8 costs, worked out in PyTorch: the measure of int8 and int4, as float32's own error is
of float32.

The arithmetic is that of the graphs: `MatMulNBits` rounds blocks of a row around zero, each by its largest; integer
products round whole rows, and what leaves the activation function from its least to its largest.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor
from transformers import GPT2LMHeadModel

from export.architecture import LM_HEAD, WTE
from export.quantization.codes import QuantizedMatrix, QuantizedWeights

Rounding = Callable[[Tensor], Tensor]
LEAST = 1e-30  # a step is never zero


@contextmanager
def rounded_inputs(model: GPT2LMHeadModel, weights: QuantizedWeights, *, integer: bool) -> Iterator[None]:
    """Round what every matrix of `model` is given, as the decode graph does, or as `integer` products do."""
    with ExitStack() as hooks:
        for name, matrix in multiplied(weights).items():
            rounding = find_rounding(name, matrix, integer=integer)
            module = model.get_submodule(name)
            hooks.callback(module.register_forward_pre_hook(as_hook(rounding)).remove)
        yield


def multiplied(weights: QuantizedWeights) -> dict[str, QuantizedMatrix]:
    """By the module's name; `wte` is looked up in, and is `lm_head` too where that has no matrix of its own."""
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
    """[..., K] by blocks of K."""
    return by_row(rows.reshape(*rows.shape[:-1], -1, block)).reshape(rows.shape)


def by_row(rows: Tensor) -> Tensor:
    """To 127 steps on either side of zero."""
    step = (rows.abs().amax(-1, keepdim=True) / 127).clamp(min=LEAST)
    return (rows / step).round() * step


def one_sided(rows: Tensor) -> Tensor:
    """To 255 steps from the least to the largest, zero among them."""
    low, high = rows.amin(-1, keepdim=True).clamp(max=0), rows.amax(-1, keepdim=True).clamp(min=0)
    step = ((high - low) / 255).clamp(min=LEAST)
    zero = (-low / step).round()
    return (((rows / step).round() + zero).clamp(0, 255) - zero) * step
