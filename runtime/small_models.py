"""ONNX models of one node, in protobuf's wire format: the onnx package is not here."""

FLOAT, FLOAT16 = 1, 10  # of TensorProto.DataType


def one_node_model(operator: str, kind: int = FLOAT, rank: int = 1) -> bytes:
    """y = operator(x), of a kind of element and a rank; every dimension may be anything."""
    anything = message(1, b"") * rank
    tensor = message(1, number(1, kind) + message(2, anything))
    node = message(1, b"x") + message(2, b"y") + message(4, operator.encode())
    graph = message(1, node) + message(2, b"one_node")
    graph += message(11, message(1, b"x") + message(2, tensor))
    graph += message(12, message(1, b"y") + message(2, tensor))
    return number(1, 8) + message(7, graph) + message(8, number(2, 13))


def number(field: int, value: int) -> bytes:
    return bytes([field << 3, value])


def message(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2]) + length(len(content)) + content


def length(value: int) -> bytes:
    """A varint."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + length(value >> 7)
