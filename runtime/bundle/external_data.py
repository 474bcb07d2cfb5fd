"""The external data files that an ONNX graph names, found without the onnx package.

ONNX Runtime reads whatever path a graph names, so the names are checked first. This walks along the fields of
onnx.proto that can hold a tensor.
"""

from collections.abc import Iterator
from pathlib import Path

from runtime.bundle.wire import payloads
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
