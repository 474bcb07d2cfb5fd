"""Text to ids and back, on the bundle's own byte-level BPE."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.text.tokenizer import Tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HARD = st.sampled_from(
    ["<|endoftext|>", "<|endoftext", "|>", " ", "\n", "\r\n", "\0", "'s", "\u200d", "\U0001f926", "e\u0301"]
)
MIXED = st.lists(st.one_of(TEXT, HARD), max_size=12).map("".join)
SENTENCE = "It was a bright cold day in April, and the clocks were striking thirteen."


@pytest.fixture(scope="module")
def tokenizer(bundle):
    return Tokenizer(bundle / "tokenizer.json")


@given(text=MIXED)
@settings(deadline=None, database=None, max_examples=300)
def test_any_text_survives_the_round_trip_with_ids_in_the_vocabulary(tokenizer, manifest, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(type(token) is int and 0 <= token < manifest["architecture"]["vocab_size"] for token in ids)


@given(ids=st.lists(st.integers(0, 255), max_size=20))
@settings(deadline=None, database=None)
def test_any_ids_have_a_text(tokenizer, ids):
    assert "<unk>" not in tokenizer.decode(ids)


def test_the_probes_prompts_have_the_ids_that_transformers_gave(tokenizer, probes):
    for probe in probes:
        assert tuple(tokenizer.encode(probe.prompt)) == probe.prompt_ids


def test_an_empty_text_has_no_ids_and_no_ids_have_an_empty_text(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_the_end_of_text_is_one_id_wherever_it_stands(tokenizer, end_of_text):
    assert tokenizer.encode("<|endoftext|>") == [end_of_text]
    assert tokenizer.encode("a<|endoftext|>b").count(end_of_text) == 1
    assert tokenizer.decode([end_of_text, end_of_text]) == "<|endoftext|><|endoftext|>"


def test_nothing_is_added_around_a_text(tokenizer):
    one, two = tokenizer.encode("One day"), tokenizer.encode(" two")
    assert tokenizer.encode("One day two") == one + two


@pytest.mark.parametrize("character", ["a", " ", "\n", "!", "é", "😀"])
def test_100_kb_of_one_character_survive_the_round_trip(tokenizer, character):
    text = character * (100_000 // len(character.encode()))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(("before", "after"), [("", ""), ("a", "b"), ("so ", " it")])
def test_an_emoji_cut_in_half_is_a_replacement_character(tokenizer, before, after):
    whole, emoji = tokenizer.encode(before), tokenizer.encode("😀")
    assert len(emoji) > 1  # or it could not be cut
    assert tokenizer.decode([*whole, *emoji[:-1], *tokenizer.encode(after)]) == f"{before}\ufffd{after}"


@pytest.mark.parametrize(
    "setting",
    [
        {"truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}},
        {
            "padding": {
                "strategy": {"Fixed": 64},
                "direction": "Left",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "<|endoftext|>",
            }
        },
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_a_setting_of_the_training_is_not_followed(bundle, tmp_path, tokenizer, setting):
    content = json.loads((bundle / "tokenizer.json").read_text(encoding="utf-8")) | setting
    changed = tmp_path / "tokenizer.json"
    changed.write_text(json.dumps(content), encoding="utf-8")
    ids = tokenizer.encode(SENTENCE)
    assert tokenizers.Tokenizer.from_file(str(changed)).encode(SENTENCE).ids != ids  # the library follows it
    assert Tokenizer(changed).encode(SENTENCE) == ids
