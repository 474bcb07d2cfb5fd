"""Traces by transformers' own `OnnxExporter`, which is experimental and there from 5.13 on.

It names values by their places in the model's arguments and results (`cache.layers.0.keys`), and dynamic axes by
numbers; here they get the contract's names.
"""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import onnxscript.optimizer
import torch
import transformers
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch.export import Dim
from transformers import DynamicCache, GPT2Config
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from export.architecture import LM_HEAD, WTE
from export.errors import ExportError, first_line
from export.graphs.tracing.contract import (
    BATCH,
    IR_VERSION,
    OPSET,
    PAST,
    SEQUENCE,
    TOTAL,
    Shapes,
    input_shapes,
    output_shapes,
)
from export.graphs.tracing.weightless import weightless_model
from export.majors import CACHE

SIZES = {BATCH: 2, SEQUENCE: 3, PAST: 5, TOTAL: 8}  # of the traced run; 0 and 1 would be taken for fixed
FLAGS = {"use_cache": True, "output_hidden_states": True, "output_attentions": True}
LAYER = re.compile(r".*layers\.(\d+)\.(key|value)s")


def trace(config: GPT2Config, path: Path) -> None:
    """Trace the graph of `config` to `path`; weights are inputs, under the checkpoint's names.

    Raises:
        ExportError: The installed transformers or torch cannot trace it, or traces it to other values.
    """
    try:
        with quiet():
            program = export(config)
    except Exception as error:  # torch, onnxscript and transformers raise their own exceptions
        raise refusal(first_line(error)) from error
    take_weights_out(program.graph, config)
    rename(program.graph.inputs, "past_key_values", input_shapes(config))
    rename(program.graph.outputs, "present", output_shapes(config))
    onnxscript.optimizer.optimize(program)  # not before: it would compute with weights that are not the checkpoint's
    ClearMetadataAndDocStringPass()(program)  # stack traces, which name this machine's folders
    proto = onnx_ir.to_proto(program)
    del proto.graph.value_info[:]  # shapes with the tracer's names of axes
    proto.ir_version = IR_VERSION
    onnx.save(proto, path)


def refusal(reason: str) -> ExportError:
    versions = f"transformers {transformers.__version__} and torch {torch.__version__}"
    return ExportError(
        f"{versions} cannot trace the reference graph ({reason}); take the versions of constraints-export5.txt, "
        'or trace by optimum: pip install "gpt2-onnx[export,cpu]"'
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's progress off standard output, and silence warnings of other versions than they were tested with."""
    disabled = logging.root.manager.disable
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def export(config: GPT2Config) -> Any:
    """The traced program, an `onnx_ir.Model`."""
    model, past = weightless_model(config), DynamicCache()
    shapes = {name: shape for name, shape in input_shapes(config).items() if not name.startswith("past_key_values.")}
    cached = [shape for name, shape in input_shapes(config).items() if name not in shapes]
    for layer in range(config.n_layer):
        past.update(example(cached[2 * layer]), example(cached[2 * layer + 1]), layer)
    inputs = {name: example(shape).to(torch.int64) for name, shape in shapes.items()}
    dynamic = {**{name: axes(shape) for name, shape in shapes.items()}, CACHE: [axes(shape) for shape in cached]}
    settings = OnnxConfig(dynamic=True, dynamic_shapes=dynamic, opset_version=OPSET, optimize=False)
    return OnnxExporter().export(model, {**inputs, CACHE: past, **FLAGS}, settings).program


def example(shape: tuple[int | str, ...]) -> torch.Tensor:
    return torch.ones([size if isinstance(size, int) else SIZES[size] for size in shape])


def axes(shape: tuple[int | str, ...]) -> dict[int, Any]:
    return {axis: Dim.DYNAMIC for axis, size in enumerate(shape) if isinstance(size, str)}


def take_weights_out(graph: Any, config: GPT2Config) -> None:
    """Turn parameters into inputs; a tied `lm_head`, under whichever of its two names, is `wte`."""
    parameters = {name: graph.initializers.pop(name) for name in list(graph.initializers)}
    if config.tie_word_embeddings and LM_HEAD in parameters:
        head = parameters.pop(LM_HEAD)
        onnx_ir.convenience.replace_all_uses_with(head, parameters.setdefault(WTE, named_like(head, WTE)))
    for value in parameters.values():
        value.const_value = None
        graph.inputs.append(value)


def named_like(value: Any, name: str) -> Any:
    return onnx_ir.Value(name=name, shape=value.shape, type=value.type)


def rename(values: Any, cache: str, shapes: Shapes) -> None:
    """Give inputs or outputs the contract's names and order; inputs for parameters come after them."""
    for value in values:
        if found := LAYER.fullmatch(value.name):
            value.name = f"{cache}.{found[1]}.{found[2]}"
    by_name = {value.name: value for value in values}
    if absent := [name for name in shapes if name not in by_name]:
        raise refusal(f"{absent[0]} is not among {', '.join(by_name)}")
    ordered = [by_name.pop(name) for name in shapes]
    values[:] = [*ordered, *by_name.values()]
