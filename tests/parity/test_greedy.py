"""128 greedy tokens over 20 prompts, as transformers' generate gives them."""

import pytest

from runtime.proof.graphs import greedy_tokens

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


@pytest.mark.parametrize("prompt", PROMPTS)
def test_shipped_checkpoint(shipped, prompt):
    prompt_ids = shipped.tokenizer(prompt)["input_ids"]
    tokens = greedy_tokens(shipped.decode, prompt_ids, COUNT)
    shipped.assert_same(tokens, shipped.generate(prompt_ids, COUNT), prompt_ids)


@pytest.mark.wide
@pytest.mark.parametrize("prompt", PROMPTS)
def test_full_size(make_pair, prompt):
    pair = make_pair(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
    prompt_ids = pair.tokenizer(prompt)["input_ids"]
    tokens = greedy_tokens(pair.decode, prompt_ids, COUNT)
    pair.assert_same(tokens, pair.generate(prompt_ids, COUNT), prompt_ids)
