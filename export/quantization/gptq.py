"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): later weights compensate for the rounding errors of earlier ones."""

import torch

from export.quantization.codes import QuantizedMatrix, as_quantized, fit_scales, round_to_codes

ROWS, COLUMNS = 4096, 64  # at a time, so that the updated part stays in the processor's cache
SOLVED = 256  # columns that the solver inverts at once


def gptq(weights: torch.Tensor, gram: torch.Tensor, *, bits: int, block: int, damping: float) -> QuantizedMatrix:
    """Codes for a matrix, fitted to the inputs it will get.

    Args:
        weights: [N, K], one row per output.
        gram: [K, K], the sum of x^T x over those inputs.
        bits, block: Bits per code, and weights per scale.
        damping: The share of the mean diagonal to add to the diagonal; more is nearer to plain rounding.
    """
    updates = inverse_factor(gram, damping)
    parts = [quantize_rows(rows, updates, bits, block) for rows in torch.split(weights, ROWS)]
    codes, scales = (torch.cat(part) for part in zip(*parts, strict=True))
    return as_quantized(codes, scales, bits)


def inverse_factor(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor [K, K] of the damped inverse; row k says how to compensate for errors in column k.

    Turned about, the Cholesky factor of the gram matrix is the inverse of that: the inverse itself is not needed.
    """
    gram = gram.to(torch.float64, copy=True)
    diagonal = gram.diagonal()
    diagonal += damping * diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
    return triangular_inverse(torch.linalg.cholesky(gram.flip(0, 1))).flip(0, 1)


def triangular_inverse(lower: torch.Tensor) -> torch.Tensor:
    """The inverse of a lower triangular matrix, by halves: matrix products are several times as fast as a solver."""
    size = len(lower)
    if size <= SOLVED:
        solved: torch.Tensor = torch.linalg.solve_triangular(lower, torch.eye(size, dtype=lower.dtype), upper=False)
        return solved
    half, inverse = size // 2, torch.zeros_like(lower)
    first, second = triangular_inverse(lower[:half, :half]), triangular_inverse(lower[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, second
    inverse[half:, :half] = times_lower(lower[half:, :half], first)
    inverse[half:, :half] = lower_times(second, inverse[half:, :half]).neg_()
    return inverse


def lower_times(lower: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The product of a lower triangular matrix and any other, by halves, without the zeros of the one."""
    half = len(lower) // 2
    if half < SOLVED:
        return lower @ right
    found = torch.empty_like(right)
    found[:half] = lower_times(lower[:half, :half], right[:half])
    found[half:] = lower_times(lower[half:, half:], right[half:]).addmm_(lower[half:, :half], right[:half])
    return found


def times_lower(left: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """The product of any matrix and a lower triangular one."""
    half = len(lower) // 2
    if half < SOLVED:
        return left @ lower
    found = torch.empty_like(left)
    found[:, half:] = times_lower(left[:, half:], lower[half:, half:])
    found[:, :half] = times_lower(left[:, :half], lower[:half, :half]).addmm_(left[:, half:], lower[half:, :half])
    return found


def quantize_rows(
    weights: torch.Tensor, updates: torch.Tensor, bits: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(signed codes [n, K], scales [n, K / block]) of some rows, kept by columns: those are worked on one by one."""
    columns = weights.T.double().contiguous()  # [K, n]
    codes, scales = torch.empty_like(columns), []
    for first in range(0, len(columns), block):
        scale = fit_scales(columns[first : first + block].T.float(), bits).double()
        for start in range(first, first + block, COLUMNS):
            end = min(start + COLUMNS, first + block)
            codes[start:end], errors = quantize_columns(
                columns[start:end], updates[start:end, start:end], scale[:, 0], bits
            )
            columns[end:].addmm_(updates[start:end, end:].T, errors, alpha=-1)
        scales.append(scale)
    return codes.T.to(torch.int16), torch.cat(scales, dim=1)  # in float64, those of a vocabulary would be 300 MB


def quantize_columns(
    columns: torch.Tensor, updates: torch.Tensor, scales: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(signed codes, errors) of adjacent columns [k, n], which are overwritten; `updates` is [k, k]."""
    codes, errors = torch.empty_like(columns), torch.empty_like(columns)
    for place, factors in enumerate(updates):
        codes[place] = round_to_codes(columns[place], scales, bits)
        errors[place] = (columns[place] - codes[place] * scales) / factors[place]
        columns[place:].addr_(factors[place:], errors[place], alpha=-1)
    return codes, errors
