"""The shortlist: 8-bit codes of `lm_head` that find the most likely id while reading fewer bytes.

`lm_head` is a third of the weights that GPT-2 small reads per token. A product with its 8-bit codes, and a bound on how
far each logit can be off, leave a few candidates; their float32 logits decide which is the largest. If bounds and
float32's own noise leave a doubt, all logits are computed. So the result is always that of all logits.

The bound is by Cauchy and Schwarz, for a row w of the matrix, its codes' row q, and the input x, rounded to x + r:
|w x - q (x + r)| <= |w - q| |x| + |q| |r|. Rows are quantized minus their mean, which adds the same to all logits, and
with every input scaled to a typical size of 1, which keeps a few large inputs from widening every bound.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from export.architecture import start_id
from export.majors import CACHE, cache_of
from export.quantization.codes import (
    LEAST_BLOCK,
    MOST_BLOCK,
    QuantizedMatrix,
    QuantizedWeights,
    as_quantized,
    largest_block,
    round_to_codes,
)

FILE = "decode.onnx_data"  # beside the decode graph
CODES = "shortlist"
BITS = 8
CANDIDATES = 64
ROWS = 4096  # quantized at once
LEAST_BYTES = 8 << 20  # of lm_head in float32; for a smaller one a shortlist costs more than it saves
LEAST_CERTAIN = 0.9  # share of the inputs tried; with more in doubt, both products run too often
TIE = 2.0**-16  # of the largest logit: closer ones might change places if sums had another order


@dataclass(frozen=True)
class Shortlist:
    """The shortlist of `lm_head`'s weights [V, C].

    Attributes:
        matrix: Codes of the weights, centred and scaled.
        scaling: [C], the factors of the inputs.
        mean: [C, 1], the mean of all ids' weights.
        bounds: [2, V], the norms of the codes' errors and of the dequantized codes.
        longest: The largest norm of a row of the weights.
    """

    matrix: QuantizedMatrix
    scaling: Tensor
    mean: Tensor
    bounds: Tensor
    longest: float

    def weights(self) -> QuantizedWeights:
        """The codes and tensors that the graph's nodes read."""
        return QuantizedWeights({CODES: self.matrix}, self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        return {"shortlist.scaling": self.scaling, "shortlist.mean": self.mean, "shortlist.bounds": self.bounds}


@torch.no_grad()
def find_shortlist(model: GPT2LMHeadModel) -> Shortlist | None:
    """A shortlist for a model in float32, or None if it would not be faster."""
    weights = model.lm_head.weight
    if 4 * weights.numel() < LEAST_BYTES or weights.shape[1] % LEAST_BLOCK:
        return None
    inputs = head_inputs(model)
    shortlist = make_shortlist(weights, inputs)
    return shortlist if certain_share(shortlist, weights, inputs) >= LEAST_CERTAIN else None


def make_shortlist(weights: Tensor, inputs: Tensor) -> Shortlist:
    """The shortlist of `weights` [V, C], V at least `CANDIDATES`, for typical `inputs` [R, C] of `lm_head`."""
    size = inputs.double().square().mean(0).sqrt()
    size = size.clamp(min=max(float(size.max()) * 1e-3, 1e-6))
    mean = weights.mean(0, dtype=torch.float64).float()
    scaling = (1 / size).float()
    matrices, bounds = zip(*(shortlist_rows(rows, mean, scaling) for rows in torch.split(weights, ROWS)), strict=True)
    codes, scales = (np.concatenate(parts) for parts in zip(*((m.codes, m.scales) for m in matrices), strict=True))
    longest = float(torch.linalg.vector_norm(weights, dim=1).max())
    return Shortlist(QuantizedMatrix(codes, scales, BITS), scaling, mean[:, None], torch.cat(bounds, dim=1), longest)


def shortlist_rows(weights: Tensor, mean: Tensor, scaling: Tensor) -> tuple[QuantizedMatrix, Tensor]:
    """Codes of some rows [R, C], and their bounds [2, R]; a part at a time, so that float64 takes little memory."""
    target = (weights.double() - mean) / scaling
    matrix = round_to_nearest(target)
    kept = matrix.dequantized().double()
    return matrix, torch.stack([(target - kept).norm(dim=1), kept.norm(dim=1)]).float()


def round_to_nearest(weights: Tensor) -> QuantizedMatrix:
    """Quantize weights [N, K], the scale of each block set by its largest weight."""
    blocks = weights.reshape(len(weights), -1, largest_block(weights.shape[1], MOST_BLOCK))
    scales = (blocks.abs().amax(-1, keepdim=True) / (2 ** (BITS - 1) - 1)).clamp(min=1e-20).float().double()
    return as_quantized(round_to_codes(blocks, scales, BITS).flatten(1), scales[..., 0], BITS)


def certain_share(shortlist: Shortlist, weights: Tensor, inputs: Tensor) -> float:
    """The share of `inputs` [R, C] for which the bounds leave no doubt, computed as in the graph."""
    scaled = inputs * shortlist.scaling
    guessed = scaled @ shortlist.matrix.dequantized().T  # [R, V]
    sizes = torch.stack([scaled.norm(dim=1), rounding_size(scaled)], dim=1)
    upper = (guessed + sizes @ shortlist.bounds).topk(CANDIDATES)
    exact = torch.einsum("rc,rkc->rk", inputs, weights[upper.indices]).topk(2).values
    rival = torch.maximum(exact[:, 1], upper.values[:, -1] + (inputs @ shortlist.mean)[:, 0])
    certain = exact[:, 0] - rival > TIE * shortlist.longest * inputs.norm(dim=1)
    return float(certain.float().mean())


def rounding_size(scaled: Tensor) -> Tensor:
    """Bounds [R] on the norm of the error of rounding inputs [R, C] to 8 bits."""
    size: Tensor = scaled.abs().amax(1) * rounding_factor(scaled.shape[1])
    return size


def rounding_factor(width: int) -> float:
    """The error bound for a row whose largest input is 1: half a step per input. Rounding by block stays below it."""
    return math.sqrt(width) / 254


TEXTS, LONGEST = 4, 64


@torch.no_grad()
def head_inputs(model: GPT2LMHeadModel) -> Tensor:
    """Inputs [R, C] of `lm_head` over a few sampled texts, always the same ones."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    ids, past, inputs = torch.full((TEXTS, 1), start_id(config)), None, []
    for _ in range(min(LONGEST, config.n_positions)):
        result = model.transformer(ids, **{CACHE: past}, use_cache=True)
        past = cache_of(result)
        inputs.append(result.last_hidden_state[:, 0])
        ids = torch.multinomial(model.lm_head(inputs[-1]).softmax(-1), 1, generator=generator)
    return torch.cat(inputs)
