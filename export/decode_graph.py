"""The decode graph: GPT-2 node by node, for speed.

The nodes are ONNX Runtime's own fused ones (domain com.microsoft, documented in its ContribOperators.md):
GroupQueryAttention appends to a cache that past and present share, and SkipLayerNormalization adds bias and residual
while it normalizes. Only the positions asked for reach `lm_head`, and ArgMax picks the next token of each.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from transformers import GPT2Config

from export.architecture import ACTIVATIONS, attention_scale
from export.weights import StoredTensor, external_tensor

OPSET = 18
MICROSOFT = "com.microsoft"
IR_VERSION = 8


def build_decode_graph(config: GPT2Config, weights: Mapping[str, StoredTensor], path: Path, location: str) -> None:
    """Write the graph to `path`, its weights in the file `location` beside it."""
    graph = DecodeGraph(config)
    graph.build()
    used = {name for node in graph.nodes for name in node.input}
    initializers = [external_tensor(name, weights[name], location) for name in weights if name in used]
    initializers += graph.constants
    proto = helper.make_graph(graph.nodes, "gpt2_decode", graph.inputs(), graph.outputs(), initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(proto, opset_imports=opsets, ir_version=IR_VERSION, producer_name="gpt2-onnx")
    onnx.save(model, path)


class DecodeGraph:
    """The nodes, in the order of the forward pass. A tensor is its name; weights have the checkpoint's names."""

    def __init__(self, config: GPT2Config) -> None:
        self.config = config
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def build(self) -> None:
        layers = self.config.n_layer
        tokens = self.add("Gather", "wte", ["transformer.wte.weight", "input_ids"])
        positions = self.add("Gather", "wpe", ["transformer.wpe.weight", "position_ids"])
        residual = self.add("Add", "embedding", [tokens, positions])  # [B, S, C]
        hidden = self.first_norm(residual)
        for layer in range(layers):
            block = f"transformer.h.{layer}"
            hidden = self.attention(hidden, layer)
            hidden, residual = self.skip_norm(hidden, residual, f"{block}.attn.c_proj.bias", f"{block}.ln_2")
            hidden = self.mlp(hidden, block)
            following = f"transformer.h.{layer + 1}.ln_1" if layer + 1 < layers else "transformer.ln_f"
            hidden, residual = self.skip_norm(hidden, residual, f"{block}.mlp.c_proj.bias", following)
        self.head(hidden)

    def first_norm(self, residual: str) -> str:
        name = "transformer.h.0.ln_1"
        inputs = [residual, f"{name}.weight", f"{name}.bias"]
        return self.add("LayerNormalization", name, inputs, axis=-1, epsilon=self.config.layer_norm_epsilon)

    def skip_norm(self, hidden: str, residual: str, bias: str, name: str) -> tuple[str, str]:
        """(norm of the sum, the sum) of what a sublayer returns, its bias and the residual stream; both [B, S, C]."""
        inputs = [hidden, residual, f"{name}.weight", f"{name}.bias", bias]
        outputs = [f"{name}/output", "", "", f"{name}/residual"]
        epsilon = self.config.layer_norm_epsilon
        self.add_node("SkipLayerNormalization", name, inputs, outputs, domain=MICROSOFT, epsilon=epsilon)
        return outputs[0], outputs[3]

    def attention(self, hidden: str, layer: int) -> str:
        """Multi-head attention over the cache, without the bias of `c_proj`: [B, S, C]."""
        name = f"transformer.h.{layer}.attn"
        packed = self.add("MatMul", f"{name}.c_attn", [hidden, f"{name}.c_attn.weight"])
        packed = self.add("Add", f"{name}.c_attn.bias_add", [packed, f"{name}.c_attn.bias"])  # [B, S, 3C]
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        outputs = [f"{name}/output", f"present.{layer}.key", f"present.{layer}.value"]
        self.add_node(
            "GroupQueryAttention",
            name,
            [packed, "", "", *past, "seqlens_k", "total_sequence_length"],
            outputs,
            domain=MICROSOFT,
            num_heads=self.config.n_head,
            kv_num_heads=self.config.n_head,
            scale=attention_scale(self.config, layer),
            do_rotary=0,
        )
        return self.add("MatMul", f"{name}.c_proj", [outputs[0], f"{name}.c_proj.weight"])

    def mlp(self, hidden: str, block: str) -> str:
        """The feed-forward layer, without the bias of its `c_proj`: [B, S, C]."""
        hidden = self.add("MatMul", f"{block}.mlp.c_fc", [hidden, f"{block}.mlp.c_fc.weight"])
        hidden = self.activation(hidden, f"{block}.mlp.c_fc.bias", f"{block}.mlp.act")
        return self.add("MatMul", f"{block}.mlp.c_proj", [hidden, f"{block}.mlp.c_proj.weight"])

    def activation(self, hidden: str, bias: str, name: str) -> str:
        """The bias of `c_fc` and the activation function: [B, S, n_inner]."""
        kind = ACTIVATIONS[self.config.activation_function]
        if kind in ("FastGelu", "BiasGelu"):
            return self.add(kind, name, [hidden, bias], domain=MICROSOFT)
        biased = self.add("Add", f"{name}.bias_add", [hidden, bias])
        if kind == "Silu":  # x * sigmoid(alpha * x) with alpha = 1
            return self.add("QuickGelu", name, [biased], domain=MICROSOFT, alpha=1.0)
        return self.add(kind, name, [biased])

    def head(self, hidden: str) -> None:
        """Logits of the positions asked for, and their ArgMax."""
        shape = self.constant("positions_by_embedding", [-1, self.config.n_embd])
        positions = self.add("Reshape", "positions", [hidden, shape])  # [B*S, C]
        asked = self.add("Gather", "asked_positions", [positions, "logits_indices"], axis=0)  # [N, C]
        tied = self.config.tie_word_embeddings
        weight = "transformer.wte.weight" if tied else "lm_head.weight"
        self.add_node("Gemm", "lm_head", [asked, weight], ["logits"], transB=1)  # [N, V]
        self.add_node("ArgMax", "next_token", ["logits"], ["next_token"], axis=-1, keepdims=1)  # [N, 1]

    def add(self, kind: str, name: str, inputs: list[str], domain: str = "", **attributes: Any) -> str:
        """A node with one output, whose name it returns."""
        self.add_node(kind, name, inputs, [f"{name}/output"], domain, **attributes)
        return f"{name}/output"

    def add_node(
        self, kind: str, name: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> None:
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))

    def constant(self, name: str, value: list[int]) -> str:
        self.constants.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def inputs(self) -> list[onnx.ValueInfoProto]:
        ids = ["batch_size", "sequence_length"]
        return [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ids),
            helper.make_tensor_value_info("position_ids", TensorProto.INT64, ids),
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch_size"]),
            helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("logits_indices", TensorProto.INT64, ["logits_count"]),
            *self.cache("past_key_values"),
        ]

    def outputs(self) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info("next_token", TensorProto.INT64, ["logits_count", 1]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["logits_count", self.config.vocab_size]),
            *self.cache("present"),
        ]

    def cache(self, prefix: str) -> list[onnx.ValueInfoProto]:
        shape = ["batch_size", self.config.n_head, "capacity", self.config.n_embd // self.config.n_head]
        names = [f"{prefix}.{layer}.{part}" for layer in range(self.config.n_layer) for part in ("key", "value")]
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
