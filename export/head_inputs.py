"""What `lm_head` is given while the model writes texts of its own."""

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from export.architecture import start_id

TEXTS, LONGEST = 4, 64


@torch.no_grad()
def head_inputs(model: GPT2LMHeadModel) -> Tensor:
    """[R, C] of a few sampled texts, always the same ones."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    ids, past, inputs = torch.full((TEXTS, 1), start_id(config)), None, []
    for _ in range(min(LONGEST, config.n_positions)):
        result = model.transformer(ids, past_key_values=past, use_cache=True)
        past = result.past_key_values
        inputs.append(result.last_hidden_state[:, 0])
        ids = torch.multinomial(model.lm_head(inputs[-1]).softmax(-1), 1, generator=generator)
    return torch.cat(inputs)
