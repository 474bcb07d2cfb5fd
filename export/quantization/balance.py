"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): shrinks large channels in a norm and scales up their weights.

A row of inputs is rounded with one step size, so one large channel costs all others their precision. Dividing a channel
in the norm and multiplying its weights by the same factor changes only that.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.majors import run_block
from export.quantization.watching import watching

NORMED = {"ln_1": "attn.c_attn", "ln_2": "mlp.c_fc"}  # a norm, and the one matrix that it feeds
STRENGTH = 0.5  # 0 leaves the inputs as they are, 1 makes all channels equally large
LEAST = 1e-5


def balance(block: nn.Module, hidden: Sequence[Tensor]) -> None:
    """Balance a block for its inputs, [B, S, C] each; what it computes stays the same."""
    largest = {name: torch.zeros(()) for name in NORMED.values()}

    def see(name: str, rows: Tensor) -> None:
        largest[name] = torch.maximum(largest[name], rows.abs().amax(dim=0))

    with watching({name: block.get_submodule(name) for name in largest}, see):
        for part in hidden:
            run_block(block, part)
    for norm, linear in NORMED.items():
        weight = block.get_parameter(f"{linear}.weight")  # [K, N]
        factors = largest[linear].clamp(min=LEAST) ** STRENGTH
        factors /= weight.abs().amax(dim=1).clamp(min=LEAST) ** (1 - STRENGTH)
        weight.mul_(factors[:, None])
        for parameter in block.get_submodule(norm).parameters():
            parameter.div_(factors)
