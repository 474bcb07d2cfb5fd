"""Products of the largest bytes there are, through the export's own nodes and the runtime's own sessions.

Without VNNI, AVX2 and AVX-512 add two products of an unsigned and a signed byte in 16 bits, where 2 * 255 * 127 is cut
off at 32,767. Here all inputs and weights are whole numbers and every sum is less than 2^24, which float32 holds: int64
says what is right, to the last digit, on any processor.
"""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from export.graphs.linear import BlockLinear, IntegerLinear
from export.graphs.nodes import GraphNodes, write_graph
from export.quantization.codes import QuantizedMatrix, QuantizedWeights
from export.weights import write_quantized
from runtime.ort.placement import CPU
from runtime.ort.sessions import make_session

INPUTS, OUTPUTS = 256, 24
ROWS = [1, 2, 7, 130]  # one row, few rows and many have kernels of their own
SIGNED, POSITIVE, SHIFTED = (-127, 127), (0, 255), (-128, 127)


class OneLinear(GraphNodes):
    """One matrix and its bias."""

    name = "one_linear"

    def __init__(self, linear, name):
        super().__init__()
        self.linear, self.matrix = linear, name

    def build(self):
        self.linear.matmul(self, "hidden", self.matrix)
        self.nodes[-1].output[0] = "product"

    def inputs(self):
        return [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "S"]),
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["B", "S", INPUTS]),
        ]

    def outputs(self):
        return [helper.make_tensor_value_info("product", TensorProto.FLOAT, ["B", "S", OUTPUTS])]


def corners(rows, low, high):
    """[rows, INPUTS]: the largest, the smallest, both in turns, in pairs, and at random; each row reaches both ends."""
    draw = np.random.default_rng(rows + high)
    found = np.resize(
        [
            np.full(INPUTS, high),
            np.full(INPUTS, low),
            np.resize([low, high], INPUTS),
            np.resize([high, high, low, low], INPUTS),
            draw.choice([low, high], INPUTS),
            draw.integers(low, high + 1, INPUTS),
        ],
        (rows, INPUTS),
    )
    found[:, 0], found[:, -1] = low, high
    return found


@pytest.fixture
def product(tmp_path):
    """What a linear makes of whole numbers [S, K] and codes [N, K] of so many bits whose scales are 1."""

    def run(kind, name, hidden, codes, bits, biases):
        matrix = QuantizedMatrix(codes.astype(np.uint8), np.ones((OUTPUTS, 1), np.float32), bits)
        matrices, tensors = {f"{name}.weight": matrix}, {f"{name}.bias": torch.tensor(biases, dtype=torch.float32)}
        stored = write_quantized(QuantizedWeights(matrices, tensors), tmp_path / "weights")
        write_graph(OneLinear(kind(matrices), name), stored, tmp_path / "graph.onnx")
        session = make_session(tmp_path / "graph.onnx", placement=CPU, threads=1)
        ids = np.zeros((1, len(hidden)), np.int64)
        given = {"hidden": hidden[None].astype(np.float32), "input_ids": ids}
        wanted = {value.name for value in session.get_inputs()}
        return session.run(["product"], {name: given[name] for name in wanted})[0][0]

    return run


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    ("kind", "name", "bits", "ends"),
    [
        (IntegerLinear, "attn.c_attn", 8, SIGNED),
        (IntegerLinear, "mlp.c_proj", 8, POSITIVE),
        (IntegerLinear, "mlp.c_proj", 8, SHIFTED),
        (BlockLinear, "attn.c_attn", 8, SIGNED),
        (BlockLinear, "attn.c_attn", 4, SIGNED),
    ],
    ids=["rows", "rows above zero", "rows with a zero of their own", "blocks of 8 bits", "blocks of 4 bits"],
)
def test_products_at_the_corners_are_what_integers_say(product, kind, name, bits, ends, rows):
    half = 2 ** (bits - 1)
    weights, hidden = corners(OUTPUTS, -half, half - 1), corners(rows, *ends)
    biases = np.arange(OUTPUTS) - 7
    expected = hidden.astype(np.int64) @ weights.astype(np.int64).T + biases
    assert np.abs(expected).max() < 2**24
    found = product(kind, name, hidden, weights + half, bits, biases)
    if kind is IntegerLinear:
        np.testing.assert_array_equal(found, expected)
    else:  # MatMulNBits rounds blocks of inputs as its kernels like: by less than half a step of one at most
        assert (np.abs(found - expected) <= np.abs(weights).sum(axis=1) / 2).all()
