"""Which files an ONNX graph would read its weights from, found without the onnx package.

ONNX Runtime reads whatever path a graph names. So the names are looked at before it does: this walks the protobuf
wire format (https://protobuf.dev/programming-guides/encoding/) along the fields of onnx.proto that can hold a tensor.
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
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5


def external_data_locations(path: Path) -> set[str]:
    """The `location` of every external tensor in the graph at `path`."""
    try:
        entries = [dict(strings(entry)) for entry in walk(memoryview(path.read_bytes()), "Model")]
        return {entry[2].decode() for entry in entries if entry.get(1) == b"location"}
    except (IndexError, KeyError, ValueError, RecursionError):
        raise BundleError(f"{path} is not an ONNX graph") from None


def walk(message: memoryview, kind: str) -> Iterator[memoryview]:
    """Every key-value entry of every tensor's external data, at any depth."""
    if kind == "Entry":
        yield message
        return
    holders = TENSOR_HOLDERS[kind]
    for number, value in fields(message):
        if number in holders and isinstance(value, memoryview):
            yield from walk(value, holders[number])


def strings(entry: memoryview) -> Iterator[tuple[int, bytes]]:
    """The fields of a StringStringEntryProto: 1 is the key, 2 the value."""
    return ((number, bytes(value)) for number, value in fields(entry) if isinstance(value, memoryview))


def fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, payload) of each field in turn; a payload is bytes where the wire says how many."""
    position = 0
    while position < len(message):
        tag, position = varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, position = varint(message, position)
            yield number, value
            continue
        size = {FIXED64: 8, FIXED32: 4}.get(wire)
        if wire == LENGTH_DELIMITED:
            size, position = varint(message, position)
        if size is None or position + size > len(message):
            raise ValueError("not protobuf")
        yield number, message[position : position + size]
        position += size


def varint(message: memoryview, position: int) -> tuple[int, int]:
    """(value, position behind it) of a base-128 number, least significant group first."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
