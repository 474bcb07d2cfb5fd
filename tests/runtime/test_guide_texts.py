"""Guided texts: what Python's re, jsonschema, and arithmetic by hand say of them, and of each of their beginnings."""

import asyncio
import json
import re
import threading
from importlib.util import find_spec

import pytest

import runtime
from runtime.model import generate
from runtime.text.options import check_settings

llguidance = pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

PROMPT = "The old house stood"
REGEXES = [
    "yes|no|perhaps",
    r"[a-z]{1,6}@[a-z]{1,6}\.(com|org)",
    "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    r" in the [A-Z][a-z]{2,9}\.",
    r"(?i:the) (old|new) (house|garden) (stood|lay) (here|there)",
    r"#[0-9A-F]{6}",
    r"[^aeiou\n]{3,8}!",
    r"(a/b|a\\b){2}",
    r'"(\\.|[^"\\\n]){0,9}"',
    r"[äöüß]{2,4}\.",
    r"[a-zé]{1,5}( [a-zé]{1,5}){1,3}\n",
    r"日本(語|人){1,3}",
    r"-?(0|[1-9][0-9]{0,3})(\.[0-9]{1,2})?",
]
NAME = {"type": "string", "maxLength": 12}
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}, "y": {"type": "integer", "maximum": 5}},
    "required": ["x"],
    "additionalProperties": False,
}
SCHEMAS = [
    {"type": "boolean"},
    {"type": "integer", "minimum": 7, "maximum": 4321},
    {"enum": ["north", "south", 7, None, True]},
    {"const": {"the key": ["a value", 1.5, "naïve “text”"]}},
    {"type": "string", "minLength": 2, "maxLength": 9},
    {"type": "string", "pattern": "^[a-c]{2}-[0-9]+x$", "maxLength": 9},
    {"type": "string", "format": "date"},
    {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 3},
    POINT,
    {"anyOf": [{"type": "boolean"}, {"type": "array", "items": NAME, "maxItems": 2}]},
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A person",
        "description": "with a name",
        "type": "object",
        "properties": {"name": NAME, "born": {"$ref": "#/$defs/year"}, "where": POINT},
        "required": ["name", "born", "where"],
        "additionalProperties": False,
        "$defs": {"year": {"type": "integer", "minimum": 1800, "maximum": 1900}},
    },
    {
        "type": "array",
        "prefixItems": [{"const": "é"}, {"type": "integer", "minimum": -5, "maximum": 99}],
        "items": False,
        "minItems": 2,
    },
]
SUM = """
start: term (("+" | "-") term)~1..2
term: NUMBER | "(" NUMBER "*" NUMBER ")"
NUMBER: /[1-9][0-9]{0,2}/
"""
NESTED = """
start: "(" start ")" | "[" start "]" | "()"
"""
VERSE = """
start: LINE LINE
LINE: / [a-z]{1,9}( [a-z]{1,9}){0,3}/ "," "\\n"
"""


def is_sum(text):
    term = r"([1-9]\d{0,2}|\([1-9]\d{0,2}\*[1-9]\d{0,2}\))"
    return re.fullmatch(rf"{term}([+-]{term}){{1,2}}", text) is not None and isinstance(eval(text), int)


def is_nested(text):
    inner = text.replace("()", "x", 1)
    while inner != "x" and inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1]
    return inner == "x"


def is_verse(text):
    return re.fullmatch(r"(( [a-z]{1,9}){1,4},\n){2}", text) is not None


def is_of(schema):
    def judge(text):
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
        return True

    return judge


CASES = [
    *(({"regex": each}, re.compile(each).fullmatch) for each in REGEXES),
    *(({"json_schema": each}, is_of(each)) for each in SCHEMAS),
    ({"grammar": SUM}, is_sum),
    ({"grammar": NESTED}, is_nested),
    ({"grammar": VERSE}, is_verse),
]
WAYS = [{}, {"repetition_penalty": 1.3}, {"seed": 1}, {"seed": 2, "top_k": 3}, {"seed": 3, "top_p": 0.5}]
FLAT = {"seed": 4, "temperature": 1e6}  # every id is about as likely
NAMES = [f"{next(iter(guided))}-{n}" for n, (guided, _) in enumerate(CASES)]
each_case = pytest.mark.parametrize(("guided", "whole"), CASES, ids=NAMES)


@pytest.fixture(scope="module")
def reference(vocabulary, end_of_text):
    """The library's own matcher of an option, at its beginning, made from tokenizer.json alone."""
    ids = llguidance.LLTokenizer(vocabulary.to_str(), eos_token=end_of_text)

    def make(guided):
        ((option, source),) = guided.items()
        kind = {"regex": "regex", "json_schema": "json_schema", "grammar": "lark"}[option]
        style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        styled = {"defaults": style} if option == "json_schema" else {}
        grammar = getattr(llguidance.LLMatcher, f"grammar_from_{kind}")(source, **styled)
        matcher = llguidance.LLMatcher(ids, grammar)
        assert not matcher.is_error()
        return matcher

    make.ids = ids
    return make


def begins(reference, guided, text):
    """Whether a text is the beginning of one that fits, whatever its tokens are."""
    ids = reference.ids.tokenize_str(text)
    return reference(guided).try_consume_tokens(ids) == len(ids)


def check_ends(model, guided, whole):
    """Texts that end by themselves are whole, in each way of choosing ids."""
    ended = 0
    for way in (*WAYS, FLAT):
        completion = model.complete(PROMPT, max_new_tokens=90, **guided, **way)
        assert completion.finish_reason in ("stop", "incomplete", "length")
        if completion.finish_reason == "stop":
            assert whole(completion.text), completion.text
            ended += 1
        if completion.finish_reason == "length":  # whole, too, but it could have gone on
            assert whole(completion.text), completion.text
    assert ended >= len(WAYS) or guided == {"grammar": NESTED}
    assert ended


@each_case
def test_a_text_that_ends_by_itself_is_whole(model, guided, whole):
    check_ends(model, guided, whole)


@pytest.fixture(scope="module")
def four_bits(request):
    """The shipped checkpoint with int4 weights, which nothing makes without torch."""
    if not find_spec("torch"):
        pytest.skip("no bundle with int4 weights without torch")
    return runtime.load(request.getfixturevalue("precise_bundle"), device="cpu", precision="int4")


@each_case
def test_a_text_of_int4_weights_is_whole_too(four_bits, guided, whole):
    check_ends(four_bits, guided, whole)


@pytest.mark.parametrize("guided", [guided for guided, _ in CASES], ids=NAMES)
@pytest.mark.parametrize("way", [{}, FLAT], ids=["greedy", "sampled"])
def test_a_stream_is_a_valid_beginning_at_each_piece(model, reference, guided, way):
    stream = model.stream(PROMPT, max_new_tokens=40, **guided, **way)
    text = ""
    for piece in stream:
        text += piece
        assert begins(reference, guided, text), text
    assert text == stream.completion.text
    assert stream.completion == model.complete(PROMPT, max_new_tokens=40, **guided, **way)


@each_case
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_text_cut_anywhere_is_a_valid_beginning_and_says_whether_it_is_whole(model, reference, guided, whole, count):
    completion = model.complete(PROMPT, max_new_tokens=count, **guided, **FLAT)
    assert begins(reference, guided, completion.text), completion.text
    assert "\N{REPLACEMENT CHARACTER}" not in completion.text
    if completion.finish_reason == "incomplete":
        assert len(completion.token_ids) == count
        with pytest.raises((AssertionError, ValueError, jsonschema.ValidationError)):
            assert whole(completion.text)
    else:
        assert whole(completion.text)


def naive(model, reference, guided, prompt_ids, end):
    """Greedy ids by one run each: all log-probabilities, the library's mask, and the highest that it leaves."""
    matcher, ids = reference(guided), list(prompt_ids)
    size = model.bundle.manifest.architecture.vocab_size
    for _ in range(60):
        settings = check_settings({"max_new_tokens": 1, "logprobs": size})
        (generation,) = generate(model, [model.prompting.begin(ids, settings)], at_once=1)
        scores = dict(generation.completion().logprobs[0].top)
        mask = matcher.compute_bitmask()
        allowed = [token for token in range(size) if mask[token // 8] >> token % 8 & 1]
        best = max(allowed, key=lambda token: scores[token])
        if best == end:
            break
        ids.append(best)
        assert matcher.consume_token(best)
    return ids[len(prompt_ids) :]


@pytest.mark.parametrize(
    "guided", [{"regex": REGEXES[1]}, {"regex": REGEXES[10]}, {"json_schema": SCHEMAS[10]}, {"grammar": SUM}], ids=str
)
def test_greedy_ids_are_those_of_a_naive_loop(model, reference, end_of_text, guided):
    prompt_ids = model.encode(PROMPT)
    expected = naive(model, reference, guided, prompt_ids, end_of_text)
    completion = model.complete(PROMPT, **guided)
    assert completion.finish_reason == "stop"
    assert [token for token in completion.token_ids if token != end_of_text] == expected


def test_lists_sessions_threads_and_asyncio_give_what_each_prompt_gets_alone(model):
    prompts = [PROMPT, "", "It was", "She said that he"]
    for guided in ({"json_schema": SCHEMAS[10]}, {"regex": REGEXES[10], "seed": 5}):
        alone = [model.complete(prompt, **guided) for prompt in prompts]
        assert model.complete(prompts, **guided) == alone
        assert model.complete(prompts, batch_size=2, **guided) == alone
        assert asyncio.run(model.acomplete(prompts, **guided)) == alone
        with model.session() as session:
            assert session.complete(PROMPT, **guided) == alone[0]
            assert session.text == PROMPT + alone[0].text
            assert session.complete(" and", **guided) == model.complete(f"{PROMPT}{alone[0]} and", **guided)
        found = {}

        def complete(number, prompt, found=found, guided=guided):
            found[number] = model.complete(prompt, **guided)

        threads = [threading.Thread(target=complete, args=each) for each in enumerate(prompts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[number] for number in range(len(prompts))] == alone


def test_texts_of_several_grammars_run_side_by_side(model):
    grammars = [guided for guided, _ in CASES[::5]]
    alone = [model.complete(PROMPT, **guided) for guided in grammars]
    begun = [model.prompting.begin(model.encode(PROMPT), check_settings(guided)) for guided in grammars]
    for _ in generate(model, begun, at_once=16):
        pass
    assert [generation.completion() for generation in begun] == alone


def test_a_schema_may_be_a_string_and_choose_its_own_white_space(model):
    schema = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}
    assert model.complete(PROMPT, json_schema=json.dumps(schema)) == model.complete(PROMPT, json_schema=schema)
    assert model.complete(PROMPT, json_schema=schema).text == "[1, 1]"
    compact = {**schema, "x-guidance": {"item_separator": ","}}
    assert model.complete(PROMPT, json_schema=compact).text == "[1,1]"
