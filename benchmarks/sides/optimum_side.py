"""optimum's ORTModelForCausalLM: its own export, without attention maps and hidden states to carry along."""

import shutil
import sys
from pathlib import Path

import side_protocol


def prepare(checkpoint: Path, _bundle: Path, folder: Path, _precision: str) -> dict:
    from optimum.onnxruntime import ORTModelForCausalLM

    ORTModelForCausalLM.from_pretrained(str(checkpoint), export=True, use_cache=True).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder)
    return {
        "folder": folder,
        "files": [path for path in folder.iterdir() if path.is_file()],
        "weights": side_protocol.float32_weights(checkpoint),
    }


def loaded(folder: str, threads: int):
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = ORTModelForCausalLM.from_pretrained(folder, use_cache=True, session_options=options)
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
