"""transformers on PyTorch: float32, scaled-dot-product attention, a key/value cache."""

import sys
from pathlib import Path

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
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model.generation_config.eos_token_id = None
    return model


def load(folder: str, _precision: str, threads: int):
    import torch

    model = loaded(folder, threads)

    def take(prompts: list[list[int]], new_tokens: int):
        ids, mask = map(torch.tensor, side_protocol.left_padded(prompts))
        settings = {"attention_mask": mask, "do_sample": False, "max_new_tokens": new_tokens, "pad_token_id": 0}
        return lambda: model.generate(ids, **settings)[:, ids.shape[1] :].tolist()

    return take


def first(folder: str, _precision: str, threads: int, text: str) -> int:
    from transformers import AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    model = loaded(folder, threads)
    return model.generate(**inputs, do_sample=False, max_new_tokens=1, pad_token_id=0)[0, -1].item()


if __name__ == "__main__":
    side_protocol.main(sys.modules[__name__])
