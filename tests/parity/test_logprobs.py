"""Log-probabilities of generated tokens against those of PyTorch's logits after the same ids."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import runtime
from runtime.arrays import log_softmax

PROMPTS = ["It was a bright cold day", "", "She", "There was no possibility of taking a walk that day", "CHAPTER I"]
CHOICES = [
    {},
    {"temperature": 1.5, "seed": 1},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 2},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 1.3, "temperature": 0.7, "seed": 3},
]


@pytest.fixture(scope="module")
def assert_as_pytorch(shipped, pytorch):
    """The chosen token's log-probability, and the highest ones in order, are the truth but for float32's noise.

    An absolute bound, as the noise is that of the logits: of the size of 16 here, where float32 moves in steps of 1e-6,
    and sums of hundreds of products. It is measured: twice what PyTorch's own float32 is off, about 4e-5.
    """
    bound = 2 * shipped.logprob_noise
    assert bound < 1e-4

    def check(completion, count, prompt_ids):
        assert completion.prompt_tokens == len(prompt_ids)
        assert [entry.token_id for entry in completion.logprobs] == list(completion.token_ids)
        ids = np.array([[*prompt_ids, *completion.token_ids]])
        logits = pytorch(shipped.truth, ids).logits[0, len(prompt_ids) - 1 : -1]
        for entry, truth in zip(completion.logprobs, torch.log_softmax(logits, -1).numpy(), strict=True):
            assert entry.logprob == pytest.approx(truth[entry.token_id], rel=0, abs=bound)
            top_ids = [token for token, _ in entry.top]
            values = np.array([value for _, value in entry.top])
            assert len(set(top_ids)) == len(top_ids) == count
            np.testing.assert_allclose(values, truth[top_ids], rtol=0, atol=bound)
            highest = np.sort(truth)[::-1][:count]
            np.testing.assert_allclose(values, highest, rtol=0, atol=bound)  # so ids differ only where truth is a tie
            assert (np.diff(values) <= 0).all()

    return check


@pytest.mark.parametrize("options", CHOICES, ids=str)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_they_are_those_of_the_raw_logits_however_a_token_is_chosen(model, shipped, assert_as_pytorch, prompt, options):
    completion = model.complete(prompt, max_new_tokens=24, logprobs=5, **options)
    assert_as_pytorch(completion, 5, shipped.ids(prompt))


@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_they_are_the_same_in_a_batch(model, shipped, assert_as_pytorch, options):
    completions = model.complete(PROMPTS, batch_size=3, max_new_tokens=24, logprobs=3, stop=",", **options)
    assert len({len(completion.token_ids) for completion in completions}) > 1
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert_as_pytorch(completion, 3, shipped.ids(prompt))


def test_a_session_gives_them_for_what_it_adds(model, shipped, assert_as_pytorch):
    with model.session() as session:
        first = session.complete("The sea was calm", max_new_tokens=12, logprobs=2)
        second = session.complete(" Then the captain said", max_new_tokens=12, logprobs=2)
    assert_as_pytorch(first, 2, shipped.ids("The sea was calm"))
    assert_as_pytorch(second, 2, shipped.ids(f"The sea was calm{first} Then the captain said"))


def test_an_ending_token_has_one_too(shipped, short_sentences, pytorch):
    prompt_ids = shipped.ids("He opened the letter slowly and")
    expected = short_sentences.generate(prompt_ids, 64, eos_token_id=short_sentences.ids("."))
    assert len(expected) < 64
    model = runtime.load(short_sentences.bundle)
    completion = model.complete("He opened the letter slowly and", max_new_tokens=64, logprobs=1)
    short_sentences.assert_same(completion.token_ids, expected, prompt_ids)
    assert completion.finish_reason == "stop"
    logits = pytorch(short_sentences.truth, np.array([[*prompt_ids, *expected]])).logits[0, -2]
    truth = float(torch.log_softmax(logits, -1)[expected[-1]])
    assert completion.logprobs[-1].logprob == pytest.approx(truth, rel=0, abs=2 * shipped.logprob_noise)


def test_none_of_the_most_likely_ones(model, shipped, assert_as_pytorch):
    assert_as_pytorch(model.complete(PROMPTS[0], max_new_tokens=8, logprobs=0), 0, shipped.ids(PROMPTS[0]))


def test_all_there_are(model, shipped, assert_as_pytorch):
    count = shipped.architecture.vocab_size
    completion = model.complete(PROMPTS[0], max_new_tokens=8, logprobs=count)
    assert_as_pytorch(completion, count, shipped.ids(PROMPTS[0]))
    for entry in completion.logprobs:
        assert sum(np.exp(value) for _, value in entry.top) == pytest.approx(1, abs=1e-5)


def test_not_asked_for_there_are_none(model):
    assert model.complete(PROMPTS[0], max_new_tokens=2).logprobs is None


def units_off(ours, expected):
    """In units in the last place of the result, or of 1 where that is more: exp(0) = 1 is a term of the logarithm."""
    assert ours.dtype == np.float32
    expected = expected.numpy()
    return np.max(np.abs(ours - expected) / np.spacing(np.maximum(np.abs(expected), 1).astype(np.float32)))


@pytest.mark.parametrize("size", [2, 300, 8192, 50257])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1, 3, 30, 1e3, 1e6, 1e37])
@pytest.mark.parametrize("shift", [0, -1e4])
def test_log_softmax_is_pytorchs_to_a_few_units_in_the_last_place(size, scale, shift):
    """In float32 up to a few hundred logits: of 50,257 PyTorch's float32 sum alone is up to 15 units off the truth."""
    logits = (scale * np.random.default_rng(size).standard_normal((3, size)) + shift).astype(np.float32)
    assert units_off(log_softmax(logits), torch.log_softmax(torch.tensor(logits).double(), -1)) <= 4
    if size <= 300:
        assert units_off(log_softmax(logits), torch.log_softmax(torch.tensor(logits), -1)) <= 4


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 300)), elements=st.floats(-1, 1, width=32)),
    st.sampled_from([1e-3, 1, 30, 1e3, 1e38]),
)
@example(np.zeros((2, 50257), np.float32), 1)
def test_log_softmax_is_the_truth_but_for_the_rounding_of_its_sum(values, scale):
    """Pairwise, a sum of n rounds at most 19 + log2(n / 128) times by half a unit: 14 with the other operations."""
    logits = values * np.float32(scale)
    assert units_off(log_softmax(logits), torch.log_softmax(torch.tensor(logits).double(), -1)) <= 14
