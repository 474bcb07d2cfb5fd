"""transformers' own `generate`, which optimum's models have too."""

import side_protocol


def served(loaded):
    """`load` and `first` of a side whose model `loaded(folder, threads)` gives."""

    def load(folder: str, _precision: str, threads: int):
        return taking(loaded(folder, threads))

    def first(folder: str, _precision: str, threads: int, text: str) -> int:
        return first_token(loaded(folder, threads), folder, text)

    return load, first


def taking(model):
    """What `load` of a side gives."""
    import torch

    model.generation_config.eos_token_id = None

    def take(prompts: list[list[int]], new_tokens: int):
        ids, mask = map(torch.tensor, side_protocol.left_padded(prompts))
        settings = {"attention_mask": mask, "do_sample": False, "max_new_tokens": new_tokens, "pad_token_id": 0}
        return lambda: model.generate(ids, **settings)[:, ids.shape[1] :].tolist()

    return take


def first_token(model, folder: str, text: str) -> int:
    """What `first` of a side gives."""
    from transformers import AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    return model.generate(**inputs, do_sample=False, max_new_tokens=1, pad_token_id=0)[0, -1].item()
