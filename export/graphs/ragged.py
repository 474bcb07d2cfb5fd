"""The ragged decode graph: any number of new ids for each slot in one run, without padding in its matrix products.

Ids of all slots are packed in one row [T]. Only GroupQueryAttention sees slots side by side: its inputs are gathered
into rows [B, S], padded on the right, and its outputs are gathered back. `query_seqlens`, in ONNX Runtime from 1.32 on,
says how many of a row's ids are new; 0 leaves a slot as it is.
"""

import onnx
from onnx import TensorProto, helper

from export.graphs.decode import DecodeGraph

QUERY_SEQLENS = 16  # the input's position in GroupQueryAttention


class RaggedGraph(DecodeGraph):
    """Hidden states are [T, C] throughout."""

    name = "gpt2_ragged"

    def flat(self, hidden: str) -> str:
        return hidden

    def attend(self, packed: str, layer: int, name: str) -> str:
        rows = self.add("Gather", f"{name}.rows", [packed, "packed_indices"], axis=0)  # [B, S, 3C]
        found = super().attend(rows, layer, name)
        return self.add("GatherND", f"{name}.packed", [found, "row_indices"])  # [T, C]

    def attention_inputs(self, packed: str, layer: int) -> list[str]:
        inputs = super().attention_inputs(packed, layer)
        return [*inputs, *[""] * (QUERY_SEQLENS - len(inputs)), "query_seqlens"]

    def inputs(self) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["token_count"]),
            helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["token_count"]),
            helper.make_tensor_value_info("packed_indices", TensorProto.INT64, ["batch_size", "sequence_length"]),
            helper.make_tensor_value_info("row_indices", TensorProto.INT64, ["token_count", 2]),
            helper.make_tensor_value_info("query_seqlens", TensorProto.INT32, ["batch_size"]),
            *super().inputs()[2:],
        ]
