"""A graph built node by node, and its file beside its weights."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import onnx
from onnx import helper

from export.nodes import MICROSOFT, Nodes
from export.weights import StoredTensor, external_tensor


class GraphNodes(Nodes, ABC):
    """The nodes of one whole graph, in the order of the forward pass. Weights have the checkpoint's names."""

    name: ClassVar[str]
    opset, ir_version = 18, 8

    @abstractmethod
    def build(self) -> None:
        """Add every node."""

    @abstractmethod
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """With their shapes."""

    @abstractmethod
    def outputs(self) -> list[onnx.ValueInfoProto]:
        """With their shapes."""


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
