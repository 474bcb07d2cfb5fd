"""Traces by optimum-onnx, with transformers 4.57; the only module that imports optimum."""

import warnings
from pathlib import Path

import torch
from optimum.exporters.onnx.model_configs import GPT2OnnxConfig
from transformers import GPT2Config

from export.graphs.tracing.contract import OPSET, dynamic_axes, output_shapes
from export.graphs.tracing.weightless import weightless_model

FLAGS = {"output_hidden_states": True, "output_attentions": True, "logits_to_keep": 0}


class InspectableGPT2OnnxConfig(GPT2OnnxConfig):  # type: ignore[misc]
    """optimum's GPT-2 with hidden states and attention maps as outputs.

    Names match outputs by position: transformers returns hidden states before attentions.
    """

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return dynamic_axes(output_shapes(self._config))


def trace(config: GPT2Config, path: Path) -> None:
    """Trace the graph of `config` to `path`; weights are inputs, under the checkpoint's names."""
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
