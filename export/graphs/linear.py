"""Matrix products and embedding look-ups of the decode graph: float, block-quantized, and integer."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from onnx import TensorProto

from export.graphs.nodes import MICROSOFT, Nodes
from export.quantization.codes import QuantizedMatrix

INT8_ARITHMETIC = 4  # MatMulNBits' accuracy_level: inputs are rounded to int8, block by block


class Linear(Protocol):
    """Adds products and look-ups to `nodes`. A Conv1D is named without `.weight` and `.bias`."""

    def embed(self, nodes: Nodes, weight: str, ids: str) -> str:
        """Look up rows of `weight` [V, C] by ids [B, S]: [B, S, C]."""

    def matmul(self, nodes: Nodes, hidden: str, name: str) -> str:
        """Apply a Conv1D to hidden [B, S, K], bias included: [B, S, N]."""

    def lm_head(self, nodes: Nodes, hidden: str, weight: str) -> str:
        """Logits [N, V] of hidden [N, C] and `weight` [V, C]."""


class FloatLinear:
    """Weights in floating point, as in the checkpoint."""

    def embed(self, nodes: Nodes, weight: str, ids: str) -> str:
        return nodes.add("Gather", "wte", [weight, ids])

    def matmul(self, nodes: Nodes, hidden: str, name: str) -> str:
        product = nodes.add("MatMul", name, [hidden, f"{name}.weight"])
        return nodes.add("Add", f"{name}.biased", [product, f"{name}.bias"])

    def lm_head(self, nodes: Nodes, hidden: str, weight: str) -> str:
        return nodes.add("Gemm", "lm_head", [hidden, weight], transB=1)


class BlockLinear:
    """Codes with one scale per block. Reading weights limits one token at a time, and codes are fewer bytes."""

    def __init__(self, matrices: Mapping[str, QuantizedMatrix], *, accuracy_level: int = INT8_ARITHMETIC) -> None:
        self.matrices = matrices
        self.accuracy_level = accuracy_level

    def embed(self, nodes: Nodes, weight: str, ids: str) -> str:
        matrix = self.matrices[weight]
        inputs = [f"{weight}.rows", ids, f"{weight}.scales"]
        settings = {"bits": matrix.bits, "block_size": matrix.kernel_block, "quantize_axis": 1, "gather_axis": 0}
        return nodes.add("GatherBlockQuantized", "wte", inputs, domain=MICROSOFT, **settings)

    def matmul(self, nodes: Nodes, hidden: str, name: str) -> str:
        return self.product(nodes, name, f"{name}.weight", hidden, f"{name}.bias")

    def lm_head(self, nodes: Nodes, hidden: str, weight: str) -> str:
        return self.product(nodes, "lm_head", weight, hidden)

    def product(self, nodes: Nodes, name: str, weight: str, hidden: str, bias: str = "") -> str:
        """`weight` [N, K] times hidden [..., K]: [..., N]."""
        matrix = self.matrices[weight]
        outputs, inputs = matrix.codes.shape
        return nodes.add(
            "MatMulNBits",
            name,
            [hidden, f"{weight}.blocks", f"{weight}.scales", *(["", "", bias] if bias else [])],
            domain=MICROSOFT,
            K=inputs,
            N=outputs,
            bits=matrix.bits,
            block_size=matrix.kernel_block,
            accuracy_level=self.accuracy_level,
        )


class IntegerLinear(BlockLinear):
    """Integer products: codes with one scale per output, times inputs rounded to int8 row by row.

    Arithmetic limits many tokens at a time, and integer products are faster.
    """

    def matmul(self, nodes: Nodes, hidden: str, name: str) -> str:
        inputs = self.matrices[f"{name}.weight"].codes.shape[1]
        rows = nodes.add("Reshape", f"{name}.rows", [hidden, nodes.constant(f"rows_of_{inputs}", [-1, inputs])])
        one_sided = name.endswith("mlp.c_proj")  # the activation function's outputs are hardly ever negative
        product = self.one_sided(nodes, rows, name) if one_sided else self.two_sided(nodes, rows, name)
        product = nodes.add("Add", f"{name}.biased", [product, f"{name}.bias"])
        return nodes.add("Reshape", f"{name}.unrolled", [product, leading_shape(nodes)])

    def two_sided(self, nodes: Nodes, rows: str, name: str) -> str:
        """The product of rows [R, K], rounded to codes around 128: [R, N]."""
        size = nodes.add("Abs", f"{name}.size", [rows])
        largest = nodes.add("ReduceMax", f"{name}.largest", [size, nodes.constant("last_axis", [-1])])
        steps = self.step_sizes(nodes, name, largest, 127)
        count = nodes.add("Shape", "row_count", [flat(nodes, steps)])
        zeros = nodes.add("Expand", "halves", [nodes.scalar("half", 128, np.uint8), count])
        product = self.integer_product(nodes, name, [rows, flat(nodes, steps), zeros], "half")
        return nodes.add("Mul", f"{name}.scaled", [product, steps])

    def one_sided(self, nodes: Nodes, rows: str, name: str) -> str:
        """The product of rows [R, K], each rounded with its own zero point, which is subtracted afterwards: [R, N]."""
        axis, zero = nodes.constant("last_axis", [-1]), nodes.scalar("zero", 0, np.float32)
        low = nodes.add("Min", f"{name}.low", [nodes.add("ReduceMin", f"{name}.lowest", [rows, axis]), zero])
        high = nodes.add("Max", f"{name}.high", [nodes.add("ReduceMax", f"{name}.highest", [rows, axis]), zero])
        steps = self.step_sizes(nodes, name, nodes.add("Sub", f"{name}.range", [high, low]), 255)
        zero_point = nodes.add("Neg", f"{name}.below", [nodes.add("Div", f"{name}.place", [low, steps])])
        zero_point = nodes.add("Round", f"{name}.zero_place", [zero_point])
        zeros = nodes.add("Cast", f"{name}.zeros", [flat(nodes, zero_point)], to=TensorProto.UINT8)
        nodes.scalar("nothing", 0, np.uint8)
        product = self.integer_product(nodes, name, [rows, flat(nodes, steps), zeros], "nothing")
        offset = nodes.add("Mul", f"{name}.offset", [zero_point, f"{name}.weight.output_sums"])
        product = nodes.add("Sub", f"{name}.centred", [product, offset])
        return nodes.add("Mul", f"{name}.scaled", [product, steps])

    def step_sizes(self, nodes: Nodes, name: str, sizes: str, steps: int) -> str:
        """The step size of each row's codes [R, 1], never zero."""
        count = nodes.scalar(f"steps_of_{steps}", steps, np.float32)
        worth = nodes.add("Div", f"{name}.step", [sizes, count])
        return nodes.add("Max", f"{name}.step_size", [worth, nodes.scalar("least", 1e-30, np.float32)])

    def integer_product(self, nodes: Nodes, name: str, rounding: list[str], zero: str) -> str:
        """Quantize by rows, steps [R] and zeros [R]; multiply codes minus `zero` with the weights: [R, N] float32."""
        codes = nodes.add("QuantizeLinear", f"{name}.codes", rounding, axis=0)
        one = nodes.scalar("one", 1, np.float32)
        weights = [self.signed_columns(nodes, name), one, f"{name}.weight.output_scales", zero]
        return nodes.add("MatMulIntegerToFloat", name, [codes, *weights], domain=MICROSOFT)

    def signed_columns(self, nodes: Nodes, name: str) -> str:
        """Codes [K, N] as int8, for which processors have instructions; ONNX Runtime folds this once, at loading."""
        signs = [f"{name}.weight.rows", nodes.scalar("sign", 128, np.uint8)]
        signed = nodes.add("BitwiseXor", f"{name}.twos_complement", signs)
        signed = nodes.add("Cast", f"{name}.signed", [signed], to=TensorProto.INT8)
        return nodes.add("Transpose", f"{name}.columns", [signed], perm=[1, 0])


def flat(nodes: Nodes, column: str) -> str:
    """Reshape a column [R, 1] to [R]."""
    return nodes.add("Reshape", f"{column}.flat", [column, nodes.constant("flat", [-1])])


def leading_shape(nodes: Nodes) -> str:
    """The shape [B, S, -1], to undo the flattening to rows."""
    shape = nodes.add("Shape", "input_shape", ["input_ids"])
    return nodes.add("Concat", "leading_shape", [shape, nodes.constant("last_axis", [-1])], axis=0)
