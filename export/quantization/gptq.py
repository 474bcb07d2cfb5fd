"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): later weights compensate for the rounding errors of earlier ones."""

import torch

from export.quantization.codes import QuantizedMatrix, as_quantized, fit_scales, round_to_codes

ROWS, COLUMNS = 4096, 64  # at a time, so that the updated part stays in the processor's cache


def gptq(weights: torch.Tensor, gram: torch.Tensor, *, bits: int, block: int, damping: float) -> QuantizedMatrix:
    """Codes for a matrix, fitted to the inputs it will get.

    Args:
        weights: [N, K], one row per output.
        gram: [K, K], the sum of x^T x over those inputs.
        bits, block: Bits per code, and weights per scale.
        damping: The share of the mean diagonal to add to the diagonal; more is nearer to plain rounding.
    """
    updates = inverse_factor(gram, damping)
    parts = [quantize_rows(rows.clone(), updates, bits, block) for rows in torch.split(weights.double(), ROWS)]
    codes, scales = (torch.cat(part) for part in zip(*parts, strict=True))
    return as_quantized(codes, scales, bits)


def inverse_factor(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor [K, K] of the damped inverse; row k says how to compensate for errors in column k."""
    gram = gram.double().clone()
    diagonal = gram.diagonal()
    diagonal += damping * diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def quantize_rows(
    weights: torch.Tensor, updates: torch.Tensor, bits: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(signed codes [n, K], scales [n, K / block]) of some rows, which are overwritten."""
    codes, scales = torch.empty_like(weights), []
    for first in range(0, weights.shape[1], block):
        scale = fit_scales(weights[:, first : first + block].float(), bits).double()
        for start in range(first, first + block, COLUMNS):
            end = min(start + COLUMNS, first + block)
            codes[:, start:end], errors = quantize_columns(
                weights[:, start:end], updates[start:end, start:end], scale[:, 0], bits
            )
            weights[:, end:] -= errors @ updates[start:end, end:]
        scales.append(scale)
    return codes, torch.cat(scales, dim=1)


def quantize_columns(
    weights: torch.Tensor, updates: torch.Tensor, scales: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(signed codes, errors) of adjacent columns [n, k], which are overwritten; `updates` is [k, k]."""
    codes, errors = torch.empty_like(weights), torch.empty_like(weights)
    for column in range(weights.shape[1]):
        factors = updates[column, column:]
        codes[:, column] = round_to_codes(weights[:, column], scales, bits)
        error = (weights[:, column] - codes[:, column] * scales) / factors[0]
        weights[:, column:] -= error[:, None] * factors
        errors[:, column] = error
    return codes, errors
