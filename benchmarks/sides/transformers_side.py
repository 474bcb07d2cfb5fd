"""transformers on PyTorch: float32, scaled-dot-product attention, a key/value cache."""

import sys
from pathlib import Path

import generating
import side_protocol


def prepare(checkpoint: Path, _bundle: Path, _folder: Path, _precision: str) -> dict:
    names = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    return {
        "folder": checkpoint,
        "files": [checkpoint / name for name in names],
        "weights": side_protocol.float32_weights(checkpoint),
    }


def loaded(folder: str, threads: int):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


load, first = generating.served(loaded)

if __name__ == "__main__":
    side_protocol.main(sys.modules[__name__])
