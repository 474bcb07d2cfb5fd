"""The lens graph: what a hidden state would predict if it were the last one, by `ln_f` and `lm_head`.

This is the logit lens (nostalgebraist, "interpreting GPT: the logit lens", 2020). Logits that the model made itself are
read the same way, so that its last layer says what the model says. What is counted over the vocabulary is counted in
the graph: in NumPy that takes longer than the product does.
"""

from onnx import TensorProto, ValueInfoProto, helper
from transformers import GPT2Config

from export.architecture import head_weight
from export.graph_file import GraphNodes


class LensGraph(GraphNodes):
    """N hidden states and M rows of finished logits, of which R = N + M rows are read."""

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
        self.likeliest()
        self.answer()

    def likeliest(self) -> None:
        """The k likeliest ids [R, k], and how likely."""
        outputs = ["top_logits", "top_ids"]
        self.add_node("TopK", "likeliest", ["logits", "k"], outputs)
        self.probabilities("probabilities", "top_logits")

    def answer(self) -> None:
        """How likely the answers [R, 1] are, and how many ids are likelier, plus one."""
        chosen = self.add("GatherElements", "answer_logits", ["logits", "answers"], axis=1)
        self.probabilities("answer_probabilities", chosen)
        likelier = self.add(
            "Cast", "likelier", [self.add("Greater", "greater", ["logits", chosen])], to=TensorProto.INT64
        )
        count = self.add("ReduceSum", "likelier_ids", [likelier, self.constant("vocabulary", [1])])
        self.add_node("Add", "ranks", [count, self.constant("one", [1])], ["ranks"])

    def probabilities(self, name: str, logits: str) -> None:
        total = self.add("ReduceLogSumExp", "log_total", ["logits", self.constant("vocabulary", [1])])  # [R, 1]
        self.add_node("Exp", name, [self.add("Sub", f"log_{name}", [logits, total])], [name])

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
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [rows, "k"]),
            helper.make_tensor_value_info("answer_probabilities", TensorProto.FLOAT, [rows, 1]),
            helper.make_tensor_value_info("ranks", TensorProto.INT64, [rows, 1]),
        ]
