"""The decode graph: GPT-2 built node by node, for speed.

Its nodes are ONNX Runtime's own fused operators (domain com.microsoft, documented in its ContribOperators.md):
GroupQueryAttention appends to a cache that past and present share. Only the positions asked for reach the head.
"""

import onnx
from onnx import TensorProto, helper
from transformers import GPT2Config

from export.architecture import ACTIVATIONS, WTE, attention_scale, head_weight
from export.graphs.head import add_head
from export.graphs.linear import Linear
from export.graphs.nodes import MICROSOFT, GraphNodes
from export.graphs.shortlist import Shortlist


class DecodeGraph(GraphNodes):
    """The nodes in the order of the forward pass. Tensors are given by name; weights have the checkpoint's names."""

    name = "gpt2_decode"
    cache_type = TensorProto.FLOAT

    def __init__(self, config: GPT2Config, linear: Linear, shortlist: Shortlist | None = None) -> None:
        super().__init__()
        self.config = config
        self.linear = linear
        self.shortlist = shortlist

    def build(self) -> None:
        tokens = self.linear.embed(self, WTE, "input_ids")
        positions = self.add("Gather", "wpe", ["transformer.wpe.weight", "position_ids"])
        residual = self.add("Add", "embedding", [tokens, positions])  # [B, S, C]
        for layer in range(self.config.n_layer):
            block = f"transformer.h.{layer}"
            residual = self.add("Add", f"{block}.attn.residual", [residual, self.attention(residual, layer)])
            residual = self.add("Add", f"{block}.mlp.residual", [residual, self.mlp(residual, block)])
        self.head(self.flat(self.norm(residual, "transformer.ln_f")))

    def flat(self, hidden: str) -> str:
        """Hidden states [positions, C] of [B, S, C]."""
        return self.add("Reshape", f"{hidden}.flat", [hidden, self.constant("by_embedding", [-1, self.config.n_embd])])

    def head(self, hidden: str) -> None:
        """Add all outputs except the cache, from hidden states [positions, C]."""
        add_head(self, self.linear, hidden, head_weight(self.config), self.shortlist)

    def norm(self, residual: str, name: str) -> str:
        inputs = [residual, f"{name}.weight", f"{name}.bias"]
        return self.add("LayerNormalization", name, inputs, axis=-1, epsilon=self.config.layer_norm_epsilon)

    def attention(self, residual: str, layer: int) -> str:
        """Multi-head attention over the cache: [B, S, C]."""
        block = f"transformer.h.{layer}"
        name = f"{block}.attn"
        packed = self.linear.matmul(self, self.norm(residual, f"{block}.ln_1"), f"{name}.c_attn")  # [B, S, 3C]
        return self.linear.matmul(self, self.attend(packed, layer, name), f"{name}.c_proj")

    def attend(self, packed: str, layer: int, name: str) -> str:
        """The heads' outputs for packed queries, keys and values [B, S, 3C]; keys and values go into the cache."""
        outputs = [f"{name}/output", f"present.{layer}.key", f"present.{layer}.value"]
        self.add_node(
            "GroupQueryAttention",
            name,
            self.attention_inputs(packed, layer),
            outputs,
            domain=MICROSOFT,
            num_heads=self.config.n_head,
            kv_num_heads=self.config.n_head,
            scale=attention_scale(self.config, layer),
            do_rotary=0,
        )
        return outputs[0]

    def attention_inputs(self, packed: str, layer: int) -> list[str]:
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        return [packed, "", "", *past, "seqlens_k", "total_sequence_length"]

    def mlp(self, residual: str, block: str) -> str:
        """The feed-forward layer: [B, S, C]."""
        hidden = self.linear.matmul(self, self.norm(residual, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        return self.linear.matmul(self, self.activation(hidden, f"{block}.mlp.act"), f"{block}.mlp.c_proj")

    def activation(self, hidden: str, name: str) -> str:
        """The activation function: [B, S, n_inner]."""
        kind = ACTIVATIONS[self.config.activation_function]
        if kind == "Silu":  # x * sigmoid(alpha * x) with alpha = 1
            return self.add("QuickGelu", name, [hidden], domain=MICROSOFT, alpha=1.0)
        domain = MICROSOFT if kind in ("FastGelu", "Gelu") else ""
        return self.add(kind, name, [hidden], domain=domain)

    def inputs(self) -> list[onnx.ValueInfoProto]:
        ids = ["batch_size", "sequence_length"]
        return [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ids),
            helper.make_tensor_value_info("position_ids", TensorProto.INT64, ids),
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch_size"]),
            helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("logits_indices", TensorProto.INT64, ["logits_count"]),
            helper.make_tensor_value_info("token_indices", TensorProto.INT64, ["token_count"]),
            *self.cache("past_key_values"),
        ]

    def outputs(self) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info("next_token", TensorProto.INT64, ["logits_count + token_count", 1]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["logits_count", self.config.vocab_size]),
            helper.make_tensor_value_info("tied", TensorProto.BOOL, ["logits_count + token_count", 1]),
            *self.cache("present"),
        ]

    def cache(self, prefix: str) -> list[onnx.ValueInfoProto]:
        shape = ["batch_size", self.config.n_head, "capacity", self.config.n_embd // self.config.n_head]
        names = [f"{prefix}.{layer}.{part}" for layer in range(self.config.n_layer) for part in ("key", "value")]
        return [helper.make_tensor_value_info(name, self.cache_type, shape) for name in names]
