"""Parameters by module, as PyTorch counts them."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from export.architecture import describe
from runtime.inside.summary import summarize

SIZES = {"vocab_size": 61, "n_positions": 17, "n_embd": 32, "n_layer": 2, "n_head": 4}


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_inner": 7}, {"tie_word_embeddings": False}, {"n_layer": 1, "n_head": 1}, {"n_embd": 80, "n_head": 2}],
    ids=str,
)
def test_every_module_has_what_pytorch_counts(changes):
    model = GPT2LMHeadModel(GPT2Config(**{**SIZES, **changes}, bos_token_id=0, eos_token_id=0))
    summary = summarize(describe(model.config, model.num_parameters()))
    own = {
        name: sum(parameter.numel() for parameter in module.parameters(recurse=False))
        for name, module in model.named_modules()
    }
    if model.config.tie_word_embeddings:
        own["lm_head"] = 0
    assert summary.parameters == {name: size for name, size in own.items() if size or name == "lm_head"}
    assert list(summary.parameters) == [name for name, size in own.items() if size or name == "lm_head"]
    assert summary.total == model.num_parameters()
