"""The external data files that an ONNX graph names, found without the onnx package.

ONNX Runtime reads whatever path a graph names, so the names are checked first. This walks the protobuf wire format
(https://protobuf.dev/programming-guides/encoding/) along the fields of onnx.proto that can hold a tensor.
"""

from collections.abc import Iterator
from pathlib import Path

from runtime.errors import BundleError

# message -> field number -> message, from onnx.proto
TENSOR_HOLDERS = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
KEY, VALUE = 1, 2  # of a StringStringEntryProto
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5


def external_data_locations(path: Path) -> set[str]:
    """The `location` of every external tensor in the graph at `path`."""
    try:
        entries = [dict(payloads(entry)) for entry in walk(memoryview(path.read_bytes()), "Model")]
        return {bytes(entry[VALUE]).decode() for entry in entries if bytes(entry.get(KEY, b"")) == b"location"}
    except (IndexError, KeyError, ValueError, RecursionError):
        raise BundleError(f"{path} is not an ONNX graph") from None


def walk(message: memoryview, kind: str) -> Iterator[memoryview]:
    """Every key-value entry of every tensor's external data, at any depth."""
    if kind == "Entry":
        yield message
        return
    holders = TENSOR_HOLDERS[kind]
    for number, payload in payloads(message):
        if number in holders:
            yield from walk(payload, holders[number])


def payloads(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, payload) of each length-delimited field in turn: onnx.proto's messages and strings."""
    position = 0
    while position < len(message):
        tag, position = varint(message, position)
        number, wire = tag >> 3, tag & 7
        if tag >> 32 or wire not in (VARINT, FIXED64, LENGTH_DELIMITED, FIXED32):
            raise ValueError("not protobuf")
        size, position = field_size(message, position, wire)
        if position + size > len(message):
            raise ValueError("not protobuf")
        if wire == LENGTH_DELIMITED:
            yield number, message[position : position + size]
        position += size


def field_size(message: memoryview, position: int, wire: int) -> tuple[int, int]:
    """(bytes in the field, where they begin)."""
    if wire == VARINT:
        return varint(message, position)[1] - position, position
    if wire == LENGTH_DELIMITED:
        return varint(message, position)
    return (8 if wire == FIXED64 else 4), position


def varint(message: memoryview, position: int) -> tuple[int, int]:
    """(value, position after it) of a base-128 number of at most ten bytes, least significant group first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("not protobuf")
