"""The reference graph: traced by whichever tracer is installed, with its weights in the bundle's file."""

from collections.abc import Mapping
from pathlib import Path

import onnx
from transformers import GPT2Config

from export.graphs.tracing.choice import find_tracer
from export.graphs.tracing.contract import name_dimensions
from export.weights import StoredTensor, external_tensor


def build_reference_graph(config: GPT2Config, weights: Mapping[str, StoredTensor], path: Path) -> None:
    """Trace the graph of `config` to `path`, with its weights in the file beside it."""
    find_tracer().trace(config, path)
    model = onnx.load(path)
    attach_weights(model.graph, weights)
    name_dimensions(model.graph, config)
    model.producer_name = "gpt2-onnx"
    onnx.save(model, path)


def attach_weights(graph: onnx.GraphProto, weights: Mapping[str, StoredTensor]) -> None:
    """Turn the inputs for parameters into initializers that point into the weights file."""
    inputs = [value for value in graph.input if value.name not in weights]
    parameters = [value.name for value in graph.input if value.name in weights]
    graph.initializer.extend(external_tensor(name, weights[name]) for name in parameters)
    del graph.input[:]
    graph.input.extend(inputs)
