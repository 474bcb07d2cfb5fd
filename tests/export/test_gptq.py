"""GPTQ against what it is by definition: round a column, then solve for the rest again."""

import pytest
import torch

from export.quantization.codes import fit_scales
from export.quantization.gptq import SOLVED, gptq, inverse_factor

DAMPING = 0.01


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rounded(weights, scales, bits):
    """Plain rounding in float64, of [..., B] by [..., 1]."""
    half = 2 ** (bits - 1)
    return (weights.double() / scales.double()).round().clamp(-half, half - 1) * scales.double()


def round_plainly(weights, bits, block):
    """Each block on its own, with the scale that fits it."""
    blocks = weights.unflatten(1, (-1, block))
    return rounded(blocks, fit_scales(blocks, bits), bits).flatten(1)


def correlated(rows, inputs, rank, seed=1):
    """Inputs [rows, inputs] that mostly follow `rank` directions, with a little of their own."""
    draw = seeded(seed)
    follow = torch.randn(rows, rank, generator=draw) @ torch.randn(rank, inputs, generator=draw)
    return follow + 0.1 * torch.randn(rows, inputs, generator=draw)


def output_error(inputs, weights, matrix):
    return (inputs.double() @ (weights - matrix).double().T).square().sum().item()


def quantized(weights, gram, bits, block, damping=DAMPING):
    return gptq(weights, gram, bits=bits, block=block, damping=damping)


def gptq_by_definition(weights, gram, bits, block, damping):
    """Column by column; whenever one is rounded, those after it are the least-squares answer to all errors so far.

    The answer: of the damped gram H, d_rest = -H_rest,rest^-1 H_rest,done d_done minimizes d H d^T.
    """
    original, current = weights.double(), weights.double().clone()
    damped = gram.double() + damping * gram.double().diagonal().mean() * torch.eye(len(gram))
    for column in range(weights.shape[1]):
        if column % block == 0:
            scales = fit_scales(current[:, column : column + block].float(), bits).double()
        current[:, column] = rounded(current[:, column : column + 1], scales, bits)[:, 0]
        done, rest = slice(0, column + 1), slice(column + 1, None)
        errors = (current - original)[:, done]
        if column + 1 < weights.shape[1]:
            change = -torch.linalg.solve(damped[rest, rest], damped[rest, done] @ errors.T).T
            current[:, rest] = original[:, rest] + change
    return current


@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 48), (8, 16), (8, 48)])
def test_inputs_that_do_not_depend_on_each_other_leave_plain_rounding(bits, block):
    weights = torch.randn(20, 48, generator=seeded())
    matrix = quantized(weights, 3.0 * torch.eye(48), bits, block)
    torch.testing.assert_close(matrix.dequantized().double(), round_plainly(weights, bits, block), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 32), (8, 32)])
def test_what_rounding_breaks_the_rest_makes_good(bits, block):
    inputs, weights = correlated(200, 32, 4), torch.randn(8, 32, generator=seeded())
    gram = inputs.T @ inputs
    expected = gptq_by_definition(weights, gram, bits, block, 0.05)
    matrix = quantized(weights, gram, bits, block, damping=0.05)
    torch.testing.assert_close(matrix.dequantized().double(), expected, rtol=1e-6, atol=0)


def test_two_inputs_by_hand():
    """The first weight is rounded up by 0.3; the second, which sees half of the same input, is given 0.15 less.

    Gram [[1, 0.5], [0.5, 1]]: the second changes by -0.5 / 1 of the first one's error, from 3.6 to 3.45. Integers up to
    -8 beside them, which see inputs of their own, keep the scale at 1.
    """
    weights = torch.tensor([[2.7, 3.6, -8, 7, 6, 5, -7, -6, -5, 7, 6, 5, -7, -6, 4, -4]])
    gram = torch.eye(16)
    gram[0, 1] = gram[1, 0] = 0.5
    assert fit_scales(weights, 4).item() == 1.0
    assert round_plainly(weights, 4, 16)[0, :3].tolist() == [3.0, 4.0, -8.0]
    assert quantized(weights, gram, 4, 16, damping=0).dequantized()[0, :3].tolist() == [3.0, 3.0, -8.0]


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (8, 128)])
def test_on_inputs_that_go_together_outputs_are_off_by_less_than_half(bits, block):
    inputs, weights = correlated(600, 128, 16), torch.randn(64, 128, generator=seeded())
    matrix = quantized(weights, inputs.T @ inputs, bits, block)
    plain = output_error(inputs, weights, round_plainly(weights, bits, block))
    assert output_error(inputs, weights, matrix.dequantized()) < 0.5 * plain
    fresh = correlated(600, 128, 16)[300:]  # of the same directions
    assert output_error(fresh, weights, matrix.dequantized()) < 0.5 * output_error(
        fresh, weights, round_plainly(weights, bits, block)
    )


def test_inputs_that_are_always_zero_are_rounded_plainly_and_disturb_nothing():
    inputs, weights = correlated(300, 64, 8), torch.randn(10, 64, generator=seeded())
    inputs[:, 32:48] = 0  # a block of its own
    matrix = quantized(weights, inputs.T @ inputs, 4, 16)
    found, plain = matrix.dequantized().double(), round_plainly(weights, 4, 16)
    torch.testing.assert_close(found[:, 32:48], plain[:, 32:48], rtol=1e-6, atol=0)
    alive = [*range(32), *range(48, 64)]
    mean = (inputs.T @ inputs).diagonal().mean() / (inputs[:, alive].T @ inputs[:, alive]).diagonal().mean()
    without = quantized(weights[:, alive], inputs[:, alive].T @ inputs[:, alive], 4, 16, damping=DAMPING * mean.item())
    torch.testing.assert_close(found[:, alive], without.dequantized().double(), rtol=1e-6, atol=0)


def test_a_model_that_was_given_nothing_but_zeros_is_rounded_plainly():
    weights = torch.randn(6, 32, generator=seeded())
    found = quantized(weights, torch.zeros(32, 32), 4, 16).dequantized().double()
    torch.testing.assert_close(found, round_plainly(weights, 4, 16), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rows", [1, 5])
def test_fewer_texts_than_inputs_are_enough(rows):
    """The gram is of the rank of a few rows, and has no inverse until it is damped."""
    inputs, weights = torch.randn(rows, 64, generator=seeded(2)), torch.randn(12, 64, generator=seeded())
    matrix = quantized(weights, inputs.T @ inputs, 4, 32)
    assert torch.isfinite(matrix.dequantized()).all()
    assert matrix.codes.max() <= 15
    plain = output_error(inputs, weights, round_plainly(weights, 4, 32))
    assert output_error(inputs, weights, matrix.dequantized()) < 0.1 * plain


def test_eight_bits_have_one_scale_an_output():
    weights = torch.randn(7, 96, generator=seeded())
    matrix = quantized(weights, torch.eye(96), 8, 96)
    assert matrix.scale_an_output
    assert (matrix.codes.shape, matrix.scales.shape) == ((7, 96), (7, 1))
    largest = weights.abs().amax(dim=1, keepdim=True)
    assert ((matrix.dequantized() - weights).abs() <= 1.2 * largest / 128).all()  # a step, of a scale up to 1.1 wide


def test_outputs_beyond_those_taken_at_a_time_are_quantized_alike():
    inputs, weights = correlated(60, 16, 3), torch.randn(4100, 16, generator=seeded())
    together, few = (quantized(part, inputs.T @ inputs, 4, 16) for part in (weights, weights[4090:]))
    assert together.codes.shape == (4100, 16)
    assert (together.codes[4090:] == few.codes).all()
    assert (together.scales[4090:] == few.scales).all()


def test_what_it_is_given_is_left_as_it_was():
    weights, gram = torch.randn(4, 32, dtype=torch.float64, generator=seeded()), torch.eye(32, dtype=torch.float64)
    before = weights.clone(), gram.clone()
    quantized(weights, gram, 4, 16)
    assert torch.equal(weights, before[0])
    assert torch.equal(gram, before[1])


@pytest.mark.parametrize("inputs", [1, SOLVED, 2 * SOLVED + 3])
def test_the_factor_is_upper_triangular_and_makes_the_damped_inverse(inputs):
    rows = correlated(50, inputs, 7).double()
    gram = rows.T @ rows
    factor = inverse_factor(gram, DAMPING)
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(inputs)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped))
