"""128 greedy tokens over 20 prompts, as transformers' generate gives them."""

import numpy as np
import pytest
import torch

from runtime.replay import greedy_tokens

COUNT = 128
PROMPTS = [
    "It was a bright cold day",
    "The old house stood at the end of the lane",
    "Call me",
    "He opened the letter slowly and",
    '"I do not believe a word of it," said',
    "In the year 1897",
    "She",
    "The sea was calm, and the ship",
    "CHAPTER I",
    "My dear sir,",
    "Once upon a time there was a",
    "When the clock struck twelve,",
    "I never knew",
    "There was no possibility of taking a walk that day",
    "The doctor looked at the patient and",
    "“Well,” said",
    "Down the river went",
    "Nothing could be",
    "At last, after many days of",
    "What a fine thing for our girls!",
]


def generate(model, prompt_ids: list[int], count: int) -> list[int]:
    """transformers' own greedy decoding, ends of text ignored."""
    ids = torch.tensor([prompt_ids])
    settings = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count, "eos_token_id": None}
    output = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)
    return output[0, ids.shape[1] :].tolist()


def assert_same(pair, tokens, expected, prompt_ids) -> None:
    """Equal, or first different where PyTorch's two best logits lie closer together than float32 can tell."""
    if tokens == expected:
        return
    at = next(n for n, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b)
    ids = torch.tensor([prompt_ids + expected[:at]])
    with torch.no_grad():
        truth, float32 = pair.truth(ids).logits[0, -1].numpy(), pair.float32(ids).logits[0, -1].numpy()
    second, best = np.sort(truth)[-2:]
    assert best - second < 2 * np.abs(float32 - truth).max(), f"token {at} of {prompt_ids}"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_shipped_checkpoint(shipped, prompt):
    prompt_ids = shipped.tokenizer(prompt)["input_ids"]
    tokens = greedy_tokens(shipped.decode, prompt_ids, COUNT)
    assert_same(shipped, tokens, generate(shipped.float32, prompt_ids, COUNT), prompt_ids)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_full_size(make_pair, prompt):
    pair = make_pair(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
    prompt_ids = pair.tokenizer(prompt)["input_ids"]
    tokens = greedy_tokens(pair.decode, prompt_ids, COUNT)
    assert_same(pair, tokens, generate(pair.float32, prompt_ids, COUNT), prompt_ids)
