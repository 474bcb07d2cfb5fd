"""Several completions of one prompt: which seeds, which are given, and that their prompt is read once."""

import asyncio
from dataclasses import replace

import pytest

import runtime
from runtime.graphs.slots import HostSlots

PROMPT = "It was a bright cold day in April, and the clocks were striking thirteen. The old house stood at the end"
OPTIONS = {"temperature": 1.0, "max_new_tokens": 8, "ignore_eos": True}


def test_with_n_there_is_a_list_even_of_one(model):
    alone = model.complete(PROMPT, seed=5, **OPTIONS)
    assert model.complete(PROMPT, n=1, seed=5, **OPTIONS) == [alone]
    assert model.complete([PROMPT, "She"], n=1, seed=5, **OPTIONS)[0] == [alone]
    assert model.complete([], n=3, **OPTIONS) == []


def test_the_first_has_the_callers_seed_and_each_other_its_own(model):
    several = model.complete(PROMPT, n=6, seed=5, **OPTIONS)
    assert len({completion.token_ids for completion in several}) == 6
    assert several[0] == model.complete(PROMPT, seed=5, **OPTIONS)
    assert several == model.complete(PROMPT, n=6, seed=5, batch_size=2, **OPTIONS)
    assert several[:3] == model.complete(PROMPT, n=3, seed=5, **OPTIONS)
    assert several[1:] != model.complete(PROMPT, n=6, seed=6, **OPTIONS)[1:]


def test_without_a_seed_all_differ(model):
    several = model.complete(PROMPT, n=4, **OPTIONS) + model.complete(PROMPT, n=4, **OPTIONS)
    assert len({completion.token_ids for completion in several}) == 8


def test_a_list_of_prompts_gives_a_list_of_each(model):
    made = model.complete([PROMPT, "She said"], n=3, seed=1, **OPTIONS)
    assert made == [model.complete(prompt, n=3, seed=1, **OPTIONS) for prompt in (PROMPT, "She said")]


def test_asyncio_and_the_kept_model_give_the_same(model, bundle):
    expected = model.complete(PROMPT, n=3, seed=1, **OPTIONS)
    assert asyncio.run(model.acomplete(PROMPT, n=3, seed=1, **OPTIONS)) == expected
    assert runtime.complete(PROMPT, model=bundle, n=3, seed=1, **OPTIONS) == expected


@pytest.mark.parametrize("n", [None, 1, 2])
def test_the_best_have_the_highest_mean_log_probability(model, n):
    made = model.complete(PROMPT, n=7, seed=9, logprobs=0, **OPTIONS)
    means = {one.token_ids: sum(entry.logprob for entry in one.logprobs) / len(one.logprobs) for one in made}
    expected = sorted(made, key=lambda one: means[one.token_ids], reverse=True)[: n or 1]
    best = model.complete(PROMPT, n=n, best_of=7, seed=9, logprobs=0, **OPTIONS)
    assert (best if n else [best]) == expected
    unasked = model.complete(PROMPT, n=n, best_of=7, seed=9, **OPTIONS)
    assert (unasked if n else [unasked]) == [replace(one, logprobs=None) for one in expected]


def test_the_prompt_is_read_once(bundle, monkeypatch):
    model = runtime.load(bundle, device="cpu")
    run, read = HostSlots.run, []

    def counted(slots, works):
        read.append(sum(len(work.token_ids) for work in works))
        return run(slots, works)

    monkeypatch.setattr(HostSlots, "run", counted)
    prompt_tokens = len(model.encode(PROMPT))
    model.complete(PROMPT, n=5, **OPTIONS)
    assert sum(read) == prompt_tokens + 4 + 5 * (OPTIONS["max_new_tokens"] - 1)  # the others run its last id


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"n": 0, "seed": 1}, ["n must be", "at least 1", "0"]),
        ({"n": 1025, "seed": 1}, ["n must be", "1,024", "1025"]),
        ({"best_of": 0, "seed": 1}, ["best_of must be", "at least 1"]),
        ({"n": 3, "best_of": 2, "seed": 1}, ["best_of must be at least n, 3, got 2"]),
        ({"n": 2}, ["n=2", "sampling"]),
        ({"best_of": 2}, ["best_of=2", "sampling"]),
        ({"n": 2, "temperature": 0}, ["n=2", "sampling"]),
        ({"num_beams": 0}, ["num_beams must be", "at least 1"]),
        ({"num_beams": 65}, ["num_beams must be", "64"]),
        ({"num_beams": 3, "n": 4}, ["n must be at most num_beams, 3, got 4"]),
        ({"num_beams": 3, "length_penalty": 10.5}, ["length_penalty", "-10 to 10", "10.5"]),
        ({"num_beams": 3, "early_stopping": "always"}, ["early_stopping", "'never'", "'always'"]),
        ({"num_beams": 1, "early_stopping": True}, ["early_stopping", "num_beams"]),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(model, bundle, refusal, options, parts):
    for call, where in ((model.complete, {}), (runtime.complete, {"model": bundle})):
        message = refusal(ValueError, call, PROMPT, **options, **where)
        assert all(part in message for part in parts)


@pytest.mark.parametrize("name", ["n", "best_of"])
@pytest.mark.parametrize("value", [True, 1.0, "1", [1]], ids=repr)
def test_other_types_are_refused(model, refusal, name, value):
    assert refusal(TypeError, model.complete, PROMPT, **{name: value, "seed": 1}).startswith(name)


@pytest.mark.parametrize("name", ["n", "best_of"])
def test_a_stream_and_a_session_have_one_text(model, refusal, name):
    for call in (model.stream, model.astream, model.session().complete):
        assert repr(name) in refusal(TypeError, call, PROMPT, **{name: 2, "seed": 1})
