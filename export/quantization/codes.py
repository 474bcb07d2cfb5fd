"""Quantized matrices: integer codes and scales, in the layout of ONNX Runtime's MatMulNBits and GatherBlockQuantized.

Its ContribOperators.md documents it: a weight is (code - 2^(bits - 1)) * scale; `block` adjacent weights of one output,
along the input, share a scale; two 4-bit codes make a byte, the lower first.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

LEAST_BLOCK, MOST_BLOCK = 16, 128  # the kernels' limits
Scales = dict[str, NDArray[np.float32]]  # [n_head, 1, head_size] of keys and values, by a decode graph's output names
TRIED = torch.linspace(0.7, 1.1, 9)  # factors for a scale, relative to the one that just covers the block
BESIDE = torch.tensor([-3, -2, -1, 1, 2, 3]) / 80  # what is then added to the best of them
AT_ONCE = 2**15  # weights whose scales are sought at a time: they stay in the processor's cache, and in one thread


@dataclass(frozen=True)
class QuantizedMatrix:
    """`codes` [N, K] uint8, `scales` [N, K / block] float32, for a matrix of N outputs and K inputs."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int

    @property
    def block(self) -> int:
        return int(self.codes.shape[1] // self.scales.shape[1])

    @property
    def scale_an_output(self) -> bool:
        """Whether all weights of an output share a scale."""
        return bool(self.scales.shape[1] == 1)

    @property
    def kernel_block(self) -> int:
        """The block size for the kernels, a power of two: if an output has one scale, it is repeated."""
        return largest_block(self.block, MOST_BLOCK)

    def kernel_scales(self) -> NDArray[np.float32]:
        """The scales [N, K / kernel_block], repeated for the kernels' blocks."""
        return np.repeat(self.scales, self.block // self.kernel_block, axis=1)

    def output_sums(self) -> NDArray[np.float32]:
        """The sum [N] of each output's weights."""
        sums: NDArray[np.float32] = self.dequantized().double().sum(dim=1).float().numpy()
        return sums

    def dequantized(self) -> torch.Tensor:
        """The weights [N, K] that the codes stand for."""
        values = self.codes.astype(np.float32) - 2 ** (self.bits - 1)
        return torch.from_numpy(values * np.repeat(self.scales, self.block, axis=1))

    def packed(self) -> NDArray[np.uint8]:
        """The codes as bytes [N, K * bits / 8]."""
        return self.codes if self.bits == 8 else self.codes[:, 0::2] | self.codes[:, 1::2] << np.uint8(4)


@dataclass(frozen=True)
class QuantizedWeights:
    """A whole model by the checkpoint's names: matrices as codes, all other tensors in float32."""

    matrices: dict[str, QuantizedMatrix]
    tensors: dict[str, torch.Tensor]


def largest_block(inputs: int, most: int) -> int:
    """The largest power of two, at most `most`, that divides the number of inputs."""
    return min(most, inputs & -inputs)


def fit_scales(weights: torch.Tensor, bits: int) -> torch.Tensor:
    """The scale [..., 1] of each block [..., block] that leaves the smallest squared error of those that are tried.

    A block's largest weight may get the extra code of the negative side, so a scale may be negative.
    """
    blocks = weights.flatten(0, -2)
    parts = torch.split(blocks, max(1, AT_ONCE // blocks.shape[1]))
    return torch.cat([search_scales(part, bits) for part in parts]).reshape(*weights.shape[:-1], 1)


def search_scales(weights: torch.Tensor, bits: int) -> torch.Tensor:
    """The scales [N, 1] of some blocks [N, block]: of coarse steps the best, then of fine steps beside it."""
    largest = weights.gather(-1, weights.abs().argmax(-1, keepdim=True))
    covering = -largest / 2 ** (bits - 1)
    covering[covering == 0] = 1.0
    best, least = torch.ones_like(covering), torch.full_like(covering, torch.inf)

    def attempt(factors: torch.Tensor) -> None:
        nonlocal best, least
        error = squared_error(weights, covering * factors, bits)
        best, least = torch.where(error < least, factors, best), torch.minimum(error, least)

    for factor in torch.cat([TRIED, -TRIED]):
        attempt(factor)
    around = best
    for step in BESIDE:
        attempt(around + step)
    found: torch.Tensor = covering * best
    return found


def squared_error(weights: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """The summed squares [N, 1] of what rounding changes."""
    errors: torch.Tensor = (round_to_codes(weights, scales, bits).mul_(scales) - weights).square_()
    return errors.sum(-1, keepdim=True)


def round_to_codes(weights: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed codes, from -2^(bits - 1) to 2^(bits - 1) - 1, as floating-point numbers."""
    half = 2 ** (bits - 1)
    return (weights / scales).round_().clamp_(-half, half - 1)


def as_quantized(codes: torch.Tensor, scales: torch.Tensor, bits: int) -> QuantizedMatrix:
    """A QuantizedMatrix from signed codes [N, K] and scales [N, K / block]."""
    unsigned = (codes + 2 ** (bits - 1)).to(torch.uint8)
    return QuantizedMatrix(unsigned.numpy(), scales.float().numpy(), bits)
