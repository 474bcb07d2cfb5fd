"""The lens graph: what any layer's hidden state predicts, through `ln_f` and `lm_head`.

This is the logit lens (nostalgebraist, "interpreting GPT: the logit lens", 2020). The model's own logits are read the
same way, so that its last layer predicts what the model predicts. Ranks and log-probabilities over the vocabulary are
computed in the graph: in NumPy they take longer than the product does.
"""

from onnx import TensorProto, ValueInfoProto, helper
from transformers import GPT2Config

from export.architecture import head_weight
from export.graphs.nodes import GraphNodes


class LensGraph(GraphNodes):
    """Reads R = N + M rows: N hidden states, and M rows of final logits."""

    name = "gpt2_lens"

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config

    def build(self) -> None:
        ln_f = "transformer.ln_f"
        inputs = ["hidden_states", f"{ln_f}.weight", f"{ln_f}.bias"]
        normed = self.add("LayerNormalization", ln_f, inputs, axis=-1, epsilon=self.config.layer_norm_epsilon)
        rows = self.add("Gemm", "lm_head", [normed, head_weight(self.config)], transB=1)  # [N, V]
        self.add_node("Concat", "logits", [rows, "final_logits"], ["logits"], axis=0)  # [R, V]
        self.add_node("TopK", "likeliest", ["logits", "k"], ["top_logits", "top_ids"])  # [R, k]
        self.log_probabilities("top_logprobs", "top_ids")
        self.log_probabilities("answer_logprobs", "answers")
        self.rank()

    def log_probabilities(self, name: str, ids: str) -> None:
        """Log-probabilities of ids [R, n]. LogSoftmax sums in parts; ReduceLogSumExp sums at once and errs by 6e-5."""
        every = self.add("LogSoftmax", "logprobs", ["logits"], axis=1)  # [R, V]
        self.add_node("GatherElements", name, [every, ids], [name], axis=1)

    def rank(self) -> None:
        """The ranks of the answers [R, 1]: how many ids are likelier, plus one."""
        chosen = self.add("GatherElements", "answer_logits", ["logits", "answers"], axis=1)
        greater = self.add("Greater", "greater", ["logits", chosen])
        likelier = self.add("Cast", "likelier", [greater], to=TensorProto.INT64)
        count = self.add("ReduceSum", "likelier_ids", [likelier, self.constant("vocabulary", [1])])
        self.add_node("Add", "ranks", [count, self.constant("one", [1])], ["ranks"])

    def inputs(self) -> list[ValueInfoProto]:
        return [
            helper.make_tensor_value_info("hidden_states", TensorProto.FLOAT, ["states", self.config.n_embd]),
            helper.make_tensor_value_info("final_logits", TensorProto.FLOAT, ["finished", self.config.vocab_size]),
            helper.make_tensor_value_info("answers", TensorProto.INT64, ["states + finished", 1]),
            helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
        ]

    def outputs(self) -> list[ValueInfoProto]:
        rows = "states + finished"
        return [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [rows, self.config.vocab_size]),
            helper.make_tensor_value_info("top_ids", TensorProto.INT64, [rows, "k"]),
            helper.make_tensor_value_info("top_logprobs", TensorProto.FLOAT, [rows, "k"]),
            helper.make_tensor_value_info("answer_logprobs", TensorProto.FLOAT, [rows, 1]),
            helper.make_tensor_value_info("ranks", TensorProto.INT64, [rows, 1]),
        ]
