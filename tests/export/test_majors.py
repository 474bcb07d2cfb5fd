"""What differs between transformers 4 and 5 gives the same in both."""

import torch
from transformers import GPT2LMHeadModel

from export.majors import cache_of, run_block


@torch.no_grad()
def test_blocks_one_by_one_compute_what_the_model_does(original):
    """Calibration runs them so: a block of transformers 5 without a mask would look ahead."""
    model = GPT2LMHeadModel.from_pretrained(original, attn_implementation="eager").eval()
    ids = torch.randint(0, 8192, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = model(ids, output_hidden_states=True).hidden_states
    hidden = expected[0]
    for block, state in zip(model.transformer.h[:-1], expected[1:-1], strict=True):
        hidden = run_block(block, hidden)
        assert torch.equal(hidden, state)
    assert torch.equal(model.transformer.ln_f(run_block(model.transformer.h[-1], hidden)), expected[-1])


@torch.no_grad()
def test_the_cache_of_a_run_is_found(original):
    layers = cache_of(GPT2LMHeadModel.from_pretrained(original)(torch.zeros(1, 5, dtype=torch.int64))).layers
    assert [tuple(layer.keys.shape) for layer in layers] == [(1, 4, 5, 8)] * 3
