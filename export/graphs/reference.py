"""The reference graph, traced by optimum; the only module that imports optimum.

The graph is traced on a model with the right shapes and no weights; weights are attached afterwards from the bundle's
weights file. So tracing makes no copy of them, and `lm_head` stays tied to `wte`.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from optimum.exporters.onnx.model_configs import GPT2OnnxConfig
from transformers import GPT2Config, GPT2LMHeadModel

from export.weights import StoredTensor, external_tensor

OPSET = 18
FLAGS = {"output_hidden_states": True, "output_attentions": True, "logits_to_keep": 0}


class InspectableGPT2OnnxConfig(GPT2OnnxConfig):  # type: ignore[misc]
    """optimum's GPT-2 with hidden states and attention maps as outputs.

    Names match outputs by position: transformers returns hidden states before attentions.
    """

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        layers = self._config.n_layer
        batch, sequence, total = "batch_size", "sequence_length", "past_sequence_length + sequence_length"
        hidden_states = {f"hidden_states.{n}": {0: batch, 1: sequence} for n in range(layers + 1)}
        attentions = {f"attentions.{n}": {0: batch, 2: sequence, 3: total} for n in range(layers)}
        return {**super().outputs, **hidden_states, **attentions}


def build_reference_graph(config: GPT2Config, weights: Mapping[str, StoredTensor], path: Path) -> None:
    """Trace the graph of `config` to `path`, with its weights in the file beside it."""
    trace(config, path)
    model = onnx.load(path)
    attach_weights(model.graph, weights)
    name_dimensions(model.graph, config)
    model.producer_name = "gpt2-onnx"
    onnx.save(model, path)


def trace(config: GPT2Config, path: Path) -> None:
    model = weightless_model(config)
    onnx_config = InspectableGPT2OnnxConfig(
        model.config, task="text-generation", use_past=True, use_past_in_inputs=True
    )
    inputs = onnx_config.rename_ambiguous_inputs(onnx_config.generate_dummy_inputs(framework="pt"))
    with torch.no_grad(), warnings.catch_warnings(), onnx_config.patch_model_for_export(model, model_kwargs=FLAGS):
        warnings.simplefilter("ignore")  # the tracer warns of branches that optimum's patches make constant
        ordered = onnx_config.ordered_inputs(model)
        torch.onnx.export(
            model,
            (inputs,),
            f=str(path),
            input_names=list(ordered),
            output_names=list(onnx_config.outputs),
            dynamic_axes={**ordered, **onnx_config.outputs},
            opset_version=OPSET,
            do_constant_folding=False,
            export_params=False,
            dynamo=False,
        )


def weightless_model(config: GPT2Config) -> GPT2LMHeadModel:
    """A model whose every parameter is one number, expanded to its shape without taking memory.

    Each has a different number, because the exporter merges parameters of equal shape and values.
    """
    eager = GPT2Config.from_dict(config.to_dict(), attn_implementation="eager")
    with torch.device("meta"):
        model = GPT2LMHeadModel(eager)
    for number, (name, parameter) in enumerate(list(model.named_parameters())):
        expanded = torch.tensor(float(number)).expand(parameter.shape)
        replace(model, name, torch.nn.Parameter(expanded, requires_grad=False))
    model.tie_weights()
    causal = torch.ones(config.n_positions, config.n_positions, dtype=torch.bool).tril()[None, None]
    for name, _ in list(model.named_buffers()):
        replace(model, name, causal if name.endswith("attn.bias") else torch.tensor(-1e4))
    return model.eval()


def replace(model: torch.nn.Module, name: str, value: Any) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, value)


def attach_weights(graph: onnx.GraphProto, weights: Mapping[str, StoredTensor]) -> None:
    """Turn the inputs for parameters into initializers that point into the weights file."""
    inputs = [value for value in graph.input if value.name not in weights]
    parameters = [value.name for value in graph.input if value.name in weights]
    graph.initializer.extend(external_tensor(name, weights[name]) for name in parameters)
    del graph.input[:]
    graph.input.extend(inputs)


def name_dimensions(graph: onnx.GraphProto, config: GPT2Config) -> None:
    """Write down the sizes that tracing leaves open."""
    known = {"logits": {2: config.vocab_size}}
    known |= {f"hidden_states.{n}": {2: config.n_embd} for n in range(config.n_layer + 1)}
    known |= {f"attentions.{n}": {1: config.n_head} for n in range(config.n_layer)}
    for output in graph.output:
        shape = output.type.tensor_type.shape
        for axis, size in known.get(output.name, {}).items():
            while len(shape.dim) <= axis:
                shape.dim.add()
            shape.dim[axis].dim_value = size
