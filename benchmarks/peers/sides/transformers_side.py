"""transformers on PyTorch: float32, scaled-dot-product attention, a key/value cache; optimum has its `generate`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.sides import protocol


def prepare(checkpoint: Path, _bundle: Path, _folder: Path, _precision: str) -> protocol.Facts:
    names = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    return {
        "folder": checkpoint,
        "files": [checkpoint / name for name in names],
        "weights": protocol.float32_weights(checkpoint),
    }


def loaded(folder: str, threads: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def served(loaded: Callable[[str, int], Any]) -> tuple[protocol.Load, protocol.First]:
    """`load` and `first` of a side whose model `loaded(folder, threads)` gives."""

    def load(folder: str, _precision: str, threads: int) -> protocol.Take:
        return taking(loaded(folder, threads))

    def first(folder: str, _precision: str, threads: int, text: str) -> int:
        return first_token(loaded(folder, threads), folder, text)

    return load, first


def taking(model: Any) -> protocol.Take:
    """What `load` of a side gives."""
    import torch

    model.generation_config.eos_token_id = None

    def take(prompts: list[list[int]], new_tokens: int) -> protocol.Work:
        ids, mask = map(torch.tensor, protocol.left_padded(prompts))
        settings = {"attention_mask": mask, "do_sample": False, "max_new_tokens": new_tokens, "pad_token_id": 0}
        return lambda: model.generate(ids, **settings)[:, ids.shape[1] :].tolist()

    return take


def first_token(model: Any, folder: str, text: str) -> int:
    """What `first` of a side gives."""
    from transformers import AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    return int(model.generate(**inputs, do_sample=False, max_new_tokens=1, pad_token_id=0)[0, -1])


load, first = served(loaded)

if __name__ == "__main__":
    protocol.main(sys.modules[__name__])
