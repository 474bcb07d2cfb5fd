"""Reads an ONNX model as far as export writes one: nodes, constants, inputs and outputs; refuses every other field.

What is refused: functions, graphs inside nodes, sparse tensors, training, and anything that onnx.proto gets later. So
ONNX Runtime sees nothing in a model that was not read here.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.bundle.wire import FIXED32, LENGTH_DELIMITED, VARINT, fields, signed

MESSAGE, TEXT, BYTES, INTEGER, FLOAT = range(5)
WIRE = {MESSAGE: LENGTH_DELIMITED, TEXT: LENGTH_DELIMITED, BYTES: LENGTH_DELIMITED, INTEGER: VARINT, FLOAT: FIXED32}
# message -> field number -> (name, kind, whether there may be several), from onnx.proto
ENTRY = {1: ("key", TEXT, False), 2: ("value", TEXT, False)}
MODEL = {
    1: ("ir_version", INTEGER, False),
    2: ("producer_name", BYTES, False),
    3: ("producer_version", BYTES, False),
    7: ("graph", MESSAGE, False),
    8: ("opset_import", MESSAGE, True),
}
OPSET = {1: ("domain", TEXT, False), 2: ("version", INTEGER, False)}
GRAPH = {
    1: ("node", MESSAGE, True),
    2: ("name", BYTES, False),
    5: ("initializer", MESSAGE, True),
    11: ("input", MESSAGE, True),
    12: ("output", MESSAGE, True),
}
NODE = {
    1: ("input", TEXT, True),
    2: ("output", TEXT, True),
    3: ("name", BYTES, False),
    4: ("op_type", TEXT, False),
    5: ("attribute", MESSAGE, True),
    7: ("domain", TEXT, False),
}
ATTRIBUTE = {
    1: ("name", TEXT, False),
    2: ("f", FLOAT, False),
    3: ("i", INTEGER, False),
    4: ("s", BYTES, False),
    5: ("t", MESSAGE, False),
    8: ("ints", INTEGER, True),
    20: ("type", INTEGER, False),
}
TENSOR = {
    1: ("dims", INTEGER, True),
    2: ("data_type", INTEGER, False),
    8: ("name", TEXT, False),
    9: ("raw_data", BYTES, False),
    13: ("external_data", MESSAGE, True),
    14: ("data_location", INTEGER, False),
}
VALUE = {1: ("name", TEXT, False), 2: ("type", MESSAGE, False), 4: ("metadata_props", MESSAGE, True)}
TYPE = {1: ("tensor_type", MESSAGE, False)}
TENSOR_TYPE = {1: ("elem_type", INTEGER, False), 2: ("shape", MESSAGE, False)}
SHAPE = {1: ("dim", MESSAGE, True)}
DIMENSION = {1: ("dim_value", INTEGER, False), 2: ("dim_param", TEXT, False)}
Spec = Mapping[int, tuple[str, int, bool]]

# TensorProto.DataType
KINDS: Mapping[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
}
USED_ATTRIBUTE = {1: "f", 2: "i", 3: "s", 4: "t", 7: "ints"}  # AttributeProto.type
MOST_SIZE = 2**40  # of a dimension, and of a tensor
SMALL = 64  # elements of a constant whose numbers are read, as it may be a shape


class Constant(NamedTuple):
    """A tensor that lies in the graph, or in `length` bytes from `offset` on of a file; `value` if it is small."""

    name: str
    kind: str
    shape: tuple[int, ...]
    value: NDArray[Any] | None = None
    location: str | None = None
    offset: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """An operator; absent inputs are empty names."""

    operator: str
    domain: str
    inputs: list[str]
    outputs: list[str]
    attributes: Mapping[str, Any]


class Value(NamedTuple):
    """An input or output; a dimension is a size, or None where it is not fixed."""

    kind: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A graph, and by domain the versions of the operators that it uses."""

    opsets: Mapping[str, int]
    nodes: list[Node]
    constants: list[Constant]
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]


def read_model(content: bytes) -> Model:
    """The model in a file; ValueError or IndexError for what is none, or has more in it than export writes."""
    model = message(memoryview(content), MODEL)
    graph = message(model["graph"], GRAPH)
    opsets = [message(each, OPSET) for each in model["opset_import"]]
    return Model(
        {opset.get("domain", ""): opset["version"] for opset in opsets},
        [read_node(each) for each in graph["node"]],
        [read_tensor(each) for each in graph["initializer"]],
        dict(read_value(each) for each in graph["input"]),
        dict(read_value(each) for each in graph["output"]),
    )


def message(payload: memoryview, spec: Spec) -> dict[str, Any]:
    """The fields of a message by name: lists of those that may be several."""
    found: dict[str, Any] = {name: [] for name, _, several in spec.values() if several}
    for number, wire, content in fields(payload):
        if number not in spec:
            raise ValueError(f"field {number} of onnx.proto is not among those that export writes")
        name, kind, several = spec[number]
        if wire != WIRE[kind]:
            raise ValueError(f"{name} is of another type than in onnx.proto")
        value = READ[kind](content)
        if several:
            found[name].append(value)
        elif name in found:
            raise ValueError(f"{name} is there twice")
        else:
            found[name] = value
    return found


def read_text(content: memoryview) -> str:
    return str(content, "utf-8")


def read_float(content: memoryview) -> float:
    number: float = struct.unpack("<f", content)[0]
    return number


READ: Mapping[int, Any] = {MESSAGE: memoryview, TEXT: read_text, BYTES: bytes, INTEGER: signed, FLOAT: read_float}


def read_node(payload: memoryview) -> Node:
    node = message(payload, NODE)
    attributes = [read_attribute(each) for each in node["attribute"]]
    named = dict(attributes)
    if len(named) < len(attributes):
        raise ValueError("a node has an attribute twice")
    return Node(node["op_type"], node.get("domain", ""), node["input"], node["output"], named)


def read_attribute(payload: memoryview) -> tuple[str, Any]:
    attribute = message(payload, ATTRIBUTE)
    used = USED_ATTRIBUTE.get(attribute["type"])
    given = {name for name in attribute if name not in ("name", "type") and attribute[name] != []}
    if used is None or not given <= {used}:
        raise ValueError("an attribute is of a type that export does not write")
    value = attribute.get(used, 0)
    return attribute["name"], read_tensor(value) if used == "t" else value


def read_tensor(payload: memoryview) -> Constant:
    """A constant, whose bytes are as many as its dimensions and its type say."""
    tensor = message(payload, TENSOR)
    kind, shape, name = KINDS[tensor["data_type"]], tuple(tensor["dims"]), tensor.get("name", "")
    size = math.prod(shape)
    if any(not 0 <= dimension <= MOST_SIZE for dimension in shape) or size > MOST_SIZE or len(shape) > 8:
        raise ValueError(f"a constant has the shape {list(shape)[:9]}")
    count = size * np.dtype(kind).itemsize
    if tensor.get("data_location", 0) or tensor["external_data"]:
        return external(tensor, Constant(name, kind, shape, length=count))
    raw = tensor.get("raw_data", b"")
    if len(raw) != count:
        raise ValueError(f"a constant of {count:,} bytes has {len(raw):,}")
    value = np.frombuffer(raw, kind).reshape(shape) if size <= SMALL else None
    return Constant(name, kind, shape, value)


def external(tensor: Mapping[str, Any], constant: Constant) -> Constant:
    """`constant` with its place in a file."""
    entries = [message(each, ENTRY) for each in tensor["external_data"]]
    named = {entry["key"]: entry["value"] for entry in entries}
    if tensor.get("data_location") != 1 or "raw_data" in tensor or len(named) < len(entries):
        raise ValueError("a constant lies both in the graph and in a file")
    if not named.keys() <= {"location", "offset", "length"}:
        raise ValueError("a constant is stored in a way that export does not write")
    offset, length = int(named.get("offset", 0)), int(named["length"])
    if length != constant.length or not 0 <= offset <= MOST_SIZE:
        raise ValueError(f"a constant of {constant.length:,} bytes has {length:,} from {offset:,} on")
    return constant._replace(location=named["location"], offset=offset)


def read_value(payload: memoryview) -> tuple[str, Value]:
    value = message(payload, VALUE)
    tensor = message(message(value["type"], TYPE)["tensor_type"], TENSOR_TYPE)
    dimensions = [message(each, DIMENSION) for each in message(tensor["shape"], SHAPE)["dim"]]
    return value["name"], Value(KINDS[tensor["elem_type"]], tuple(each.get("dim_value") for each in dimensions))
