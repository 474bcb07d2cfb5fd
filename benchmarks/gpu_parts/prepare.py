"""The seeded checkpoint and its graphs, made once, and the machine they are measured on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import transformers
from figures import processor
from gpu_parts.checkpoint import GRAPHS, SIZES, Checkpoint
from gpu_parts.part import Piece
from gpu_parts.plan import Plan
from tokenizers import Tokenizer, decoders, models
from transformers import GPT2Config, GPT2LMHeadModel

from export.architecture import describe
from export.graphs.device import Float32Graph, HalfGraph
from export.graphs.linear import FloatLinear
from export.graphs.nodes import write_graph
from export.weights import write_weights

SPREAD = 0.02  # of the biases and norms too, which new models have at 0 and 1: then they would prove nothing
KINDS = {"fp32": Float32Graph, "fp16": HalfGraph}


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
