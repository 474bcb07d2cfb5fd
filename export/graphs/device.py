"""Decode graphs for CUDA: each run's outputs are the next run's inputs, so steps need nothing from the host.

`next_token`, `next_position_ids`, `next_seqlens_k`, `next_log_indices` and `next_token_log` may be bound to the same
buffers as `input_ids`, `position_ids`, `seqlens_k`, `log_indices` and `token_log`. No state is overwritten before the
last node that reads it has run: every advance waits for the log, and the log for the token.

No node runs on the host or copies to it, so that ONNX Runtime can capture a run as a CUDA graph.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.architecture import attention_scale, head_weight
from export.graphs.decode import DecodeGraph

LOWEST = float(np.finfo(np.float32).min)


class DeviceGraph(DecodeGraph):
    """Gives logits and the most likely id at the indices asked for, and the state after the run."""

    def head(self, hidden: str) -> None:
        rows = self.add("Gather", "logits_places", [hidden, "logits_indices"], axis=0)  # [N, C]
        self.add_node("Gemm", "lm_head", [*self.head_factors(rows)], ["logits"], transB=1)  # [N, V]
        self.add_node("ArgMax", "next_token", ["logits"], ["next_token"], axis=1, keepdims=1)  # [N, 1]
        self.advance()

    def head_factors(self, rows: str) -> tuple[str, str]:
        """The two float32 factors of the logits: hidden states and weights."""
        return rows, head_weight(self.config)

    def advance(self) -> None:
        """Write the ids into the log at `log_indices`, then advance all state by one."""
        ids = self.add("Reshape", "next_ids", ["next_token", self.constant("flat", [-1])])  # [N]
        self.add_node("ScatterElements", "token_log", ["token_log", "log_indices", ids], ["next_token_log"], axis=0)
        noted = self.add("Gather", "noted", ["next_token_log", self.constant("first", [0])], axis=0)  # [1]
        there = self.add("GreaterOrEqual", "there", [noted, self.scalar("least_id", 0, np.int64)])  # always, but later
        for name, kind in (("position_ids", "INT64"), ("seqlens_k", "INT32"), ("log_indices", "INT64")):
            one = self.add("Cast", f"one_{kind.lower()}", [there], to=getattr(TensorProto, kind))
            self.add_node("Add", f"next_{name}", [name, one], [f"next_{name}"])

    def inputs(self) -> list[onnx.ValueInfoProto]:
        given = [value for value in super().inputs() if value.name != "token_indices"]
        return [
            *given,
            helper.make_tensor_value_info("token_log", TensorProto.INT64, ["log_size"]),
            helper.make_tensor_value_info("log_indices", TensorProto.INT64, ["logits_count"]),
        ]

    def outputs(self) -> list[onnx.ValueInfoProto]:
        ids = ["batch_size", "sequence_length"]
        return [
            helper.make_tensor_value_info("next_token", TensorProto.INT64, ["logits_count", 1]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["logits_count", self.config.vocab_size]),
            helper.make_tensor_value_info("next_position_ids", TensorProto.INT64, ids),
            helper.make_tensor_value_info("next_seqlens_k", TensorProto.INT32, ["batch_size"]),
            helper.make_tensor_value_info("next_log_indices", TensorProto.INT64, ["logits_count"]),
            helper.make_tensor_value_info("next_token_log", TensorProto.INT64, ["log_size"]),
            *self.cache("present"),
        ]


class HalfGraph(DeviceGraph):
    """float16 weights, activations and cache. Norms sum in float32 (LayerNormalization's stash type), attention's
    softmax is GroupQueryAttention's, and logits are a float32 product: in float16, whose steps are 1/32 between 32 and
    64, the two best logits are often equal. ONNX Runtime casts the weights once, when it loads.
    """

    cache_type = TensorProto.FLOAT16

    def head_factors(self, rows: str) -> tuple[str, str]:
        weight = head_weight(self.config)
        wide = self.add("Cast", "lm_head.weight32", [weight], to=TensorProto.FLOAT)
        return self.add("Cast", "lm_head.rows32", [rows], to=TensorProto.FLOAT), wide


class Float32Graph(DeviceGraph):
    """float32 throughout, for parity: CUDA's GroupQueryAttention has no float32, so attention is written out.

    TensorScatter, from opset 24, writes into the cache in place.
    """

    opset, ir_version = 24, 11

    def attend(self, packed: str, layer: int, name: str) -> str:
        parts = [f"{name}.query", f"{name}.key", f"{name}.value"]
        self.add_node("Split", f"{name}.parts", [packed], parts, axis=2, num_outputs=3)
        query, *new = (self.heads(part) for part in parts)  # [B, H, S, D]
        key, value = (self.append(rows, f"{layer}.{part}") for rows, part in zip(new, ("key", "value"), strict=True))
        columns = self.add("Transpose", f"{name}.columns", [key], perm=[0, 1, 3, 2])  # [B, H, D, M]
        scale = self.scalar(f"{name}.scale", attention_scale(self.config, layer), np.float32)
        scores = self.add("Mul", f"{name}.scaled", [self.add("MatMul", f"{name}.scores", [query, columns]), scale])
        masked = self.add("Add", f"{name}.masked", [scores, self.mask()])  # [B, H, S, M]
        weights = self.add("Softmax", f"{name}.weights", [masked], axis=-1)
        found = self.add("MatMul", f"{name}.found", [weights, value])
        rows = self.add("Transpose", f"{name}.rows", [found], perm=[0, 2, 1, 3])  # [B, S, H, D]
        return self.add("Reshape", name, [rows, self.constant("joined", [0, 0, self.config.n_embd])])

    def heads(self, rows: str) -> str:
        """Split rows [B, S, C] into heads [B, H, S, D]."""
        size = self.config.n_embd // self.config.n_head
        split = self.add("Reshape", f"{rows}.split", [rows, self.constant("split", [0, 0, self.config.n_head, size])])
        return self.add("Transpose", f"{rows}.heads", [split], perm=[0, 2, 1, 3])

    def append(self, rows: str, part: str) -> str:
        """Write rows [B, H, S, D] into the cache [B, H, M, D] from each sequence's position on."""
        start = self.add("Gather", "start", ["position_ids", self.scalar("column_0", 0, np.int64)], axis=1)  # [B]
        past, present = f"past_key_values.{part}", f"present.{part}"
        self.add_node("TensorScatter", present, [past, rows, start], [present], axis=2)
        return present

    def mask(self) -> str:
        """The mask [B, 1, S, M]: 0 where a position may attend, the lowest number elsewhere."""
        size = self.add("Shape", "capacity", ["past_key_values.0.key"], start=2, end=3)
        every = self.constant("every_place", np.arange(self.config.n_positions))
        start, axis = self.constant("from_0", [0]), self.constant("axis_0", [0])
        places = self.add("Slice", "cache_places", [every, start, size, axis])  # [M]
        rows = self.add("Unsqueeze", "own_places", ["position_ids", self.constant("around", [1, 3])])  # [B, 1, S, 1]
        seen = self.add("LessOrEqual", "seen", [places, rows])
        zero, lowest = self.scalar("zero", 0, np.float32), self.scalar("lowest", LOWEST, np.float32)
        return self.add("Where", "mask", [seen, zero, lowest])
