"""A GPT-2 to be traced, with the right shapes and no weights: they are attached afterwards, from the bundle's file.

So tracing makes no copy of them, and `lm_head` stays tied to `wte`.
"""

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel


def weightless_model(config: GPT2Config) -> GPT2LMHeadModel:
    """A model whose every parameter is one number, expanded to its shape without taking memory.

    Each has a different number, because an exporter merges parameters of equal shape and values.
    """
    eager = GPT2Config.from_dict(config.to_dict(), attn_implementation="eager")
    with torch.device("meta"):
        model = GPT2LMHeadModel(eager)
    for number, (name, parameter) in enumerate(list(model.named_parameters())):
        expanded = torch.tensor(float(number)).expand(parameter.shape)
        replace(model, name, torch.nn.Parameter(expanded, requires_grad=False))
    model.tie_weights()
    causal = torch.ones(config.n_positions, config.n_positions, dtype=torch.bool).tril()[None, None]
    for name, _ in list(model.named_buffers()):  # transformers 5 has none
        replace(model, name, causal if name.endswith("attn.bias") else torch.tensor(-1e4))
    return model.eval()


def replace(model: torch.nn.Module, name: str, value: Any) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, value)
