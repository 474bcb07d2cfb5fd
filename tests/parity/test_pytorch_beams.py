"""Beam search against transformers' own, with the same weights."""

import asyncio

import pytest
import torch

import runtime
from runtime.graphs.slots import HostSlots

PROMPTS = [
    "It was a bright cold day in April, and the clocks",
    "He opened the letter slowly and",
    "The old house stood at the end of the lane",
    "She said that",
    "In the year 1897 the city of London",
    "There was no possibility of taking a walk that day",
    "My dear sir,",
    "Call me",
    "The sea was calm, and the ship",
    "“Well,” said",
    "CHAPTER I",
    "He",
    "",
    "When the morning came, nobody in the house had slept",
    "I never saw him again, but",
    "Two men came up the road",
    "It is a truth universally acknowledged",
    "The doctor looked at his watch and",
    "After the rain the garden",
    "Nothing is so painful to the human mind as",
]
SETTINGS = [
    {"num_beams": 4},
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 5, "length_penalty": -0.5, "early_stopping": "never"},
]
NEW = 16


@pytest.fixture(scope="module")
def full_stop(shipped):
    (token,) = shipped.tokenizer(".")["input_ids"]
    return token


@pytest.fixture(autouse=True)
def one_thread():
    """For matrices this small, PyTorch's threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def of_transformers(pair, prompt, eos, **options):
    """(ids of each returned beam up to its end, its score)"""
    ids = torch.tensor([pair.ids(prompt)])
    found = pair.float32.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    texts = [up_to_end(row[ids.shape[1] :].tolist(), eos) for row in found.sequences]
    return list(zip(texts, found.sequences_scores.tolist(), strict=True))


def up_to_end(ids, eos):
    return ids[: next((n for n, token in enumerate(ids, 1) if token in eos), len(ids))]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_beams_are_those_of_transformers(model, shipped, full_stop, prompt, options):
    count = options["num_beams"]
    expected = of_transformers(shipped, prompt, [0, full_stop], num_return_sequences=count, **options)
    completions = model.complete(prompt, max_new_tokens=NEW, eos_token_id=full_stop, n=count, **options)
    assert [list(each.token_ids) for each in completions] == [ids for ids, _ in expected]
    for completion in completions:
        ended = completion.token_ids[-1] in (0, full_stop)
        assert completion.finish_reason == ("stop" if ended else "length")
        assert completion.text == shipped.decoded(completion.token_ids[: -1 if ended else None])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"logit_bias": {14: 3}}, {"sequence_bias": [[[14], 3.0]]}),
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        ({"min_new_tokens": 9}, {"min_new_tokens": 9}),
        ({"bad_words": ["the"]}, {"bad_words_ids": ["the", " the"]}),
    ],
    ids=str,
)
def test_the_processors_go_with_them_as_in_transformers(model, shipped, full_stop, ours, theirs):
    if "bad_words_ids" in theirs:
        theirs = {"bad_words_ids": [shipped.tokenizer(word)["input_ids"] for word in theirs["bad_words_ids"]]}
    (expected, _), *_ = of_transformers(shipped, PROMPTS[0], [0, full_stop], num_beams=4, **theirs)
    completion = model.complete(PROMPTS[0], max_new_tokens=NEW, eos_token_id=full_stop, num_beams=4, **ours)
    assert list(completion.token_ids) == expected


def test_lists_asyncio_and_the_names_of_transformers_give_the_same(model, bundle):
    options = {"num_beams": 3, "max_new_tokens": 8}
    alone = [model.complete(prompt, n=2, **options) for prompt in PROMPTS[:3]]
    assert model.complete(PROMPTS[:3], n=2, **options) == alone
    assert model.complete(PROMPTS[:3], num_return_sequences=2, **options) == alone
    assert asyncio.run(model.acomplete(PROMPTS[:3], n=2, **options)) == alone
    assert model.complete(PROMPTS[:3], **options) == [best for best, _ in alone]
    assert runtime.complete(PROMPTS[0], model=bundle, **options) == alone[0][0]


def test_one_beam_is_greedy(model):
    greedy = model.complete(PROMPTS[0], max_new_tokens=NEW)
    assert model.complete(PROMPTS[0], max_new_tokens=NEW, num_beams=1) == greedy


def test_beams_are_rows_of_one_step_and_share_their_prompt(bundle, monkeypatch):
    model = runtime.load(bundle, device="cpu")
    run, read = HostSlots.run, []

    def counted(slots, works):
        read.append([len(work.token_ids) for work in works])
        return run(slots, works)

    monkeypatch.setattr(HostSlots, "run", counted)
    model.complete(PROMPTS[0] * 3, num_beams=4, max_new_tokens=10, ignore_eos=True)
    (prompt,), *steps = read
    assert prompt == len(model.encode(PROMPTS[0] * 3))
    assert steps == [[1] * 4] * 9


def test_more_beams_than_slots_take_turns(bundle, model):
    small = runtime.load(bundle, device="cpu", slots=2)
    options = {"num_beams": 5, "max_new_tokens": 8, "n": 5}
    assert small.complete(PROMPTS[0], **options) == model.complete(PROMPTS[0], **options)


def test_nothing_is_left_running_after_an_error(bundle):
    model = runtime.load(bundle, device="cpu")

    def fail(ids, scores):
        if len(ids) > 15:
            raise ZeroDivisionError
        return scores

    with pytest.raises(ZeroDivisionError):
        model.complete(PROMPTS[0], num_beams=3, logits_processor=fail)
    assert not model.loop.busy
    assert model.complete(PROMPTS[0], num_beams=3).token_ids
