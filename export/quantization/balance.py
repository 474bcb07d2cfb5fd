"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): shrinks large channels in a norm and scales up their weights.

A row of inputs is rounded with one step size, so one large channel costs all others their precision. Dividing a channel
in the norm and multiplying its weights by the same factor changes only that.
"""

from collections.abc import Mapping

from torch import nn

from export.quantization.inputs import Inputs

NORMED = {"ln_1": "attn.c_attn", "ln_2": "mlp.c_fc"}  # a norm, and the one matrix that it feeds
STRENGTH = 0.5  # 0 leaves the inputs as they are, 1 makes all channels equally large
LEAST = 1e-5


def balance(block: nn.Module, inputs: Mapping[str, Inputs]) -> dict[str, Inputs]:
    """Balance a block for the inputs of its matrices, and return what those are then; its outputs stay the same."""
    balanced = dict(inputs)
    for norm, linear in NORMED.items():
        weight = block.get_parameter(f"{linear}.weight")  # [K, N]
        factors = inputs[linear].largest.clamp(min=LEAST) ** STRENGTH
        factors /= weight.abs().amax(dim=1).clamp(min=LEAST) ** (1 - STRENGTH)
        weight.mul_(factors[:, None])
        for parameter in block.get_submodule(norm).parameters():
            parameter.div_(factors)
        balanced[linear] = inputs[linear].divided(factors)
    return balanced
