"""Biases, penalties and forbidden ids against transformers' logits processors, and OpenAI's formula by hand."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from runtime.text.options import Settings
from runtime.text.processors import Processors

SIZE = 12  # of a small vocabulary, in which ids recur; transformers has no bias of id 0
IDS = st.integers(0, SIZE - 1)
WORDS = st.lists(st.lists(IDS, min_size=1, max_size=3).map(tuple), max_size=4, unique=True)
PROMPT = "He opened the letter slowly and"


def processors_of_transformers(options, eos_ids, words, prompt_length):
    """In the order of `generate`, which the first test holds to."""
    made = []
    if options.get("logit_bias"):
        made.append(SequenceBiasLogitsProcessor([[[token], float(bias)] for token, bias in options["logit_bias"]]))
    if "repetition_penalty" in options:
        made.append(RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if words:
        made.append(NoBadWordsLogitsProcessor([list(word) for word in words]))
    if options.get("min_new_tokens") and eos_ids:
        made.append(MinNewTokensLengthLogitsProcessor(prompt_length, options["min_new_tokens"], sorted(eos_ids)))
    return LogitsProcessorList(made)


def test_the_order_is_that_of_transformers_generate(shipped):
    config = GenerationConfig(
        sequence_bias=[[[3], 1.0]], repetition_penalty=1.2, bad_words_ids=[[4]], min_new_tokens=2, eos_token_id=0
    )
    shipped.float32._prepare_special_tokens(config, device="cpu")
    own = LogitsProcessorList([LogitsProcessor()])
    found = shipped.float32._get_logits_processor(config, input_ids_seq_length=1, logits_processor=own)
    assert [type(one) for one in found] == [
        SequenceBiasLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        NoBadWordsLogitsProcessor,
        MinNewTokensLengthLogitsProcessor,
        LogitsProcessor,
    ]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(IDS, min_size=1, max_size=6),
    st.lists(IDS, max_size=8),
    st.fixed_dictionaries(
        {},
        optional={
            "logit_bias": st.dictionaries(st.integers(1, SIZE - 1), st.floats(-100, 100)).map(
                lambda each: (*each.items(),)
            ),
            "repetition_penalty": st.floats(0.5, 2),
            "min_new_tokens": st.integers(0, 9),
        },
    ),
    WORDS,
    st.sets(IDS, max_size=2),
    st.integers(0, 2**32),
)
def test_scores_are_those_of_transformers(prompt, generated, options, words, eos_ids, seed):
    """Bad words are no longer than the text here: transformers skips one that is, although its end may come next."""
    words = [word for word in words if len(word) <= len(prompt) + len(generated)]
    logits = np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)
    before = logits.copy()
    processors = Processors(Settings(**options), prompt, eos_ids, words)
    for token in generated:
        processors.append(token)
    ids = torch.tensor([[*prompt, *generated]])
    expected = processors_of_transformers(options, eos_ids, words, len(prompt))(ids, torch.tensor(logits)[None])[0]
    np.testing.assert_array_equal(processors.change(logits), expected.numpy())
    np.testing.assert_array_equal(logits, before)


def test_the_end_of_a_bad_word_may_not_come_in_a_text_that_is_all_of_its_beginning():
    processors = Processors(Settings(), [3], (), [(3, 5, 7)])
    processors.append(5)
    scores = processors.change(np.zeros(SIZE, np.float32))
    assert np.flatnonzero(np.isneginf(scores)).tolist() == [7]


@settings(max_examples=100, deadline=None)
@given(st.lists(IDS, max_size=12), st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 2**32))
def test_counts_are_penalized_by_openais_formula(generated, frequency, presence, seed):
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, in float64; c counts what was generated, not the prompt."""
    logits = np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)
    processors = Processors(Settings(frequency_penalty=frequency, presence_penalty=presence), [1, 2, 2])
    for token in generated:
        processors.append(token)
    counts = Counter(generated)
    expected = [mu - counts[j] * frequency - (counts[j] > 0) * presence for j, mu in enumerate(logits.tolist())]
    np.testing.assert_allclose(processors.change(logits), expected, rtol=0, atol=1e-5)  # float32 of numbers below 30


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"logit_bias": {11: 6.5, 12: -100}}, {"sequence_bias": [[[11], 6.5], [[12], -100.0]]}),
        ({"min_new_tokens": 30, "eos_token_id": [11, 13]}, {"min_new_tokens": 30, "eos_token_id": [0, 11, 13]}),
        ({"eos_token_id": 13}, {"eos_token_id": [0, 13]}),
        (
            {"repetition_penalty": 1.3, "logit_bias": {12: 3}},
            {"repetition_penalty": 1.3, "sequence_bias": [[[12], 3.0]]},
        ),
    ],
    ids=str,
)
def test_greedy_texts_are_those_of_generate(model, shipped, ours, theirs):
    ids = shipped.ids(PROMPT)
    expected = shipped.generate(ids, 40, **{"eos_token_id": 0, **theirs})
    completion = model.complete(PROMPT, max_new_tokens=40, **ours)
    assert list(completion.token_ids) == expected


@pytest.mark.parametrize("words", [["sir"], ["the letter", "said", "I"], ["was", "had", "and", ",", "."]], ids=str)
def test_bad_words_never_come_as_transformers_has_it(model, shipped, words):
    ids = shipped.ids(PROMPT)
    spelled = [shipped.tokenizer(form)["input_ids"] for word in words for form in (word, f" {word}")]
    expected = shipped.generate(ids, 40, bad_words_ids=spelled)
    completion = model.complete(PROMPT, max_new_tokens=40, ignore_eos=True, bad_words=words)
    assert list(completion.token_ids) == expected
    assert completion.token_ids != model.complete(PROMPT, max_new_tokens=40, ignore_eos=True).token_ids


class Squash(LogitsProcessor):
    """As people write them for transformers, of a batch."""

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, input_ids[0, -3:]] -= 4
        return torch.tanh(scores / 20)


def test_a_callers_function_gives_what_transformers_gives_with_it(model, shipped):
    expected = shipped.generate(shipped.ids(PROMPT), 40, logits_processor=LogitsProcessorList([Squash()]))

    def squash(ids, scores):
        assert ids.dtype == np.int64
        return Squash()(torch.from_numpy(ids)[None], torch.from_numpy(scores)[None])[0].numpy()

    completion = model.complete(PROMPT, max_new_tokens=40, ignore_eos=True, logits_processor=squash)
    assert list(completion.token_ids) == expected


def test_its_changes_come_before_those_of_sampling(model):
    """Of two ids that it leaves, top-k keeps the better one."""

    def leave_two(_ids, scores):
        left = np.full_like(scores, -np.inf)
        left[[20, 30]] = 1, 2
        return left

    completion = model.complete(PROMPT, max_new_tokens=5, logits_processor=leave_two, top_k=1, seed=1)
    assert set(completion.token_ids) == {30}
