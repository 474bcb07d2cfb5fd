"""The nodes and constants of a graph under construction. A tensor is its name."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

MICROSOFT = "com.microsoft"


class Nodes:
    """What has been added, in order."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, kind: str, name: str, inputs: list[str], domain: str = "", **attributes: Any) -> str:
        """A node with one output, whose name it returns; said again, it is the same node."""
        if not any(node.name == name for node in self.nodes):
            self.add_node(kind, name, inputs, [f"{name}/output"], domain, **attributes)
        return f"{name}/output"

    def add_node(
        self, kind: str, name: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> None:
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))

    def constant(self, name: str, value: list[int]) -> str:
        self.constants[name] = numpy_helper.from_array(np.array(value, np.int64), name)
        return name

    def scalar(self, name: str, value: float, kind: type[np.generic]) -> str:
        self.constants[name] = numpy_helper.from_array(np.array(value, kind), name)
        return name
