"""The reference graph's contract: names, order and shapes of its inputs and outputs, whichever tracer made it."""

from collections.abc import Mapping

import onnx
from transformers import GPT2Config

BATCH, SEQUENCE, PAST = "batch_size", "sequence_length", "past_sequence_length"
TOTAL = f"{PAST} + {SEQUENCE}"
OPSET, IR_VERSION = 18, 8

Shapes = Mapping[str, tuple[int | str, ...]]


def input_shapes(config: GPT2Config) -> Shapes:
    """The inputs, in order; an axis is a size or the name of a dynamic one."""
    ids = (BATCH, SEQUENCE)
    past = dict.fromkeys(cache_names("past_key_values", config), cache_shape(config, PAST))
    return {"input_ids": ids, **past, "attention_mask": (BATCH, TOTAL), "position_ids": ids}


def output_shapes(config: GPT2Config) -> Shapes:
    """The outputs, in order."""
    layers = range(config.n_layer)
    return {
        "logits": (BATCH, SEQUENCE, config.vocab_size),
        **dict.fromkeys(cache_names("present", config), cache_shape(config, TOTAL)),
        **{f"hidden_states.{n}": (BATCH, SEQUENCE, config.n_embd) for n in range(len(layers) + 1)},
        **{f"attentions.{n}": (BATCH, config.n_head, SEQUENCE, TOTAL) for n in layers},
    }


def cache_names(prefix: str, config: GPT2Config) -> list[str]:
    return [f"{prefix}.{n}.{part}" for n in range(config.n_layer) for part in ("key", "value")]


def cache_shape(config: GPT2Config, length: str) -> tuple[int | str, ...]:
    return BATCH, config.n_head, length, config.n_embd // config.n_head


def dynamic_axes(shapes: Shapes) -> dict[str, dict[int, str]]:
    """The dynamic axes of each value: their places and names."""
    return {
        name: {axis: size for axis, size in enumerate(shape) if isinstance(size, str)} for name, shape in shapes.items()
    }


def name_dimensions(graph: onnx.GraphProto, config: GPT2Config) -> None:
    """Write down every size and name of the inputs' and outputs' axes; a tracer leaves some open, or has its own."""
    shapes = {**input_shapes(config), **output_shapes(config)}
    for value in (*graph.input, *graph.output):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in shapes[value.name]:
            if isinstance(size, int):
                shape.dim.add(dim_value=size)
            else:
                shape.dim.add(dim_param=size)
