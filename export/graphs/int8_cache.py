"""Ragged graphs with int8 keys and values: an attention channel's codes share one scale, the same for every text.

Nothing else differs from the graph with float32 keys and values, so one is made of the other. `GroupQueryAttention`
rounds new keys and values as they enter the cache, to the nearest code (halves to even, clipped to -128 … 127), and
attends over codes times scales in float32, to those of a run's own ids as to older ones: reading a text at once and id
by id are the same arithmetic.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.quantization.codes import Scales

KEY_SCALE, VALUE_SCALE = 12, 13  # the inputs' positions in GroupQueryAttention
SETTINGS = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}


def write_int8_cache(ragged: Path, scales: Scales, path: Path) -> None:
    """Write the ragged graph at `ragged` again to `path`, in the same folder, with int8 keys and values.

    Args:
        scales: What one step of each channel's codes is worth, by the names of the outputs.
    """
    model = onnx.load(ragged, load_external_data=False)
    graph = model.graph
    graph.name = "gpt2_int8_cache"
    for value in (*graph.input, *graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.elem_type = TensorProto.INT8
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            round_cache(node)
    graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(scale, np.float32), f"{name}.scale")
        for name, scale in scales.items()
    )
    onnx.save(model, path)


def round_cache(node: onnx.NodeProto) -> None:
    """Let an attention node round its keys and values; its outputs give the scales their names."""
    _, key, value = node.output
    node.input[KEY_SCALE], node.input[VALUE_SCALE] = f"{key}.scale", f"{value}.scale"
    node.attribute.extend(helper.make_attribute(name, setting) for name, setting in SETTINGS.items())
