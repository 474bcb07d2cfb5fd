"""Which regexes, schemas and grammars are refused, how, and what hostile ones cost."""

import json
import time
from textwrap import dedent

import pytest

from runtime.text.options import check_settings

pytest.importorskip("llguidance")

OPTIONS = ("regex", "json_schema", "grammar")
ENDLESS: dict = {}
ENDLESS["itself"] = ENDLESS
WRONG = [
    ("regex", "[a", ["unclosed character class", "'[a'"]),
    ("regex", "a{2,1}", ["'a{2,1}'"]),
    ("regex", "(a", ["unclosed group"]),
    ("regex", r"(a)\1", ["backreferences"]),
    ("regex", r"(?=a)b", ["look-around"]),
    ("regex", r"\bfoo", ["lookarounds", r"'\\bfoo'"]),
    ("regex", "a\\", ["lone backslash"]),
    ("regex", "a\\\\\\", ["lone backslash"]),
    ("regex", "", ["1 to 32,768 bytes", "0"]),
    ("regex", "a{0}", ["one token or more", "'a{0}'"]),
    ("regex", r"[^\s\S]", ["one token or more"]),
    ("regex", "é" * 16_385, ["1 to 32,768 bytes", "32,770"]),
    ("regex", "a\ud800", ["surrogate"]),
    ("json_schema", "", ["1 to 32,768 bytes", "0"]),
    ("json_schema", "x", ["JSON object", "'x'"]),
    ("json_schema", "[1]", ["JSON object", "'[1]'"]),
    ("json_schema", "true", ["JSON object", "'true'"]),
    ("json_schema", '{"a": NaN}', ["JSON object"]),
    ("json_schema", {"a": float("inf")}, ["JSON object"]),
    ("json_schema", {"a": {1}}, ["JSON object", "set"]),
    ("json_schema", ENDLESS, ["JSON object"]),
    ("json_schema", {"type": "nope"}, ["nope"]),
    ("json_schema", {"properties": 5}, ["properties"]),
    ("json_schema", {"minimum": "x"}, ["minimum"]),
    ("json_schema", {"not": {}}, ["not"]),
    ("json_schema", {"uniqueItems": True}, ["uniqueItems"]),
    ("json_schema", {"enum": []}, ["Unsatisfiable"]),
    ("json_schema", {"type": "integer", "minimum": 3, "maximum": 2}, ["minimum (3) is greater than maximum (2)"]),
    ("json_schema", {"$ref": "#"}, ["one token or more"]),
    ("json_schema", {"$ref": "https://example.com/schema"}, ["example.com"]),
    ("json_schema", {"type": "string", "pattern": "["}, ["unclosed"]),
    ("json_schema", {"type": "string", "format": "nope"}, ["nope"]),
    ("json_schema", {"x-guidance": {"nope": True}}, ["nope"]),
    ("json_schema", {"enum": ["x" * 40_000]}, ["1 to 32,768 bytes", "40,0"]),
    ("json_schema", '{"a":' * 6_000, ["JSON object"]),
    ("json_schema", '{"items":' * 3_000 + "{}" + "}" * 3_000, ["JSON"]),
    ("json_schema", {"const": "\ud800"}, ["surrogate"]),
    ("grammar", "", ["1 to 32,768 bytes", "0"]),
    ("grammar", "x", ["Lark", "'x'"]),
    ("grammar", "start: foo", ['"foo"']),
    ("grammar", "begin: /a/", ["start"]),
    ("grammar", "start: /[a/", ["unclosed"]),
    ("grammar", 'start: ""', ["one token or more"]),
    ("grammar", "start: " + "(" * 5_000 + '"a"' + ")" * 5_000, ["nested"]),
    ("grammar", "x" * 40_000, ["1 to 32,768 bytes", "40,000"]),
]


@pytest.fixture(scope="module")
def calls(model):
    """Everything that takes these options."""
    return [
        lambda **options: model.complete("It was", **options),
        lambda **options: model.complete(["It was"], **options),
        lambda **options: model.stream("It was", **options),
        lambda **options: model.session().complete("It was", **options),
    ]


@pytest.mark.parametrize(("name", "value", "words"), WRONG, ids=[f"{n}-{each[0]}" for n, each in enumerate(WRONG)])
def test_what_cannot_be_followed_is_refused_in_one_line(calls, refusal, name, value, words):
    messages = {refusal(ValueError, call, **{name: value}) for call in calls}
    assert len(messages) == 1
    (message,) = messages
    assert message.startswith(name)
    assert len(message) < 400
    for word in words:
        assert word in message


@pytest.mark.parametrize("value", [5, True, b"a", ["a"], ("a",), {"a"}, {"type": "string"}])
@pytest.mark.parametrize("name", OPTIONS)
def test_another_type_is_refused(calls, refusal, name, value):
    if name == "json_schema" and isinstance(value, dict):
        return
    messages = {refusal(TypeError, call, **{name: value}) for call in calls}
    assert len(messages) == 1
    assert messages.pop().startswith(f"{name} must be a ")


def test_two_of_them_are_refused(calls, refusal):
    for call in calls:
        message = refusal(ValueError, call, regex="a", json_schema={})
        assert message == "a text follows one of regex, json_schema and grammar, got regex and json_schema"
        refusal(ValueError, call, regex="a", json_schema={}, grammar='start: "a"')
        refusal(ValueError, call, regex="a", grammar='start: "a"')


@pytest.mark.parametrize("guided", [{"regex": "a"}, {"json_schema": {}}, {"grammar": 'start: "a"'}], ids=str)
def test_a_guided_text_cannot_ignore_its_end(calls, refusal, guided):
    for call in calls:
        message = refusal(ValueError, call, ignore_eos=True, **guided)
        assert message.startswith("ignore_eos must be False with ")
        assert next(iter(guided)) in message


def test_none_is_off(model, probe):
    completion = model.complete(probe.prompt, max_new_tokens=8, **dict.fromkeys(OPTIONS))
    assert completion.token_ids == probe.token_ids[:8]


def test_without_llguidance_one_line_says_what_to_install(run_python, bundle):
    code = """
        import sys
        sys.modules["llguidance"] = None
        import runtime
        model = runtime.load(sys.argv[1], device="cpu", verify=False)
        for options in ({"regex": "a"}, {"json_schema": {}}, {"grammar": "start: /a/"}):
            try:
                model.complete("It was", **options)
            except ImportError as error:
                print(error)
        """
    told = 'regex, json_schema and grammar need llguidance; install it: pip install "gpt2-onnx[guide]"\n'
    done = run_python("-c", dedent(code), str(bundle))
    assert done.stdout == told * 3, done.stderr


def test_a_text_without_a_grammar_does_not_import_it(run_python, bundle):
    code = """
        import sys
        import runtime
        model = runtime.load(sys.argv[1], device="cpu", verify=False)
        model.complete("It was", max_new_tokens=3, seed=1)
        assert "llguidance" not in sys.modules
        """
    done = run_python("-c", dedent(code), str(bundle))
    assert done.returncode == 0, done.stderr


# strangers


def chain(rule, count):
    return "start: " + "".join(f"{rule}{n}\n{rule}{n}: " for n in range(count)) + '"a"'


def references(count):
    definitions = {f"{n}": {"items": {"$ref": f"#/$defs/{n + 1}"}, "type": "array"} for n in range(count)}
    return {"$ref": "#/$defs/0", "$defs": {**definitions, f"{count}": {"type": "boolean"}}}


HOSTILE = [
    {"grammar": chain("r", 2_400)},
    {"grammar": chain("R", 2_400)},
    {"json_schema": references(500)},
    {"regex": "(" * 200 + "a" + ")" * 200},
    {"regex": "((a{1,100}b?){1,100}c?){1,100}"},
    {"regex": "(a|aa)" * 1000 + "(a?){100}a{100}"},
    {"regex": r"(\w|\p{L}|[^\x00]){1,1000}"},
    {"grammar": "start: a0\n" + "".join(f"a{n}: a{n + 1} | a{n + 1} a{n + 1}\n" for n in range(99)) + 'a99: "a"'},
    {"grammar": "start: A0\n" + "".join(f"A{n}: A{n + 1} A{n + 1}\n" for n in range(60)) + 'A60: "a"'},
    {"grammar": 'start: a\na: "x" a'},
    {"json_schema": {"type": "integer", "multipleOf": 999_983, "minimum": 0, "maximum": 10**9}},
    {"json_schema": {"type": "array", "minItems": 10**6, "items": {"type": "string"}}},
    {"json_schema": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1000)}}},
    {"json_schema": {"enum": [f"v{n}" for n in range(3000)]}},
]


@pytest.mark.parametrize("guided", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_one_takes_seconds_at_most_and_fails_as_others_do(run_python, bundle, guided):
    """In a process of its own, which would not survive an overflow of the stack."""
    code = """
        import json, sys, threading
        import runtime
        model = runtime.load(sys.argv[1], device="cpu", verify=False)
        def complete():
            try:
                completion = model.complete("It was", max_new_tokens=20, seed=1, **json.loads(sys.argv[2]))
                print(completion.finish_reason)
            except ValueError as error:
                print(error)
        threading.stack_size(512 * 1024)  # a caller's thread with a small stack
        thread = threading.Thread(target=complete)
        thread.start()
        thread.join()
        assert threading.stack_size() == 512 * 1024
        """
    began = time.monotonic()
    done = run_python("-c", dedent(code), str(bundle), json.dumps(guided))
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line in ("stop", "length", "incomplete") or line.startswith(next(iter(guided))), line
    assert time.monotonic() - began < 60


def test_a_grammar_is_compiled_once_for_many_texts(monkeypatch):
    from runtime.text import grammars

    compiled = []
    deeply = grammars.deeply
    monkeypatch.setattr(grammars, "deeply", lambda call: compiled.append(call) or deeply(call))
    for _ in range(3):
        check_settings({"regex": "compiled (but|only) once"})
    assert len(compiled) == 1


# commands


@pytest.fixture
def complete(cli_here, bundle):
    return lambda *arguments: cli_here("complete", "The old house stood", "--model", str(bundle), *arguments)


def test_the_command_takes_them_as_text_or_from_a_file(complete, tmp_path):
    schema, grammar = tmp_path / "schema.json", tmp_path / "answer.lark"
    schema.write_text('{"const": "ä"}', encoding="utf-8")
    grammar.write_text('start: "yes " "ß"\n', encoding="utf-8")
    assert complete("--regex", "ab{3}").stdout == "abbb\n"
    assert complete("--json-schema", ' {"const": "ö"}').stdout == '"ö"\n'
    assert complete("--json-schema", str(schema)).stdout == '"ä"\n'
    assert complete("--grammar", 'start: "no"').stdout == "no\n"
    assert complete("--grammar", str(grammar)).stdout == "yes ß\n"
    assert json.loads(complete("--regex", "ab{9}", "--max-new-tokens", "1", "--json").stdout)["finish_reason"] == (
        "incomplete"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--regex", "[a"], 2, "regex must be"),
        (["--json-schema", "no/such/file"], 1, "no/such/file"),
        (["--grammar", "no/such/file"], 1, "no/such/file"),
        (["--regex", "a", "--json-schema", "{}"], 2, "regex and json_schema"),
        (["--regex", "a", "--ignore-eos"], 2, "ignore_eos"),
    ],
)
def test_the_commands_errors_are_one_line(complete, arguments, code, word):
    done = complete(*arguments)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert word in done.stderr


def test_a_batch_takes_them_line_by_line(cli_here, bundle, tmp_path):
    lines = [
        {"prompt": "It was", "json_schema": {"const": [1]}},
        {"prompt": "It was", "regex": "[a"},
        {"prompt": "It was", "grammar": 'start: "yes"', "regex": None},
        {"prompt": "It was"},
    ]
    source, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    done = cli_here("batch", str(source), "--output", str(output), "--model", str(bundle), "--regex", "no")
    assert done.returncode == 1
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert "regex and json_schema" in records[0]["error"]
    assert "unclosed" in records[1]["error"]
    assert records[2]["text"] == "yes"
    assert records[3]["text"] == "no"
