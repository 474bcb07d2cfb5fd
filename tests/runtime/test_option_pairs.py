"""Every pair of options: each works together as it does alone, or is refused by name."""

import re
from itertools import combinations

import pytest

from runtime.text.options import GenerationOptions
from runtime.text.several import CompleteOptions

PROMPT = "It was a bright cold day"
COUNT = 12  # tokens
BANNED, BIASED, END = 11, 12, 13  # ids


def avoid_odd(_ids, scores):
    scores[1::2] -= 30
    return scores


VALUES = {
    "max_new_tokens": COUNT,
    "min_new_tokens": 3,
    "temperature": 0.9,
    "top_k": 50,
    "top_p": 0.95,
    "min_p": 0.001,
    "repetition_penalty": 1.2,
    "logit_bias": {BIASED: -100},
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "bad_words": ["the"],
    "logits_processor": avoid_odd,
    "seed": 3,
    "stop": ["ing"],
    "ignore_eos": True,
    "eos_token_id": END,
    "logprobs": 2,
    "prompt_logprobs": 2,
    "draft": True,
    "regex": "[a-m ]{1,60}",
    "json_schema": {"type": "array", "items": {"type": "integer"}},
    "grammar": 'start: ("ab" | "cd")+',
    "n": 2,
    "best_of": 3,
    "num_beams": 3,
    "length_penalty": 2.0,
    "early_stopping": True,
    "num_return_sequences": 2,
}
SAMPLING = {"temperature", "top_k", "top_p", "min_p", "seed"}
SEVERAL = {"n", "num_return_sequences", "best_of"}
GUIDES = {"regex", "json_schema", "grammar"}
UNSEARCHED = SAMPLING | GUIDES | {"stop", "logprobs", "prompt_logprobs", "draft", "best_of"}
BEAM_RULES = {"length_penalty", "early_stopping"}
NEEDED = dict.fromkeys(SEVERAL, "seed") | dict.fromkeys(BEAM_RULES, "num_beams")  # without which one is refused


def refused(pair):
    """The words of a refusal, if this pair is to be refused."""
    if pair == {"min_new_tokens", "ignore_eos"}:
        return ["min_new_tokens", "ignore_eos"]
    if pair == {"n", "num_return_sequences"}:
        return ["n and num_return_sequences"]
    if pair & BEAM_RULES and "num_beams" not in pair:
        return [sorted(pair & BEAM_RULES)[-1], "num_beams"]
    if len(pair & GUIDES) == 2 or (pair & GUIDES and "ignore_eos" in pair):
        return list(pair)
    if "num_beams" in pair and pair & UNSEARCHED:
        return [*(pair - {"num_beams"}), "num_beams"]
    if pair & SEVERAL and not pair & (SAMPLING | {"num_beams"}):
        return ["needs sampling"]
    return None


def holds(completion, names, banned):
    """What each of these options promises of a completion."""
    ids = completion.token_ids
    promises = {
        "max_new_tokens": len(ids) <= COUNT,
        "min_new_tokens": len(ids) >= 3 or bool({"stop", *GUIDES} & names),
        "logit_bias": BIASED not in ids,
        "bad_words": not banned & set(ids),
        "logits_processor": bool(GUIDES & names) or all(token % 2 == 0 for token in ids),
        "stop": "ing" not in completion.text,
        "ignore_eos": completion.finish_reason == "length" or bool({"stop", "eos_token_id"} & names),
        "eos_token_id": END not in ids[:-1],
        "regex": re.fullmatch("[a-m ]*", completion.text) is not None,
        "json_schema": re.fullmatch(r"\[[-0-9, ]*\]?", completion.text) is not None,
        "grammar": re.fullmatch("(ab|cd)*[ac]?", completion.text) is not None,
        "logprobs": completion.logprobs is not None and {len(entry.top) for entry in completion.logprobs} == {2},
        "prompt_logprobs": completion.prompt_logprobs is not None
        and len(completion.prompt_logprobs) == completion.prompt_tokens,
    }
    return [name for name in names if not promises.get(name, True)]


def test_every_option_is_here():
    assert set(VALUES) == {*GenerationOptions.__annotations__, *CompleteOptions.__annotations__, "n"}


def check(model, refusal, vocabulary, names):
    """These options work together, or are refused."""
    options = {name: VALUES[name] for name in names}
    if words := refused(set(names)):
        message = refusal(ValueError, model.complete, PROMPT, **options)
        assert all(word in message for word in words)
        return
    options = {"max_new_tokens": COUNT, **options}
    made = model.complete(PROMPT, **options)
    completions = made if isinstance(made, list) else [made]
    assert len(completions) == options.get("n", options.get("num_return_sequences", 1))
    banned = {vocabulary.encode(word).ids[0] for word in ("the", " the")}
    for completion in completions:
        assert completion.token_ids
        assert not holds(completion, set(names), banned)
    if not set(names) & SAMPLING or "seed" in names:
        again = model.complete([PROMPT, "She"], **options)[0]
        assert again == made  # beside another prompt as alone


@pytest.mark.parametrize("pair", list(combinations(VALUES, 2)), ids="-".join)
def test_a_pair_works_or_is_refused_by_name(model, refusal, vocabulary, pair):
    check(model, refusal, vocabulary, pair)


@pytest.mark.parametrize("name", VALUES)
def test_each_works_with_int8_keys_and_values_as_with_float32s(cached, refusal, vocabulary, name):
    check(cached, refusal, vocabulary, {name})
    if name in NEEDED:
        check(cached, refusal, vocabulary, {name, NEEDED[name]})
