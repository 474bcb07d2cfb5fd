"""Builds ONNX models of one node in protobuf's wire format, as the runtime does without the onnx package."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

FLOAT, UINT8, INT8, FLOAT16 = 1, 2, 3, 10  # of TensorProto.DataType
KINDS = {np.dtype(np.float32): FLOAT, np.dtype(np.uint8): UINT8, np.dtype(np.int8): INT8}
MICROSOFT = "com.microsoft"
INTEGER = 2  # of AttributeProto.AttributeType
Constant = NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.int8]


def one_node_model(operator: str, kind: int = FLOAT, rank: int = 1) -> bytes:
    """y = operator(x), for an element type and a rank; dimensions are free."""
    node = message(1, b"x") + message(2, b"y") + message(4, operator.encode())
    graph = message(1, node) + message(2, b"one_node")
    return model(graph + edge(11, "x", kind, rank) + edge(12, "y", kind, rank))


def product_model(operator: str, kind: int, constants: Mapping[str, Constant], **settings: int) -> bytes:
    """y = operator(x, *constants) for one of ONNX Runtime's own operators; x is a matrix, y float32."""
    node = b"".join(message(1, name.encode()) for name in ("x", *constants)) + message(2, b"y")
    node += message(4, operator.encode())
    node += b"".join(message(5, attribute(name, value)) for name, value in settings.items())
    graph = message(1, node + message(7, MICROSOFT.encode())) + message(2, b"product")
    graph += b"".join(message(5, tensor(name, value)) for name, value in constants.items())
    return model(graph + edge(11, "x", kind, 2) + edge(12, "y", FLOAT, 2))


def model(graph: bytes) -> bytes:
    """A model of `graph`, with opset 13 and ONNX Runtime's own operators."""
    opsets = message(8, number(2, 13)) + message(8, message(1, MICROSOFT.encode()) + number(2, 1))
    return number(1, 8) + message(7, graph) + opsets


def edge(field: int, name: str, kind: int, rank: int) -> bytes:
    """An input or output of a graph."""
    anything = message(1, b"") * rank
    return message(field, message(1, name.encode()) + message(2, message(1, number(1, kind) + message(2, anything))))


def attribute(name: str, value: int) -> bytes:
    return message(1, name.encode()) + number(3, value) + number(20, INTEGER)


def tensor(name: str, value: Constant) -> bytes:
    dimensions = b"".join(number(1, size) for size in value.shape)
    return dimensions + number(2, KINDS[value.dtype]) + message(8, name.encode()) + message(9, value.tobytes())


def number(field: int, value: int) -> bytes:
    return length(field << 3) + length(value)


def message(field: int, content: bytes) -> bytes:
    return length(field << 3 | 2) + length(len(content)) + content


def length(value: int) -> bytes:
    """A varint."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + length(value >> 7)
