"""Helpers to build an ONNX graph from nodes and constants, and to write it with external weights."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.weights import StoredTensor, external_tensor

MICROSOFT = "com.microsoft"


class Nodes:
    """The nodes added so far, in order, and the constants by name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, kind: str, name: str, inputs: list[str], domain: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return the output's name; a name added again is the same node."""
        if not any(node.name == name for node in self.nodes):
            self.add_node(kind, name, inputs, [f"{name}/output"], domain, **attributes)
        return f"{name}/output"

    def add_node(
        self, kind: str, name: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> None:
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))

    def constant(self, name: str, value: list[int] | NDArray[Any]) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def scalar(self, name: str, value: float, kind: type[np.generic]) -> str:
        self.constants[name] = numpy_helper.from_array(np.array(value, kind), name)
        return name

    def top(self, name: str, rows: str, count: int, *, largest: bool = True) -> tuple[str, str]:
        """(values, indices) [..., count] of the largest, or least, in rows [..., V]; of equal ones the first."""
        outputs = [f"{name}.values", f"{name}.places"]
        self.add_node("TopK", name, [rows, self.constant(f"first_{count}", [count])], outputs, largest=int(largest))
        return outputs[0], outputs[1]

    def column(self, rows: str, column: int) -> str:
        """One column [R, 1] of rows [R, K]."""
        return self.add("Gather", f"{rows}.{column}", [rows, self.constant(f"column_{column}", [column])], axis=1)


class GraphNodes(Nodes, ABC):
    """The nodes of one whole graph, in the order of the forward pass. Weights have the checkpoint's names."""

    name: ClassVar[str]
    opset, ir_version = 18, 8

    @abstractmethod
    def build(self) -> None:
        """Add every node."""

    @abstractmethod
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The graph's inputs with their shapes."""

    @abstractmethod
    def outputs(self) -> list[onnx.ValueInfoProto]:
        """The graph's outputs with their shapes."""


def write_graph(graph: GraphNodes, weights: Mapping[str, StoredTensor], path: Path) -> None:
    """Write `graph` to `path`, its weights in files beside it."""
    graph.build()
    used = {name for node in graph.nodes for name in node.input}
    initializers = [external_tensor(name, weights[name]) for name in weights if name in used]
    initializers += graph.constants.values()
    proto = helper.make_graph(graph.nodes, graph.name, graph.inputs(), graph.outputs(), initializers)
    opsets = [helper.make_opsetid("", graph.opset), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(proto, opset_imports=opsets, ir_version=graph.ir_version, producer_name="gpt2-onnx")
    onnx.save(model, path)
