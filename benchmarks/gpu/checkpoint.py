"""The seeded checkpoint and its graphs: made by the first part, and loaded by the others."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import torch
import transformers
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.common.study import processor
from benchmarks.gpu.parts import Piece, Plan
from export.architecture import describe
from export.graphs.device import Float32Graph, HalfGraph
from export.graphs.linear import FloatLinear
from export.graphs.nodes import write_graph
from export.weights import write_weights
from runtime.bundle.architecture import Architecture
from runtime.diagnosis.choice import find_placement
from runtime.graphs.decode import DecodeGraph
from runtime.ort.placement import Placement

SIZES: dict[str, dict[str, int]] = {
    "seeded-small": {},
    "seeded-tiny": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 2048},
}
GRAPHS = {"fp32": "decode_cuda.onnx", "fp16": "decode_fp16.onnx"}  # in this order, as half() is for good
SPREAD = 0.02  # of the biases and norms too, which new models have at 0 and 1: then they would prove nothing
KINDS = {"fp32": Float32Graph, "fp16": HalfGraph}
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def pieces(plan: Plan) -> Iterator[Piece]:
    facts = machine(plan)
    yield "machine", facts, "\n".join(f"{name}: {value}" for name, value in facts.items())
    prepare(plan)
    checkpoint = Checkpoint(plan)
    sizes = checkpoint.architecture
    text = f"{plan.checkpoint}: {sizes.parameters:,} parameters in {sizes.n_layer} layers"
    yield "parameters", sizes.parameters, text


def machine(plan: Plan) -> dict[str, str]:
    card = torch.cuda.get_device_name() if plan.device == "cuda" else "none, a rehearsal on the CPU"
    return {
        "GPU": card,
        "processor": processor(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda})",
        "transformers": transformers.__version__,
        "onnxruntime": f"{onnxruntime.__version__} ({onnxruntime.get_device()})",
    }


def prepare(plan: Plan) -> None:
    """All files anew, so that they are this version's."""
    folder = Path(plan.folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = seeded_model(plan)
    model.save_pretrained(folder)
    architecture = describe(model.config, model.num_parameters())
    (folder / "architecture.json").write_text(json.dumps(fields(architecture)))
    write_tokenizer(architecture.vocab_size, folder / "tokenizer.json")
    for precision, name in GRAPHS.items():
        tensors = (model.half() if precision == "fp16" else model).state_dict()
        stored = write_weights(tensors, folder / f"{name}_data")
        write_graph(KINDS[precision](model.config, FloatLinear()), stored, folder / name)


def seeded_model(plan: Plan) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    layers = {"n_layer": plan.layers} if plan.layers else {}
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **SIZES[plan.checkpoint], **layers)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(SPREAD * torch.randn_like(parameter))
    return model


def fields(architecture: Any) -> dict[str, Any]:
    return {name: getattr(architecture, name) for name in architecture.__dataclass_fields__}


def write_tokenizer(vocab_size: int, path: Path) -> None:
    """A number for every id: the loops need a text, no matter which."""
    vocab = {f"Ġ{number}": number for number in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="Ġ0"))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


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


class Past:
    """A cache on the device, with its layers brought to the CPU when they are asked for."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    @property
    def layers(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(keys=layer.keys.cpu(), values=layer.values.cpu()) for layer in self.cache.layers]


class OnDevice:
    """A model on a device that is called, and answers, as one on the CPU: export's proofs know no device."""

    def __init__(self, model: GPT2LMHeadModel, device: str) -> None:
        self.model = model
        self.device = device

    @torch.no_grad()
    def __call__(self, ids: Tensor, *, past_key_values: Past | None = None, **settings: Any) -> SimpleNamespace:
        moved = {
            name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in settings.items()
        }
        past = past_key_values.cache if past_key_values else None
        result = self.model(ids.to(self.device), past_key_values=past, **moved)
        return SimpleNamespace(
            logits=result.logits.cpu(),
            past_key_values=Past(result.past_key_values) if result.past_key_values else None,
            hidden_states=[state.cpu() for state in result.hidden_states or ()],
            attentions=[weights.cpu() for weights in result.attentions or ()],
        )
