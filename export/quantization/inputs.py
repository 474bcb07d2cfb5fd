"""Measures what the matrices of a block are given: how their input channels go together, and how large each gets."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.majors import run_block

WIDTH = 512  # channels that are multiplied at once
MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # those of a block, each a Conv1D


@dataclass(frozen=True)
class Inputs:
    """Input rows x [R, K] of a matrix: `gram` [K, K] is the sum of x^T x, `largest` [K] each channel's largest size."""

    gram: Tensor
    largest: Tensor

    def divided(self, factors: Tensor) -> "Inputs":
        """The same of rows divided by factors [K]."""
        return Inputs(self.gram / factors / factors[:, None], self.largest / factors)


def measure_inputs(block: nn.Module, hidden: Sequence[Tensor]) -> dict[str, Inputs]:
    """The inputs of each matrix of a block that is given `hidden`, [B, S, C] each."""
    found: dict[str, Inputs] = {}

    def add(name: str, rows: Tensor) -> None:
        gram, largest = gram_of(rows), rows.abs().amax(dim=0)
        if name in found:
            gram, largest = found[name].gram.add_(gram), torch.maximum(found[name].largest, largest)
        found[name] = Inputs(gram, largest)

    with watching({name: block.get_submodule(name) for name in MATRICES}, add):
        for part in hidden:
            run_block(block, part)
    return found


def gram_of(rows: Tensor) -> Tensor:
    """x^T x [K, K] over rows x [R, K]: it is symmetric, so that half of it is a copy."""
    size = rows.shape[1]
    gram = rows.new_empty(size, size)
    for start in range(0, size, WIDTH):
        end = start + WIDTH
        torch.mm(rows[:, start:].T, rows[:, start:end], out=gram[start:, start:end])
        gram[start:end, end:] = gram[end:, start:end].T
    return gram


@contextmanager
def watching(modules: dict[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """During the block, call `see` with the name and the input rows [R, K] of each module that runs."""

    def hook(name: str) -> Callable[..., None]:
        return lambda _, inputs: see(name, inputs[0].flatten(0, -2))

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
