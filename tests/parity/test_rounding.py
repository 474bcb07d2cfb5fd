"""Rounding to int8 as PyTorch does it: held against numbers worked out by hand, and ONNX's own definition of it."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from transformers import GPT2Config, GPT2LMHeadModel

from export.parity.rounding import by_block, by_row, one_sided, rounded_inputs
from export.quantization.codes import QuantizedMatrix, QuantizedWeights

ROWS = torch.tensor(
    np.random.default_rng(3).normal(size=(2, 5, 24)) * [[[0.01], [1], [30], [1e-3], [0]]], dtype=torch.float64
)


# by hand


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([127.0, -127.0, 0.4, 0.6, -63.7], [127.0, -127.0, 0.0, 1.0, -64.0]),
        ([2.54, 0.011, -0.031], [2.54, 0.02, -0.04]),  # steps of 0.02: 0.55 and -1.55 of them
        ([0.5, 1.5, 127.0], [0.0, 2.0, 127.0]),  # a half goes to the even one
        ([0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_a_row_has_127_steps_on_either_side_of_zero(row, expected):
    assert by_row(torch.tensor([row], dtype=torch.float64))[0].tolist() == pytest.approx(expected)


def test_a_block_has_steps_of_its_own():
    row = torch.tensor([[127.0, 0.3, 1.27, 0.3]], dtype=torch.float64)
    assert by_block(row, 2)[0].tolist() == pytest.approx([127.0, 0.0, 1.27, 0.3])
    assert by_row(row)[0].tolist() == pytest.approx([127.0, 0.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.0, 255.0, 100.4], [0.0, 255.0, 100.0]),
        ([-5.0, 250.0, 100.4, -0.6], [-5.0, 250.0, 100.0, -1.0]),
        ([2.0, 255.0], [2.0, 255.0]),  # zero stays a code, where nothing is near it
        ([-255.0, -3.2], [-255.0, -3.0]),
        ([0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_a_row_above_zero_has_255_steps_from_its_least_to_its_largest(row, expected):
    assert one_sided(torch.tensor([row], dtype=torch.float64))[0].tolist() == pytest.approx(expected)


# by ONNX


def dynamically_quantized(row):
    """ONNX's DynamicQuantizeLinear and DequantizeLinear of one row."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "step", "zero"]),
        helper.make_node("DequantizeLinear", ["codes", "step", "zero"], ["y"]),
    ]
    edges = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [None])] for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "rounding", *edges))
    return ReferenceEvaluator(model).run(None, {"x": row})[0]


@pytest.mark.parametrize("low", [0.0, -0.17, -3.0])
def test_rows_above_zero_are_rounded_as_onnx_defines_it(low):
    """But where float32 takes a half to the other side, a step off."""
    for row in ROWS.float().clamp(min=low)[0, :4]:
        step = float(row.max().clamp(min=0) - row.min().clamp(max=0)) / 255
        off = np.abs(one_sided(row[None])[0].numpy() - dynamically_quantized(row.numpy())) / step
        assert off.max() < 1.01
        assert (off > 0.01).sum() <= 1


# where


@pytest.fixture(scope="module")
def tiny():
    """A GPT-2 of one block, and codes for its matrices of which only the sizes matter here."""
    torch.manual_seed(5)
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=1, n_head=2, attn_implementation="eager")
    model = GPT2LMHeadModel(config).eval()
    names = [name for name, weight in model.named_parameters() if weight.ndim == 2 and "wpe" not in name]
    shapes = {name: model.get_parameter(name).shape for name in names}
    codes = {
        name: np.zeros(shape if name.endswith("wte.weight") else tuple(reversed(shape)), np.uint8)
        for name, shape in shapes.items()
    }
    matrices = {name: QuantizedMatrix(code, np.ones((len(code), 1), np.float32), 8) for name, code in codes.items()}
    return model, QuantizedWeights(matrices, {})


@torch.no_grad()
def inputs_of(model, call):
    """What each matrix is given while `call` runs, by name."""
    found = {}
    watched = {name: module for name, module in model.named_modules() if name.endswith(("c_attn", "c_fc", "c_proj"))}
    watched["lm_head"] = model.lm_head
    forwards = {name: module.forward for name, module in watched.items()}
    for name, module in watched.items():
        module.forward = lambda hidden, name=name: (found.update({name: hidden}), forwards[name](hidden))[1]
    call()
    for module in watched.values():
        del module.forward
    return found


@pytest.mark.parametrize("integer", [False, True])
def test_every_matrix_is_given_few_numbers_a_row_and_afterwards_what_it_was_given_before(tiny, integer):
    """At most 255 different ones, whole multiples of a step."""
    model, weights = tiny
    ids = torch.arange(16)[None]
    before = model(ids).logits
    with rounded_inputs(model, weights, integer=integer):
        given = inputs_of(model, lambda: model(ids))
        rounded = model(ids).logits
    assert len(given) == 5
    for name, hidden in given.items():
        for row in hidden.reshape(-1, hidden.shape[-1]):
            if integer and name.endswith("mlp.c_proj"):
                step = (row.max().clamp(min=0) - row.min().clamp(max=0)) / 255
            else:
                step = row.abs().max() / 127
            assert torch.allclose((row / step).round(), row / step, atol=2e-2), name
    assert not torch.equal(rounded, before)
    assert torch.equal(model(ids).logits, before)
    assert 1e-4 < (rounded - before).norm() / before.norm() < 0.1
