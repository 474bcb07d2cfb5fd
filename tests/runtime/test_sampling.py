"""Sampling: the same seed gives the same text wherever and with whatever else, and ids come as often as they should."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.text.options import Settings
from runtime.text.sampling import Sampler, inverse_cdf

FLAT = {"temperature": 1e6, "ignore_eos": True}  # every id is about as likely
WAYS = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40},
    {"top_p": 0.9},
    {"min_p": 0.05, "temperature": 1.5},
    {"temperature": 0.9, "top_k": 100, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2},
    {},
]
DRAWS = 6_000


def drawn(logits, count=DRAWS, prompt_ids=(), **options):
    """How often each id comes."""
    sampler = Sampler(Settings(**{"seed": 1, **options}), prompt_ids)
    logits = np.array(logits, np.float32)
    return np.bincount([sampler.choose(logits) for _ in range(count)], minlength=len(logits)) / count


def close_to(probabilities, count=DRAWS):
    """Within four standard deviations; the seeds are fixed, so a test that passes once passes for good."""
    return [pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / count)) for p in probabilities]


# the same seed


@pytest.fixture(scope="module")
def prompts(probes):
    return ["", "It", *(probe.prompt for probe in probes), "He said that he would not go there again"]


@pytest.fixture(scope="module", params=WAYS, ids=str)
def way(request):
    return {**request.param, "seed": 17, "max_new_tokens": 16}


@pytest.fixture(scope="module")
def alone(model, prompts, way):
    return [model.complete(prompt, **way) for prompt in prompts]


def test_the_same_seed_gives_the_same_text(model, prompts, way, alone):
    assert [model.complete(prompt, **way) for prompt in prompts] == alone


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_a_batch_of_any_size_gives_what_each_gives_alone(model, prompts, way, alone, batch_size):
    assert model.complete(prompts, batch_size=batch_size, **way) == alone


@pytest.mark.parametrize("order", range(2))
def test_the_order_in_a_batch_does_not_matter(model, prompts, way, alone, order):
    places = random.Random(order).sample(range(len(prompts)), len(prompts))
    assert model.complete([prompts[n] for n in places], batch_size=3, **way) == [alone[n] for n in places]


def test_the_same_prompt_many_times_in_a_batch_has_one_text(model, prompts, way, alone):
    assert model.complete([prompts[2]] * 7, batch_size=4, **way) == [alone[2]] * 7


def test_a_stream_gives_the_same(model, prompts, way, alone):
    for prompt, expected in zip(prompts, alone, strict=True):
        stream = model.stream(prompt, **way)
        assert "".join(stream) == expected.text
        assert stream.completion == expected


def test_a_session_gives_the_same(model, prompts, way, alone):
    for prompt, expected in zip(prompts, alone, strict=True):
        with model.session() as session:
            assert session.complete(prompt, **way) == expected


def test_log_probabilities_do_not_change_what_is_drawn(model, prompts, way, alone):
    made = model.complete(prompts, logprobs=3, **way)
    assert [completion.token_ids for completion in made] == [completion.token_ids for completion in alone]


def test_a_longer_text_begins_with_the_shorter(model, prompts, way, alone):
    for prompt, expected in zip(prompts[:3], alone, strict=False):
        assert model.complete(prompt, **way | {"max_new_tokens": 5}).token_ids == expected.token_ids[:5]


# other seeds


def test_different_seeds_differ(model, probe):
    texts = {model.complete(probe.prompt, seed=seed, max_new_tokens=20, **FLAT).text for seed in (0, 1, 2, 2**64 - 1)}
    assert len(texts) == 4


def test_without_a_seed_each_text_has_its_own(model, probe):
    made = [model.complete(probe.prompt, max_new_tokens=20, **FLAT) for _ in range(2)]
    made += model.complete([probe.prompt] * 3, max_new_tokens=20, **FLAT)
    assert len({completion.token_ids for completion in made}) == 5


def test_sampling_elsewhere_does_not_touch_greedy(model, probes):
    for probe in probes:
        model.complete(probe.prompt, max_new_tokens=5, seed=1)
        assert model.complete(probe.prompt, max_new_tokens=20).token_ids == probe.token_ids[:20]


def test_nobody_elses_random_numbers_are_touched(model, probe):
    np.random.seed(3)
    before = np.random.get_state()[1].tolist(), random.getstate()
    model.complete(probe.prompt, max_new_tokens=5, temperature=1.0)
    model.complete(probe.prompt, max_new_tokens=5, seed=1)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before


def test_the_numbers_behind_a_seed_are_those_that_numpys_pcg64_is_known_for():
    """Fixed for good (NEP 19), so that a later release makes the same text; they are in NumPy's own documentation."""
    sampler, logits = Sampler(Settings(seed=42), []), np.zeros(100_000, np.float32)
    assert [sampler.choose(logits) for _ in range(5)] == [77395, 43887, 85859, 69736, 9417]


# how often


def test_ids_come_as_often_as_they_are_likely():
    assert list(drawn(np.log([0.5, 0.3, 0.15, 0.05]))) == close_to([0.5, 0.3, 0.15, 0.05])


def test_the_first_draws_of_many_seeds_do_too():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    first = [Sampler(Settings(seed=seed), []).choose(logits) for seed in range(5000)]
    assert list(np.bincount(first, minlength=4) / 5000) == close_to([0.5, 0.3, 0.15, 0.05], 5000)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"temperature": 2.0}, [16, 8, 4, 2]),
        ({"temperature": 0.5}, [256**2, 64**2, 16**2, 4**2]),
        ({"temperature": 1e6}, [1, 1, 1, 1]),
        ({"temperature": 1e-6}, [1, 0, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 3}, [256, 64, 16, 0]),
        ({"top_k": 99}, [256, 64, 16, 4]),
        ({"top_p": 0}, [1, 0, 0, 0]),
        ({"top_p": 0.75}, [1, 0, 0, 0]),  # 256 of 340 is 0.753
        ({"top_p": 0.76}, [256, 64, 0, 0]),
        ({"top_p": 0.95}, [256, 64, 16, 0]),  # 320 of 340 is 0.941
        ({"top_p": 1}, [256, 64, 16, 4]),
        ({"min_p": 0}, [256, 64, 16, 4]),
        ({"min_p": 0.05}, [256, 64, 16, 0]),  # 16 of 256 is 0.0625, 4 of 256 is 0.016
        ({"min_p": 0.2}, [256, 64, 0, 0]),
        ({"min_p": 1}, [1, 0, 0, 0]),
        ({"top_k": 2, "top_p": 0.81}, [256, 64, 0, 0]),  # of the two left, 256 of 320 is 0.8
        ({"top_k": 2, "top_p": 0.79}, [1, 0, 0, 0]),
        ({"temperature": 2.0, "top_p": 0.5}, [1, 0, 0, 0]),  # 16 of 30 is 0.533
        ({"temperature": 2.0, "top_p": 0.54}, [16, 8, 0, 0]),
        ({"temperature": 2.0, "min_p": 0.2}, [16, 8, 4, 0]),  # not of 256: the temperature comes first
        ({"top_p": 0.95, "min_p": 0.2}, [256, 64, 0, 0]),
    ],
    ids=str,
)
def test_what_is_kept_is_drawn_as_often_as_it_is_likely(options, weights):
    found = drawn(np.log([256, 64, 16, 4]), **options)
    assert list(found) == close_to([weight / sum(weights) for weight in weights])
    assert [bool(share) for share in found] == [bool(weight) for weight in weights]


def test_a_penalty_halves_what_speaks_for_an_id_and_doubles_what_speaks_against():
    logits = np.array([2.0, 2.0, -1.0, -1.0, 0.0])
    powers = np.exp([1.0, 2.0, -2.0, -1.0, 0.0])
    sampler = [
        Sampler(Settings(seed=seed, repetition_penalty=2.0), [0, 2, 0, 4]).choose(logits.astype(np.float32))
        for seed in range(10_000)
    ]
    assert list(np.bincount(sampler, minlength=5) / 10_000) == close_to(powers / powers.sum(), 10_000)


def test_a_penalty_counts_the_ids_of_the_text_so_far():
    sampler = Sampler(Settings(repetition_penalty=2.0), [3])
    logits = np.array([1.9, 1.6, 1.2, 3.0], np.float32)
    assert [sampler.choose(logits) for _ in range(5)] == [0, 1, 3, 3, 3]  # 3 counts 1.5, then 0 0.95 and 1 0.8
    assert logits.tolist() == np.array([1.9, 1.6, 1.2, 3.0], np.float32).tolist()


def test_equal_ids_are_equally_likely_and_none_is_left_out():
    assert list(drawn(np.zeros(8))) == close_to([1 / 8] * 8)


def test_an_id_that_cannot_be_is_never_drawn():
    found = drawn([0.0, -np.inf, 0.0, -np.inf], temperature=5.0)
    assert list(found) == close_to([0.5, 0, 0.5, 0])
    assert found[1] == found[3] == 0


@pytest.mark.parametrize(("raw", "first", "last"), [(0, 1, 1), (2**64 - 1, 1, 3)])
def test_the_least_and_the_greatest_random_number_draw_what_can_be(raw, first, last):
    """Both ends of the ids have no probability at all, or sums that rounding may have made less or more than 1."""
    sampler = Sampler(Settings(temperature=1.0, seed=1), [])
    sampler._random = SimpleNamespace(random_raw=lambda: raw)
    assert sampler.choose(np.array([-np.inf, 0, -np.inf], np.float32)) == first
    assert sampler.choose(np.array([-np.inf, 0, 0, 0, -np.inf], np.float32)) == last
    for size in (3, 7, 1000, 50_257):
        assert sampler.choose(np.zeros(size, np.float32)) == (size - 1 if raw else 0)


@pytest.mark.parametrize("size", [1, 5, 255, 256, 257, 600])
def test_no_border_of_a_sum_draws_an_id_without_probability(size):
    """Sums are rounded, and a random number may lie exactly where two ways of adding differ."""
    random_numbers = np.random.default_rng(size)
    for _ in range(300):
        probabilities = random_numbers.random(size).astype(np.float32) ** 3
        probabilities[random_numbers.random(size) < 0.5] = 0
        probabilities[200:256] = 0
        probabilities[0] += 1e-3
        probabilities = (probabilities / probabilities.sum()).astype(np.float64)
        sums = probabilities.cumsum()
        for place in (0, size - 1, min(199, size - 1), min(255, size - 1), int(random_numbers.integers(size))):
            border = int(sums[place] / sums[-1] * 2**53)
            for uniform in range(max(0, border - 3), min(2**53, border + 4)):
                found = inverse_cdf(probabilities, uniform * 2.0**-53)
                assert probabilities[found] > 0
                assert probabilities[min(found, place) + 1 : max(found, place)].sum() < 1e-12  # nothing is passed over


def test_the_arrays_that_a_draw_is_made_from_stay_as_they_are():
    logits = np.array([3, 1, 2, 0], np.float32)
    options = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.5}
    Sampler(Settings(**options), [0, 1]).choose(logits)
    assert logits.tolist() == [3, 1, 2, 0]
