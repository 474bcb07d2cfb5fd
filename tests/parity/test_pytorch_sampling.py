"""Sampling against transformers' logits processors, and draws against an inverse CDF over PyTorch's probabilities."""

from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from runtime.text.options import Settings
from runtime.text.processors import penalize
from runtime.text.sampling import Sampler, keep_likely

PROCESSORS = {
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}
OPTIONS = {
    "repetition_penalty": st.floats(0.01, 100) | st.floats(0.8, 1.5),
    "temperature": st.floats(1e-6, 10) | st.floats(0.5, 1.5),
    "top_k": st.integers(1, 400) | st.integers(1, 10),
    "top_p": st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]),
    "min_p": st.floats(1e-6, 1) | st.sampled_from([0.0, 1.0]),
}
SOME_OPTIONS = [
    {"temperature": 0.7},
    {"top_k": 40},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"temperature": 1.3, "top_k": 100, "top_p": 0.95, "min_p": 0.01},
    {"repetition_penalty": 1.2, "temperature": 0.8, "top_p": 0.8},
    {"repetition_penalty": 0.9, "top_k": 1000, "min_p": 0.001},
]
SEEN = st.lists(st.integers(0, 299), min_size=1, max_size=20)  # a prompt has at least one id
BORDER = 1e-6  # float32 sums of probabilities were at most 2.4e-7 off, over vocabularies up to 50,257
DRAWS = 20_000


@st.composite
def logits_like(draw):
    """Logits of some vocabulary and scale, with ties and without."""
    size, scale = draw(st.integers(2, 300)), draw(st.sampled_from([1e-3, 0.1, 1, 10, 100]))
    if draw(st.booleans()):
        return random_logits(size, scale, draw(st.integers(0, 2**32)))
    elements = draw(st.sampled_from([st.floats(-1, 1, width=32), st.integers(-4, 4).map(lambda n: n / 4)]))
    return draw(hnp.arrays(np.float32, size, elements=elements)) * np.float32(scale)


def random_logits(size, scale, seed):
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def transformers_scores(logits, options, seen=()):
    """Scores [V] as transformers' processors leave them: minus infinity where an id must not come next.

    torch.sort promises no order of equal scores, so that those which top-p keeps at its border depend on the machine;
    here it sorts stably.
    """
    scores, ids = torch.tensor(logits)[None], torch.tensor([seen], dtype=torch.long)
    with mock.patch("torch.sort", partial(torch.sort, stable=True)):
        for name, processor in PROCESSORS.items():
            if name in options:
                scores = processor(options[name])(ids, scores)
    return scores[0].numpy()


def transformers_probabilities(logits, options, seen=()):
    return torch.tensor(transformers_scores(logits, options, seen)).double().softmax(-1).numpy()


def runtime_scores(logits, options, seen=()):
    chosen = Settings(**options)
    return keep_likely(penalize(logits, seen, chosen.repetition_penalty), chosen)


def near_a_border(scores, options):
    """Of scores [V] before any filter: ids that exact arithmetic puts so near a border that rounding may decide."""
    near = np.zeros(len(scores), bool)
    left = np.flatnonzero(np.isfinite(transformers_scores(scores, select(options, "top_k"))))  # no rounding in this one
    exact = scores.astype(np.float64)
    below = exact.max() - exact  # the logarithm of how many times less likely than the most likely
    if "top_p" in options:
        order = left[np.argsort(scores[left], kind="stable")]
        gone_by = np.exp(-below[order]).cumsum()
        near[order] = np.abs(gone_by / gone_by[-1] - (1 - options["top_p"])) < BORDER
        near[order[-1]] = False
    if options.get("min_p", 0) > 0:
        rounding = 2**-23 * (below + 8)  # of two differences, and of a few operations with one rounding each
        near |= (below > 0) & (np.abs(below + np.log(options["min_p"])) < rounding)
    return near


def select(options, *names):
    return {name: value for name, value in options.items() if name in names}


def assert_bitwise(array, expected):
    assert array.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(array.view(np.uint32), expected.view(np.uint32))


def assert_as_transformers(logits, options, seen=()):
    unfiltered = transformers_scores(logits, select(options, "repetition_penalty", "temperature"), seen)
    expected = np.isfinite(transformers_scores(logits, options, seen))
    ids, scores = runtime_scores(logits, options, seen)
    assert_bitwise(scores, unfiltered[ids])
    kept = np.isin(np.arange(len(logits)), ids)
    np.testing.assert_array_equal(ids, np.flatnonzero(kept))
    wrong = (kept != expected) & ~near_a_border(unfiltered, options)
    assert not wrong.any(), f"ids {np.flatnonzero(wrong)} of {kept.sum()} kept, not {expected.sum()}"


def inverse_cdf(probabilities, uniform, slack):
    """Ids that come out where `uniform` falls, or falls within `slack` of it; nearly always one."""
    cumulative = probabilities.cumsum()
    first, last = (np.searchsorted(cumulative, uniform + off, side="right") for off in (-slack, slack))
    return {int(token) for token in range(first, min(last, len(cumulative) - 1) + 1) if probabilities[token] > 0}


def uniforms(seed, count):
    """As the module says: the 53 high bits of PCG64's words."""
    return [(word >> 11) / 2**53 for word in np.random.PCG64(seed).random_raw(count).tolist()]


@pytest.fixture(scope="module")
def novel_logits(shipped, pytorch):
    """PyTorch's logits [31, V] after each token of a text, and the ids of the text."""
    ids = shipped.text_ids(31)
    return pytorch(shipped.float32, ids).logits[0].numpy(), ids[0].tolist()


def test_the_order_is_that_of_transformers_generate(shipped):
    values = {"repetition_penalty": 1.2, "temperature": 0.7, "top_k": 4, "top_p": 0.9, "min_p": 0.1}
    processors = shipped.float32._get_logits_processor(GenerationConfig(do_sample=True, **values))
    assert [type(processor) for processor in processors] == list(PROCESSORS.values())


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_keeps_the_ids_and_scores_that_transformers_keeps(name):
    @settings(max_examples=150, deadline=None)
    @given(logits_like(), OPTIONS[name], SEEN)
    def check(logits, value, seen):
        seen = [token % len(logits) for token in seen]
        assert_as_transformers(logits, {name: value}, seen)

    check()


@settings(max_examples=300, deadline=None)
@given(logits_like(), st.fixed_dictionaries({}, optional=OPTIONS), SEEN)
def test_options_together_keep_the_ids_and_scores_that_transformers_keeps(logits, options, seen):
    seen = [token % len(logits) for token in seen]
    assert_as_transformers(logits, options, seen)


@settings(max_examples=150, deadline=None)
@given(logits_like(), OPTIONS["top_p"])
def test_of_equal_scores_top_p_keeps_as_many_as_transformers_does_however_it_sorts(logits, top_p):
    near = near_a_border(logits, {"top_p": top_p})
    expected = TopPLogitsWarper(top_p)(None, torch.tensor(logits)[None])[0].numpy()
    kept = np.sort(runtime_scores(logits, {"top_p": top_p})[1])
    expected = np.sort(expected[np.isfinite(expected)])
    if near.any():
        kept, expected = (scores[~np.isin(scores, logits[near])] for scores in (kept, expected))
    np.testing.assert_array_equal(kept, expected)  # 0 and -0 are equal


@pytest.mark.parametrize("options", SOME_OPTIONS, ids=str)
def test_logits_of_the_shipped_checkpoint(novel_logits, options):
    logits, ids = novel_logits
    for position, row in enumerate(logits):
        assert_as_transformers(row, options, ids[: position + 1])


@pytest.mark.parametrize("options", SOME_OPTIONS, ids=str)
@pytest.mark.parametrize("scale", [0.1, 3, 30])
def test_as_many_logits_as_gpt2_has(options, scale):
    assert_as_transformers(random_logits(50257, scale, seed=5), options, [0, 7, 7, 50256])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_p": 0.0}, [3]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"min_p": 0.0}, [0, 1, 2, 3, 4]),
        ({"min_p": 1.0}, [1, 3]),
        ({"top_k": 1}, [1, 3]),
        ({"top_k": 4}, [0, 1, 3, 4]),
        ({"top_k": 5}, [0, 1, 2, 3, 4]),
        ({"top_k": 6}, [0, 1, 2, 3, 4]),
        ({"temperature": 1e-6, "top_p": 0.6}, [1, 3]),
        ({"temperature": 1e-6, "top_p": 0.4}, [3]),
        ({"top_k": 1, "top_p": 0.0, "min_p": 1.0}, [3]),
    ],
    ids=str,
)
def test_options_at_their_ends(options, kept):
    logits = np.array([1, 3, -2, 3, 1], np.float32)
    np.testing.assert_array_equal(runtime_scores(logits, options)[0], kept)
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(transformers_scores(logits, options))), kept)


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, [3]), (0.5, [2, 3]), (0.75, [1, 2, 3]), (0.6, [1, 2, 3])])
def test_of_equal_scores_top_p_drops_the_lowest_ids(top_p, kept):
    """Four quarters, whose sums are exact: a sum that reaches 1 - p exactly still goes."""
    np.testing.assert_array_equal(runtime_scores(np.zeros(4, np.float32), {"top_p": top_p})[0], kept)


def test_a_penalty_divides_what_is_positive_and_multiplies_what_is_negative_once_an_id():
    logits = np.array([2, -2, 2, -2, 0], np.float32)
    np.testing.assert_array_equal(penalize(logits, [0, 1, 1, 0, 4], 4.0), np.array([0.5, -8, 2, -2, 0], np.float32))
    np.testing.assert_array_equal(logits, [2, -2, 2, -2, 0])


@pytest.mark.parametrize("seed", [0, 1, 17, 2**64 - 1])
@pytest.mark.parametrize("options", [{}, *SOME_OPTIONS], ids=str)
def test_a_draw_is_where_the_seeds_number_falls_in_pytorchs_probabilities(novel_logits, options, seed):
    logits, ids = novel_logits
    sampler, seen = Sampler(Settings(seed=seed, **options), ids), list(ids)
    for row, uniform in zip(logits, uniforms(seed, len(logits)), strict=True):
        token = sampler.choose(row)
        assert token in inverse_cdf(transformers_probabilities(row, options, seen), uniform, BORDER)
        seen.append(token)


@pytest.mark.parametrize("options", [{"top_k": 30, "top_p": 0.95}, {"temperature": 1.5, "min_p": 0.02}], ids=str)
@pytest.mark.parametrize("samplers", [DRAWS, 1], ids=["a seed a draw", "one seed"])
def test_draws_are_as_frequent_as_transformers_makes_them_likely(options, samplers):
    logits = random_logits(200, 2, seed=11)
    made = [Sampler(Settings(seed=seed, **options), [0]) for seed in range(samplers)]
    counts = np.bincount([made[n % samplers].choose(logits) for n in range(DRAWS)], minlength=len(logits))
    expected = DRAWS * transformers_probabilities(logits, options)
    assert counts[expected == 0].sum() == 0
    counts, expected = pool_rare(counts[expected > 0], expected[expected > 0])
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    assert len(counts) > 10
    assert torch.special.gammaincc(freedom, torch.tensor(chi_square / 2)) > 0.001


def pool_rare(counts, expected):
    """Those expected under ten times as one, for whom chi-square is no good approximation singly."""
    rare = expected < 10
    if not rare.any():
        return counts, expected
    return np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())


def test_without_a_seed_draws_differ():
    logits = np.zeros(1000, np.float32)
    assert len({Sampler(Settings(temperature=1.0), [0]).choose(logits) for _ in range(20)}) > 10


@pytest.mark.parametrize("options", [{"temperature": 1e-6}, {"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}], ids=str)
def test_one_id_left_is_the_one_drawn(novel_logits, options):
    logits, _ = novel_logits
    for seed, row in enumerate(logits):
        assert Sampler(Settings(seed=seed, **options), [0]).choose(row) == torch.tensor(row).argmax()


@pytest.mark.parametrize("others", [{}, {"seed": 3}, {"top_k": 40, "top_p": 0.9}], ids=str)
def test_a_temperature_of_zero_is_greedy(model, shipped, others):
    prompt_ids = shipped.ids("He opened the letter slowly and")
    completion = model.complete("He opened the letter slowly and", max_new_tokens=24, temperature=0, **others)
    shipped.assert_same(completion.token_ids, shipped.generate(prompt_ids, 24), prompt_ids)


@pytest.mark.parametrize("prompt", ["", "It was a bright cold day", "My dear sir,", "“Well,” said"])
@pytest.mark.parametrize("penalty", [0.8, 1.1, 1.5])
def test_greedy_with_a_penalty_gives_the_tokens_of_transformers(model, shipped, prompt, penalty):
    prompt_ids = shipped.ids(prompt)
    expected = shipped.generate(prompt_ids, 48, repetition_penalty=penalty)
    completion = model.complete(prompt, max_new_tokens=48, repetition_penalty=penalty, ignore_eos=True)
    shipped.assert_same(completion.token_ids, expected, prompt_ids, penalty=penalty)


def completions(model, prompt, **options):
    """Alone, in a stream, in a session, and in the middle of a batch."""
    yield model.complete(prompt, **options)
    with model.stream(prompt, **options) as stream:
        assert "".join(stream) == stream.completion.text
        yield stream.completion
    with model.session() as session:
        yield session.complete(prompt, **options)
    yield model.complete(["Call me", prompt, "The sea was calm, and the ship"], batch_size=2, **options)[1]


@pytest.mark.parametrize("options", [{}, *SOME_OPTIONS], ids=str)
def test_completions_are_drawn_from_pytorchs_probabilities(model, shipped, pytorch, options):
    """Float32 logits that are off by d move a cumulative probability by d / 2 at most, times what scales the scores."""
    prompt, seed = "The old house stood at the end of the lane", 8
    penalty = options.get("repetition_penalty", 1)
    scale = max(penalty, 1 / penalty) / options.get("temperature", 1)
    slack = scale * shipped.logprob_noise
    for completion in completions(model, prompt, max_new_tokens=24, ignore_eos=True, seed=seed, **options):
        ids = [*shipped.ids(prompt), *completion.token_ids]
        logits = pytorch(shipped.float32, np.array([ids])).logits[0].numpy()
        for n, uniform in enumerate(uniforms(seed, 24), completion.prompt_tokens):
            probabilities = transformers_probabilities(logits[n - 1], options, ids[:n])
            assert ids[n] in inverse_cdf(probabilities, uniform, slack), f"token {n}"
