"""Tests this processor's integer matrix products with extreme values, where 16-bit sums would saturate.

The values are as large as bytes get, and float32 holds every sum exactly, so integer arithmetic gives the right result.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.ort.install import load_onnxruntime
from runtime.ort.one_node import FLOAT, UINT8, Constant, product_model
from runtime.ort.sessions import make_options

INPUTS, OUTPUTS = 256, 16
BLOCK = 128  # weights per scale of MatMulNBits
ROWS = (1, 5)  # a single row has its own kernels
Integers = NDArray[np.int64]


class Corner(NamedTuple):
    """A model y = (x - zero) @ weights, its input x [M, K] (`given`), and the error allowed in each output [1, N]."""

    name: str
    model: bytes
    given: Integers
    kind: type[np.generic]
    zero: int
    weights: Integers  # [K, N]
    off: Integers


def inexact_products() -> list[str]:
    """A line for each kernel whose product differs from the integer result; empty if all are right."""
    return [problem for corner in corners() if (problem := judge(corner))]


def judge(corner: Corner) -> str | None:
    onnxruntime = load_onnxruntime()
    session = onnxruntime.InferenceSession(
        corner.model, make_options(onnxruntime, 1), providers=["CPUExecutionProvider"]
    )
    expected = (corner.given - corner.zero) @ corner.weights
    for rows in ROWS:
        found = session.run(None, {"x": corner.given[:rows].astype(corner.kind)})[0]
        wrong = ~(np.abs(found - expected[:rows]) <= corner.off)  # a NaN is wrong
        if wrong.any():
            return f"{corner.name}: {found[wrong][0]:,.0f} instead of {expected[:rows][wrong][0]:,}"
    return None


def corners() -> Iterator[Corner]:
    """The products that int8 uses for prompts, then those that int8 and int4 use for single tokens."""
    for zero in (0, 128):
        yield integer_product(zero)
    for bits in (8, 4):
        yield block_product(bits)


def patterns(low: int, high: int) -> Integers:
    """Rows [5, K]: all `high`, all `low`, both in turn, both in reverse turn, and the range from `low` to `high`."""
    turns = np.resize([low, high], INPUTS)
    return np.stack(
        [np.full(INPUTS, high), np.full(INPUTS, low), turns, turns[::-1], np.linspace(low, high, INPUTS).round()]
    ).astype(np.int64)


def integer_product(zero: int) -> Corner:
    """MatMulIntegerToFloat of bytes with the zero point `zero`, as in int8's prefill graph."""
    weights = np.resize(patterns(-128, 127), (OUTPUTS, INPUTS)).T
    constants: dict[str, Constant] = {
        "weights": weights.astype(np.int8),
        "x_scale": np.array(1, np.float32),
        "scales": np.ones(OUTPUTS, np.float32),
        "zero": np.array(zero, np.uint8),
    }
    model, exact = product_model("MatMulIntegerToFloat", UINT8, constants), np.zeros((1, OUTPUTS), np.int64)
    return Corner(f"MatMulIntegerToFloat of zero {zero}", model, patterns(0, 255), np.uint8, zero, weights, exact)


def block_product(bits: int) -> Corner:
    """MatMulNBits, which rounds its inputs: to whole numbers on most processors, by at most a half on any."""
    half = 2 ** (bits - 1)
    codes = np.resize(patterns(0, 2 * half - 1), (OUTPUTS, INPUTS))
    packed = codes if bits == 8 else codes[:, 0::2] | codes[:, 1::2] << 4
    constants: dict[str, Constant] = {
        "weights": packed.astype(np.uint8).reshape(OUTPUTS, INPUTS // BLOCK, -1),
        "scales": np.ones((OUTPUTS, INPUTS // BLOCK), np.float32),
    }
    settings = {"K": INPUTS, "N": OUTPUTS, "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
    model, weights = product_model("MatMulNBits", FLOAT, constants, **settings), (codes - half).T
    off = np.abs(weights).sum(axis=0, keepdims=True) // 2
    return Corner(f"MatMulNBits of {bits} bits", model, patterns(-127, 127), np.float32, 0, weights, off)
