"""Every option: what it takes, what it refuses and how, and which calls do so."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import runtime
from runtime.text.options import GenerationOptions, Settings, check_settings

INF, NAN = float("inf"), float("nan")

TAKEN = {
    "max_new_tokens": [1, 2, 10**30],
    "min_new_tokens": [0, 1],
    "temperature": [0, 0.0, 1e-6, 1, 0.7, 1e6, Fraction(1, 2)],
    "top_k": [1, 40, 10**30],
    "top_p": [0, 0.0, 1e-9, 0.9, 1, 1.0],
    "min_p": [0, 0.0, 0.05, 1, 1.0],
    "repetition_penalty": [0.01, 1, 1.3, 100, 100.0],
    "logit_bias": [{}, {0: 1}, {11: -100, 12: 100.0}, {"13": 0.5}, {np.int64(3): Fraction(1, 2)}],
    "presence_penalty": [-2, 0, 0.5, 2],
    "frequency_penalty": [-2, 0, 0.5, 2],
    "bad_words": [[], ["the"], ("the", "a b c"), ["😀"]],
    "logits_processor": [lambda _ids, scores: scores],
    "seed": [0, 1, 2**64 - 1],
    "stop": ["x", "x" * 10_000, "😀", "\n", ["x"], ("x", "y"), [], ()],
    "ignore_eos": [True, False],
    "eos_token_id": [0, 11, [], [3, 4], (5,)],
    "logprobs": [0, 1, 20],
    "prompt_logprobs": [0, 1, 20],
    "draft": [True, False],
}
GUIDES = ("regex", "json_schema", "grammar")  # test_guide_options.py has what they take and refuse
BEYOND = {  # and the words of the range
    "max_new_tokens": (["at least 1"], [0, -1, -(10**30)]),
    "temperature": (["0", "1e-06", "1e+06"], [-1e-9, -1, 9.99e-7, 1e-300, 1.1e6, 1e39, INF, -INF, NAN]),
    "top_k": (["at least 1"], [0, -1]),
    "top_p": (["0 to 1"], [-1e-9, 1 + 1e-9, 2, INF, NAN]),
    "min_p": (["0 to 1"], [-1e-9, 1 + 1e-9, -1, INF, NAN]),
    "repetition_penalty": (["0.01 to 100"], [0, 0.0099, 100.01, -1, INF, NAN]),
    "seed": (["at least 0", f"{2**64 - 1:,}"], [-1, 2**64]),
    "logprobs": (["at least 0"], [-1]),
    "prompt_logprobs": (["at least 0"], [-1]),
    "min_new_tokens": (["at least 0"], [-1]),
    "presence_penalty": (["-2 to 2"], [-2.01, 2.01, INF, NAN]),
    "frequency_penalty": (["-2 to 2"], [-2.01, 2.01, INF, NAN]),
    "eos_token_id": (["at least 0"], [-1]),
}
INTEGERS = ("max_new_tokens", "min_new_tokens", "top_k", "seed", "logprobs", "prompt_logprobs")
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
WRONG_INTEGERS = [True, False, 1.0, 1.5, "1", b"1", [1], (1,), {}, 1j, Decimal(1), np.float64(1), np.bool_(True)]
WRONG_NUMBERS = [True, False, "0.5", b"1", [0.5], (1,), {}, 1j, Decimal("0.5"), np.bool_(True)]
WRONG = {
    **dict.fromkeys(INTEGERS, WRONG_INTEGERS),
    **dict.fromkeys(NUMBERS, WRONG_NUMBERS),
    "max_new_tokens": [*WRONG_INTEGERS, None],
    "stop": [3, True, b"x", {"x"}, {"x": 1}, iter("x"), [3], ["x", None], ("x", b"y"), [["x"]]],
    "ignore_eos": [0, 1, "True", None, np.bool_(True), []],
    "logit_bias": [3, "x", [1], [(1, 2)], {"x": 1}, {"-1": 1}, {1.0: 1}, {True: 1}, {1: "1"}, {1: None}, {"²": 1}],
    "bad_words": [3, "x", {"x"}, {"x": 1}, [3], ["x", None], ("x", b"y"), [["x"]]],
    "logits_processor": [3, "x", [], {}],
    "eos_token_id": [True, 1.0, "1", {1}, [True], ["1"], [[1]]],
    "draft": [0, 1, "True", np.bool_(True), []],
}
OFF = [name for name in (*TAKEN, *GUIDES) if name not in ("max_new_tokens", "ignore_eos")]


def each(table):
    return [pytest.param(name, value, id=f"{name}-{value!r:.20}") for name, values in table.items() for value in values]


@pytest.fixture(scope="module")
def calls(model, bundle):
    """Everything that takes these options."""
    return {
        "Model.complete": lambda **options: model.complete("It was", **options),
        "Model.complete of a list": lambda **options: model.complete(["It was"], **options),
        "Model.stream": lambda **options: model.stream("It was", **options),
        "Session.complete": lambda **options: model.session().complete("It was", **options),
        "Session.stream": lambda **options: model.session().stream("It was", **options),
        "runtime.complete": lambda **options: runtime.complete("It was", model=bundle, **options),
    }


# ranges


def test_the_tables_here_have_every_option():
    assert {*TAKEN, *GUIDES} == set(GenerationOptions.__annotations__)
    others = {"stop", "ignore_eos", "draft", "logit_bias", "bad_words", "logits_processor"}
    assert set(BEYOND) == set(TAKEN) - others
    assert set(WRONG) == set(TAKEN)


@pytest.mark.parametrize(("name", "value"), each(TAKEN))
def test_a_value_in_its_range_is_taken(model, name, value):
    completion = model.complete("It was", **{"max_new_tokens": 1, name: value})
    assert completion.token_ids


@pytest.mark.parametrize(("name", "value"), each({name: values for name, (_, values) in BEYOND.items()}))
def test_a_value_beyond_its_range_is_refused_with_option_range_and_value(model, refusal, name, value):
    message = refusal(ValueError, model.complete, "It was", **{name: value})
    assert message.startswith(name)
    assert str(value) in message
    for part in BEYOND[name][0]:
        assert part in message


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [10**400, -(10**400), Fraction(10**400)], ids=["more", "less", "fraction"])
def test_a_number_too_large_for_a_float_is_beyond_the_range_too(model, refusal, name, value):
    assert refusal(ValueError, model.complete, "It was", **{name: value}).startswith(name)


@pytest.mark.parametrize(("name", "value"), each(WRONG))
def test_a_value_of_another_type_is_refused(model, refusal, name, value):
    assert name in refusal(TypeError, model.complete, "It was", **{name: value})


@pytest.mark.parametrize("name", ["stop", "bad_words"])
@pytest.mark.parametrize("texts", [[""], ["x", ""], ("",)])
def test_an_empty_text_is_refused(model, refusal, name, texts):
    message = refusal(ValueError, model.complete, "It was", **{name: texts})
    assert message == f"{name} must be at least one character, got ''"


@pytest.mark.parametrize("name", ["stop", "bad_words"])
@pytest.mark.parametrize("texts", [["\ud800"], ["x", "a\udfff"]])
def test_half_a_character_is_refused(model, refusal, name, texts):
    message = refusal(ValueError, model.complete, "It was", **{name: texts})
    assert name in message
    assert "surrogate" in message


def test_an_empty_stop_alone_is_refused(model, refusal):
    assert refusal(ValueError, model.complete, "It was", stop="") == "stop must be at least one character, got ''"


@pytest.mark.parametrize("bias", [-100.1, 100.1, INF, NAN, 10**400])
def test_a_bias_beyond_its_range_is_refused_with_its_id(model, refusal, bias):
    message = refusal(ValueError, model.complete, "It was", logit_bias={1: 0, 7: bias})
    assert message.startswith("logit_bias[7] must be a number from -100 to 100, got")


def test_an_id_has_one_bias(model, refusal):
    message = refusal(ValueError, model.complete, "It was", logit_bias={1: 0, "01": 1})
    assert message == "logit_bias must name each id once, got 1 twice"


@pytest.mark.parametrize("name", ["logit_bias", "eos_token_id"])
def test_an_id_beyond_the_vocabulary_is_refused(model, refusal, manifest, name):
    size = manifest["architecture"]["vocab_size"]
    given = {"logit_bias": lambda token: {token: 1}, "eos_token_id": lambda token: [0, token]}[name]
    assert model.complete("It was", max_new_tokens=1, **{name: given(size - 1)}).token_ids
    message = refusal(ValueError, model.complete, "It was", **{name: given(size)})
    assert name in message
    assert f"at most {size - 1:,}" in message
    assert str(size) in message


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_no_more_log_probabilities_than_there_are_ids(model, refusal, manifest, name):
    size = manifest["architecture"]["vocab_size"]
    found = getattr(model.complete("It was", max_new_tokens=1, **{name: size}), name)
    assert len(found[-1].top) == size
    for count in (size + 1, 10**30):
        message = refusal(ValueError, model.complete, "It was", **{name: count})
        assert message.startswith(name)
        assert f"{size:,}" in message
        assert f"{count:,}" in message


# types that are as good


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.uint64])
@pytest.mark.parametrize("name", INTEGERS)
def test_a_numpy_integer_is_an_integer(model, name, kind):
    common = {"seed": 1, "max_new_tokens": 4, "top_k": 20}
    assert model.complete("It was", **common | {name: kind(3)}) == model.complete("It was", **common | {name: 3})


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int64])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_numpy_number_is_a_number(model, name, kind):
    value = kind(1) if kind is np.int64 else kind(0.5)
    common = {"seed": 1, "max_new_tokens": 4}
    expected = model.complete("It was", **common, **{name: float(value)})
    assert model.complete("It was", **common, **{name: value}) == expected


# off


@pytest.mark.parametrize("name", OFF)
def test_none_means_off(model, probe, name):
    completion = model.complete(probe.prompt, max_new_tokens=8, **{name: None})
    assert completion == model.complete(probe.prompt, max_new_tokens=8)
    assert completion.token_ids == probe.token_ids[:8]


def test_all_of_them_off_is_greedy(model, probe):
    completion = model.complete(probe.prompt, max_new_tokens=8, **dict.fromkeys(OFF))
    assert completion.token_ids == probe.token_ids[:8]
    assert completion.logprobs is None


# names


@pytest.mark.parametrize("name", ["tokens", "max_tokens", "Temperature", "top-k", "", "samples", "prompt_ids"])
def test_an_option_that_does_not_exist_is_refused_with_those_that_do(calls, refusal, name):
    for call in calls.values():
        message = refusal(TypeError, call, **{name: 1})
        assert repr(name) in message
        assert all(option in message for option in (*TAKEN, *GUIDES))


def test_an_option_that_does_not_exist_is_refused_even_if_it_is_off(calls, refusal):
    for call in calls.values():
        assert "'tokens'" in refusal(TypeError, call, tokens=None)


@pytest.mark.parametrize("name", ["Model.stream", "Session.complete", "Session.stream"])
def test_a_single_text_has_no_batch_size(calls, refusal, name):
    assert "'batch_size'" in refusal(TypeError, calls[name], batch_size=4)


# all calls alike


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((ValueError, name, values[0]) for name, (_, values) in BEYOND.items()),
        *((TypeError, name, values[0]) for name, values in WRONG.items()),
        (ValueError, "stop", [""]),
        (ValueError, "stop", "\ud800"),
        (ValueError, "logprobs", 10**9),
        (ValueError, "logit_bias", {1: 101}),
        (ValueError, "bad_words", [""]),
        (TypeError, "max_new_tokens", None),
        (TypeError, "ignore_eos", None),
    ],
)
def test_all_calls_refuse_alike(calls, refusal, kind, name, value):
    messages = {refusal(kind, call, **{name: value}) for call in calls.values()}
    assert len(messages) == 1
    assert name in messages.pop()


def test_all_calls_take_all_options(calls):
    options = {name: values[-1] for name, values in TAKEN.items()} | {"max_new_tokens": 3, "stop": ("\0",)}
    completions = []
    for call in calls.values():
        made = call(**options)
        if isinstance(made, runtime.Stream):
            text = "".join(made)
            made = made.completion
            assert made.text == text
        completions += made if isinstance(made, list) else [made]
    assert len(completions) == len(calls)
    assert all(completion.token_ids == completions[0].token_ids for completion in completions)


def test_no_options_at_all_are_the_documented_defaults():
    assert check_settings({}) == Settings()
    assert Settings().max_new_tokens == 64
    assert not Settings().samples


# batch_size


@pytest.mark.parametrize("size", [1, 2, 1024, np.int64(3)])
def test_a_batch_size_in_its_range_is_taken(model, probe, size):
    for prompt in (probe.prompt, [probe.prompt] * 3):
        made = model.complete(prompt, batch_size=size, max_new_tokens=2)
        assert {one.token_ids for one in (made if isinstance(made, list) else [made])} == {probe.token_ids[:2]}


@pytest.mark.parametrize("size", [0, -1, 1025, 10**30])
def test_a_batch_size_beyond_its_range_is_refused(model, bundle, refusal, size):
    for prompt in ("It was", ["It was"], []):
        for call, options in ((model.complete, {}), (runtime.complete, {"model": bundle})):
            message = refusal(ValueError, call, prompt, batch_size=size, **options)
            assert message.startswith("batch_size")
            assert "at least 1" in message
            assert "at most 1,024" in message
            assert str(size) in message


@pytest.mark.parametrize("size", [None, True, 1.0, "1", [1]], ids=repr)
def test_a_batch_size_of_another_type_is_refused(model, refusal, size):
    message = refusal(TypeError, model.complete, ["It was"], batch_size=size)
    assert message.startswith("batch_size")
    assert repr(size) in message


# what turns sampling on


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1.0}, {"top_k": 5000}, {"top_p": 0.999}, {"min_p": 1e-5}, {"seed": 0}, {"temperature": 0.5}],
    ids=str,
)
def test_any_of_these_turns_sampling_on(model, probe, options):
    common = {"max_new_tokens": 60, "ignore_eos": True}
    assert check_settings(options).samples
    texts = {model.complete(probe.prompt, **common, **options | {"seed": seed}).text for seed in range(3)}
    assert len(texts) == 3
    assert model.complete(probe.prompt, **common, **options).token_ids != probe.token_ids[:60]


@pytest.mark.parametrize("name", sorted(TAKEN.keys() - {"temperature", "top_k", "top_p", "min_p", "seed"}))
def test_none_of_the_others_does(name):
    assert not any(check_settings({name: value}).samples for value in TAKEN[name])


def test_a_penalty_alone_is_greedy_and_the_same_each_time(model, probe):
    texts = {model.complete(probe.prompt, repetition_penalty=1.3, max_new_tokens=30).text for _ in range(3)}
    assert len(texts) == 1
    assert texts != {model.complete(probe.prompt, max_new_tokens=30).text}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seed": 1},
        {"top_k": 50, "seed": 3},
        {"top_p": 0.5, "min_p": 0.1, "seed": 2},
        {"repetition_penalty": 1},
        {"repetition_penalty": None, "top_k": 10**6},
    ],
    ids=str,
)
@pytest.mark.parametrize("zero", [0, 0.0, -0.0, np.float32(0)], ids=repr)
def test_a_temperature_of_zero_is_greedy_whatever_else(model, probe, zero, options):
    completion = model.complete(probe.prompt, temperature=zero, max_new_tokens=20, **options)
    assert completion.token_ids == probe.token_ids[:20]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0}, {"min_p": 1}, {"temperature": 1e-6}], ids=str)
def test_a_draw_from_one_candidate_is_greedy(model, probe, options):
    for seed in range(3):
        completion = model.complete(probe.prompt, max_new_tokens=20, seed=seed, **options)
        assert completion.token_ids == probe.token_ids[:20]


def test_a_filter_that_lets_all_pass_changes_nothing(model, probe, manifest):
    size = manifest["architecture"]["vocab_size"]
    common = {"seed": 4, "max_new_tokens": 20}
    expected = model.complete(probe.prompt, **common)
    for options in ({"temperature": 1}, {"top_k": size}, {"top_k": 10**9}, {"min_p": 0}, {"repetition_penalty": 1}):
        assert model.complete(probe.prompt, **common, **options) == expected
