"""What is prepared, as the parts load it."""

import json
from pathlib import Path

import torch
import transformers
from gpu_parts.plan import Plan
from transformers import GPT2LMHeadModel

from runtime.bundle.manifest import Architecture
from runtime.diagnosis.choice import find_placement
from runtime.graphs.decode import DecodeGraph
from runtime.ort.placement import Placement

SIZES = {"seeded-small": {}, "seeded-tiny": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 2048}}
GRAPHS = {"fp32": "decode_cuda.onnx", "fp16": "decode_fp16.onnx"}  # in this order, as half() is for good
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


class Checkpoint:
    """The models and sessions of one checkpoint on one device; none of them is kept."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.folder = Path(plan.folder)
        self.architecture = Architecture(**json.loads((self.folder / "architecture.json").read_text()))
        if plan.device == "cpu":
            torch.set_num_threads(plan.threads)

    def model(self, dtype: torch.dtype, attention: str) -> GPT2LMHeadModel:
        """On the device, for inference."""
        found = GPT2LMHeadModel.from_pretrained(self.folder, dtype=dtype, attn_implementation=attention)
        found.generation_config.eos_token_id = None  # it is to go on
        found.generation_config.pad_token_id = 0
        return found.to(self.plan.device).eval()

    def placement(self, *, cuda_graph: bool = True) -> Placement:
        placement, _ = find_placement(self.plan.device, Placement(on_device=True, cuda_graph=cuda_graph))
        return placement

    def session(self, precision: str, *, cuda_graph: bool = True) -> DecodeGraph:
        placement = self.placement(cuda_graph=cuda_graph)
        return DecodeGraph(self.graph(precision), self.architecture, placement=placement, threads=self.plan.threads)

    def graph(self, precision: str) -> Path:
        return self.folder / GRAPHS[precision]

    def prompts(self, rows: int, length: int) -> list[list[int]]:
        """Ids that nobody chose, the same ones each time."""
        generator = torch.Generator().manual_seed(1)
        return torch.randint(self.architecture.vocab_size, (rows, length), generator=generator).tolist()
