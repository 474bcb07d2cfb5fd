"""Requests that are wrong, one by one: each is refused in OpenAI's form, with one line that says what and how."""

import json
import re
import socket
from contextlib import suppress

import pytest
from starlette.testclient import TestClient

from runtime.server import ServerSettings, create_app

JSON = {"Content-Type": "application/json"}
COMPLETIONS, EMBEDDINGS, TOKENIZE, DETOKENIZE = "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize"
LONE = "\ud800"
FORMS = "must be a text, a list of texts, a list of ids, or a list of such lists, got "
IDS = "must be an integer of at least 0 and at most 8,191, got "
TEXT_OR_TEXTS = "a string of at least one character or a list of at most 16 in which each is"


def fields(**given):
    return json.dumps({"prompt": "It", "max_tokens": 1, **given}).encode()


# (body, what is told), where no parameter can be named
NOT_A_BODY = {
    "nothing": (b"", "the body must be a JSON object, got nothing"),
    "a list": (b"[]", "the body must be a JSON object, got a list"),
    "a string": (b'"x"', "the body must be a JSON object, got a string"),
    "a number": (b"1.5", "the body must be a JSON object, got a number"),
    "null": (b"null", "the body must be a JSON object, got null"),
    "true": (b"true", "the body must be a JSON object, got a boolean"),
    "half an object": (b'{"prompt":', "the body must be JSON: Expecting value at line 1, column 11"),
    "single quotes": (b"{'prompt':'a'}", "must be JSON: Expecting property name enclosed in double quotes"),
    "two objects": (b'{"prompt":"a"} {}', "must be JSON: Extra data at line 1, column 16"),
    "a raw line break": (b'{"prompt":"a\nb"}', "must be JSON: Invalid control character"),
    "UTF-16": (fields().decode().encode("utf-16"), "the body must be UTF-8: invalid start byte at byte 0"),
    "UTF-16 without a mark": (fields().decode().encode("utf-16-le"), "the body must be JSON: "),
    "a byte order mark": (b"\xef\xbb\xbf" + fields(), "the body must be UTF-8 without a byte order mark"),
    "invalid UTF-8": (b'{"prompt":"\xff"}', "the body must be UTF-8: invalid start byte at byte 11"),
    "surrogates in UTF-8": (b'{"prompt":"\xed\xa0\x80"}', "the body must be UTF-8: invalid continuation byte"),
    "a surrogate in a name": (
        b'{"prompt":"a","\\ud800":1}',
        "a name must be Unicode text, got a lone surrogate, U+D800",
    ),
    "100,000 brackets": (b"[" * 100_000, "the body must not be nested this deep"),
    "100,000 objects": (b'{"a":' * 100_000, "the body must not be nested this deep"),
    "a deep prompt": (b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "must not be nested this deep"),
    "NaN": (b'{"prompt":"a","temperature":NaN}', "the body must be JSON: NaN is not a number in JSON"),
    "Infinity": (b'{"prompt":"a","top_p":Infinity}', "the body must be JSON: Infinity is not a number in JSON"),
    "-Infinity": (b'{"prompt":"a","top_p":-Infinity}', "the body must be JSON: -Infinity is not a number in JSON"),
    "1e999": (b'{"prompt":"a","temperature":1e999}', "the body must be JSON: 1e999 is too large a number"),
    "400 digits": (b'{"prompt":"a","seed":' + b"9" * 400 + b"}", "9999… is too large an integer"),
    "5,000 digits": (b'{"prompt":"a","seed":' + b"9" * 5000 + b"}", "9999… is too large an integer"),
}

# (fields, parameter, what is told)
WRONG = [
    ({"prompt": None}, "prompt", FORMS + "null"),
    ({"prompt": 1}, "prompt", FORMS + "1"),
    ({"prompt": True}, "prompt", FORMS + "true"),
    ({"prompt": {"a": 1}}, "prompt", FORMS + '{"a": 1}'),
    ({"prompt": []}, "prompt", FORMS + "[]"),
    ({"prompt": [[]]}, "prompt", FORMS + "[[]]"),
    ({"prompt": [[1], []]}, "prompt", FORMS + "[[1], []]"),
    ({"prompt": ["a", 1]}, "prompt", FORMS + '["a", 1]'),
    ({"prompt": ["a", [1]]}, "prompt", FORMS + '["a", [1]]'),
    ({"prompt": [1, [1]]}, "prompt", FORMS + "[1, [1]]"),
    ({"prompt": [None]}, "prompt", FORMS + "[null]"),
    ({"prompt": [True]}, "prompt", FORMS + "[true]"),
    ({"prompt": [1.5]}, "prompt", FORMS + "[1.5]"),
    ({"prompt": [[None]]}, "prompt", f"prompt[0][0] {IDS}null"),
    ({"prompt": [[1], ["a"]]}, "prompt", f"prompt[1][0] {IDS}'a'"),
    ({"prompt": [[[1]]]}, "prompt", f"prompt[0][0] {IDS}[1]"),
    ({"prompt": [0, -1]}, "prompt", f"prompt[1] {IDS}-1"),
    ({"prompt": [8192]}, "prompt", f"prompt[0] {IDS}8192"),
    ({"prompt": [[1], [2, 8192]]}, "prompt", f"prompt[1][1] {IDS}8192"),
    ({"prompt": [2**70]}, "prompt", f"prompt[0] {IDS}{2**70}"),
    ({"prompt": ["a"] * 129}, "prompt", "prompt must be at most 128 prompts on this server, got 129"),
    ({"prompt": ["a"] * 100}, "prompt", "prompts times completions must be at most 72 texts on this server, got 100"),
    ({"prompt": LONE}, "prompt", "prompt must be Unicode text, got a lone surrogate, U+D800 at position 0"),
    ({"prompt": ["a", "b" + LONE]}, "prompt", "prompt[1] must be Unicode text, got a lone surrogate, U+D800"),
    ({"max_tokens": -1}, "max_tokens", "max_tokens must be an integer of at least 0, got -1"),
    ({"max_tokens": 1.5}, "max_tokens", "max_tokens must be an integer of at least 0, got 1.5"),
    ({"max_tokens": "1"}, "max_tokens", 'max_tokens must be an integer of at least 0, got "1"'),
    ({"max_tokens": True}, "max_tokens", "max_tokens must be an integer of at least 0, got true"),
    ({"max_tokens": []}, "max_tokens", "max_tokens must be an integer of at least 0, got []"),
    ({"temperature": -0.1}, "temperature", "temperature must be a number from 0 to 2, got -0.1"),
    ({"temperature": 2.1}, "temperature", "temperature must be a number from 0 to 2, got 2.1"),
    ({"temperature": "1"}, "temperature", 'temperature must be a number from 0 to 2, got "1"'),
    ({"temperature": True}, "temperature", "temperature must be a number from 0 to 2, got true"),
    ({"temperature": 1e-9}, "temperature", "temperature must be 0 (greedy) or a number from 1e-06 to 2, got 1e-09"),
    ({"top_p": 1.1}, "top_p", "top_p must be a number from 0 to 1, got 1.1"),
    ({"n": 0}, "n", "n must be an integer of at least 1, got 0"),
    ({"n": 17}, "n", "n must be at most 16 on this server, got 17"),
    ({"n": 1e300}, "n", "n must be an integer of at least 1, got 1e+300"),
    ({"best_of": 17}, "best_of", "best_of must be at most 16 on this server, got 17"),
    ({"best_of": 1, "n": 2}, "best_of", "best_of must be at least n, 2, got 1"),
    ({"best_of": 3, "stream": True}, "best_of", "best_of must be n, 1, in a stream"),
    ({"stream": "true"}, "stream", 'stream must be true or false, got "true"'),
    ({"stream": 1}, "stream", "stream must be true or false, got 1"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only with stream, which must be true, got false"),
    ({"stream": True, "stream_options": []}, "stream_options", "stream_options must be an object, got []"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options", "include_usage must be true or false"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "stream_options.x is not supported"),
    ({"logprobs": -1}, "logprobs", "logprobs must be an integer of at least 0, got -1"),
    ({"logprobs": 21}, "logprobs", "logprobs must be at most 20 on this server, got 21"),
    ({"logprobs": True}, "logprobs", "logprobs must be an integer of at least 0, got true"),
    ({"echo": 1}, "echo", "echo must be true or false, got 1"),
    ({"stop": 1}, "stop", f"stop must be {TEXT_OR_TEXTS}"),
    ({"stop": ""}, "stop", f"stop must be {TEXT_OR_TEXTS}"),
    ({"stop": ["a"] * 17}, "stop", f"stop must be {TEXT_OR_TEXTS}"),
    ({"stop": ["a", ""]}, "stop", 'stop[1] must be a string of at least one character, got ""'),
    ({"stop": LONE}, "stop", "stop must be Unicode text, got a lone surrogate, U+D800"),
    ({"seed": 1.5}, "seed", "seed must be an integer from -9,223,372,036,854,775,808 to"),
    ({"seed": 2**63}, "seed", "to 9,223,372,036,854,775,807, got 9223372036854775808"),
    ({"presence_penalty": 2.1}, "presence_penalty", "presence_penalty must be a number from -2 to 2, got 2.1"),
    ({"frequency_penalty": -2.1}, "frequency_penalty", "frequency_penalty must be a number from -2 to 2, got -2.1"),
    ({"logit_bias": [1]}, "logit_bias", "logit_bias must be an object, got [1]"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "an id of logit_bias must be an integer of at least 0, got 'a'"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "an id of logit_bias must be an integer of at least 0, got '-1'"),
    ({"logit_bias": {"\u0661": 1}}, "logit_bias", "an id of logit_bias must be an integer of at least 0, got '\u0661'"),
    ({"logit_bias": {"8192": 1}}, "logit_bias", f"an id of logit_bias {IDS}8192"),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "an id of logit_bias must be an integer of at least 0, got '99"),
    ({"logit_bias": {"1": 1, "01": 2}}, "logit_bias", "logit_bias must name each id once, got 1 twice"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "logit_bias[5] must be a number from -100 to 100, got 101"),
    ({"logit_bias": {"5": None}}, "logit_bias", "logit_bias[5] must be a number from -100 to 100, got null"),
    ({"suffix": "x"}, "suffix", 'suffix must be null, as it is not supported, got "x"'),
    ({"user": 1}, "user", "user must be a string, got 1"),
    ({"top_k": -2}, "top_k", "top_k must be an integer of at least -1, got -2"),
    ({"min_p": 1.1}, "min_p", "min_p must be a number from 0 to 1, got 1.1"),
    ({"repetition_penalty": 0}, "repetition_penalty", "repetition_penalty must be a number from 0.01 to 100, got 0"),
    ({"ignore_eos": 1}, "ignore_eos", "ignore_eos must be true or false, got 1"),
    ({"min_tokens": -1}, "min_tokens", "min_tokens must be an integer of at least 0, got -1"),
    ({"min_tokens": 2}, "min_tokens", "min_tokens must be at most max_tokens, 1, got 2"),
    ({"min_tokens": 1, "max_tokens": 0}, "min_tokens", "min_tokens must be at most max_tokens, 0, got 1"),
    ({"min_tokens": 17, "max_tokens": None}, "min_tokens", "min_tokens must be at most max_tokens, 16, got 17"),
    ({"min_tokens": 1, "ignore_eos": True}, "min_tokens", "min_tokens makes no sense with ignore_eos"),
    (
        {"stop_token_ids": 1},
        "stop_token_ids",
        "stop_token_ids must be a list of at most 1,024 in which each is an integer, got 1",
    ),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "stop_token_ids[0] must be an integer of at least 0, got -1"),
    ({"stop_token_ids": [8192]}, "stop_token_ids", f"an id of stop_token_ids {IDS}8192"),
    ({"bad_words": "a"}, "bad_words", "must be a list of at most 1,024 in which each is a string of at least"),
    (
        {"bad_words": ["a"] * 1025},
        "bad_words",
        "bad_words must be a list of at most 1,024 in which each is a string of",
    ),
    ({"stop_token_ids": [5] * 1025}, "stop_token_ids", "must be a list of at most 1,024 in which each is an integer"),
    ({"bad_words": [""]}, "bad_words", 'bad_words[0] must be a string of at least one character, got ""'),
    ({"regex": "("}, "regex", "regex must be a regular expression that llguidance knows: unclosed group, got '('"),
    ({"regex": ""}, "regex", "regex must be 1 to 32,768 bytes of UTF-8, got 0"),
    ({"regex": "(?=a)b"}, "regex", "look-around, including look-ahead and look-behind, is not supported"),
    ({"regex": "a" * 40_000}, "regex", "regex must be 1 to 32,768 bytes of UTF-8, got 40,000"),
    ({"json_schema": "{"}, "json_schema", "json_schema must be a JSON object: Expecting property name"),
    ({"json_schema": "[]"}, "json_schema", "json_schema must be a JSON object, got '[]'"),
    ({"json_schema": 1}, "json_schema", "json_schema must be a string or an object, got 1"),
    ({"json_schema": {"type": "nothing"}}, "json_schema", "that llguidance knows: Invalid type: nothing"),
    ({"json_schema": {"$ref": "http://localhost/x"}}, "json_schema", "Default retriever does not fetch resources"),
    ({"grammar": "start: ("}, "grammar", "grammar must be a grammar in llguidance's Lark syntax"),
    ({"regex": "a", "grammar": 'start: "x"'}, "regex", "one of regex, json_schema and grammar, got regex and grammar"),
    ({"regex": "a", "ignore_eos": True}, "ignore_eos", "ignore_eos must be false with regex"),
    ({"regex": "b", "logit_bias": {"1": 1}, "bad_words": ["b"]}, None, "no id is left to choose from"),
    ({"messages": []}, "messages", "messages is not supported"),
    ({"max_token": 1}, "max_token", "max_token is not supported; did you mean max_tokens?"),
    ({"a\nb": 1}, '"a\\nb"', '"a\\nb" is not supported'),
    ({"model": 1}, "model", "model must be a string, got 1"),
]

# (path, fields, parameter, what is told)
ELSEWHERE = [
    (TOKENIZE, {}, "prompt", "prompt is missing"),
    (TOKENIZE, {"prompt": ["a"]}, "prompt", 'prompt must be a string, got ["a"]'),
    (TOKENIZE, {"prompt": LONE}, "prompt", "prompt must be Unicode text, got a lone surrogate, U+D800"),
    (TOKENIZE, {"prompt": "a", "messages": []}, "messages", "messages is not supported"),
    (TOKENIZE, {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens", "must be true or false, got 1"),
    (DETOKENIZE, {}, "tokens", "tokens is missing"),
    (DETOKENIZE, {"tokens": "a"}, "tokens", 'tokens must be a list in which each is an integer, got "a"'),
    (DETOKENIZE, {"tokens": [1, 1.5]}, "tokens", "tokens[1] must be an integer, got 1.5"),
    (DETOKENIZE, {"tokens": [8192]}, "tokens", f"tokens[0] {IDS}8192"),
    (DETOKENIZE, {"tokens": [-1]}, "tokens", f"tokens[0] {IDS}-1"),
    (DETOKENIZE, {"tokens": [2**70]}, "tokens", f"tokens[0] {IDS}{2**70}"),
    (EMBEDDINGS, {}, "input", "input is missing"),
    (EMBEDDINGS, {"prompt": "a"}, "prompt", "prompt is not supported"),
    (EMBEDDINGS, {"input": None}, "input", f"input {FORMS}null"),
    (EMBEDDINGS, {"input": []}, "input", f"input {FORMS}[]"),
    (EMBEDDINGS, {"input": [8192]}, "input", f"input[0] {IDS}8192"),
    (EMBEDDINGS, {"input": ["a", LONE]}, "input", "input[1] must be Unicode text, got a lone surrogate"),
    (EMBEDDINGS, {"input": ["a"] * 129}, "input", "input must be at most 128 prompts on this server, got 129"),
    (EMBEDDINGS, {"input": ["a"] * 100}, "input", "input must be at most 72 texts on this server, got 100"),
    (EMBEDDINGS, {"input": "a", "dimensions": 0}, "dimensions", "dimensions must be an integer of at least 1, got 0"),
    (EMBEDDINGS, {"input": "a", "dimensions": 3}, "dimensions", "dimensions must be 256, this model's n_embd, got 3"),
    (EMBEDDINGS, {"input": "a", "layer": 7}, "layer", "layer must be at most 6, this model's n_layer, got 7"),
    (EMBEDDINGS, {"input": "a", "layer": -1}, "layer", "layer must be an integer of at least 0, got -1"),
    (EMBEDDINGS, {"input": "a", "pooling": "max"}, "pooling", 'pooling must be "last" or "mean", got "max"'),
    (EMBEDDINGS, {"input": "a", "encoding_format": "hex"}, "encoding_format", 'be "base64" or "float", got "hex"'),
    (EMBEDDINGS, {"input": "a", "normalize": 1}, "normalize", "normalize must be true or false, got 1"),
]

# (fields, parameter, what is told): more than the context of 512 tokens
TOO_LONG = [
    (
        COMPLETIONS,
        {"prompt": "It", "max_tokens": 512},
        "max_tokens",
        "the prompt has 1, and max_tokens asks for 512 more",
    ),
    (COMPLETIONS, {"prompt": "It", "max_tokens": 10**30}, "max_tokens", "maximum context length is 512 tokens"),
    (COMPLETIONS, {"prompt": [5] * 512}, "prompt", "the prompt has 512 and leaves none to generate"),
    (COMPLETIONS, {"prompt": [5] * 513, "max_tokens": 1}, "prompt", "the prompt has 513, and max_tokens asks for 1"),
    (COMPLETIONS, {"prompt": [[1], [5] * 600], "max_tokens": 0, "echo": True}, "prompt", "the prompt has 600"),
    (EMBEDDINGS, {"input": ["a", "x " * 600]}, "input", "length is 512 tokens; input[1] has 1,200"),
]

# (method, path, headers, body, status, code, what is told)
HTTP = [
    ("GET", COMPLETIONS, {}, b"", 405, "method_not_allowed", "GET /v1/completions is not possible; the"),
    ("PUT", COMPLETIONS, JSON, fields(), 405, "method_not_allowed", "the method must be POST"),
    ("OPTIONS", COMPLETIONS, {}, b"", 405, "method_not_allowed", "the method must be POST"),
    ("POST", "/v1/models", JSON, b"{}", 405, "method_not_allowed", "the method must be GET or HEAD"),
    ("DELETE", "/v1/models/novelist", {}, b"", 405, "method_not_allowed", "the method must be GET or HEAD"),
    ("POST", "/v1/completion", JSON, fields(), 404, "unknown_url", "there is no POST /v1/completion;"),
    ("POST", "/v1/completions/", JSON, fields(), 404, "unknown_url", "there is no POST /v1/completions/;"),
    ("POST", "/v1/chat/completions", JSON, b"{}", 404, "unknown_url", "there is no POST /v1/chat/completions;"),
    ("GET", "/a%0Ab%ff", {}, b"", 404, "unknown_url", 'there is no GET "/a\\nb\\ufffd";'),
    ("GET", "/" + "x" * 3000, {}, b"", 404, "unknown_url", "xxx…; /openapi.json lists what there is"),
    ("POST", COMPLETIONS, {}, fields(), 415, "unsupported_media_type", "must be application/json, got none"),
    ("POST", COMPLETIONS, {"Content-Type": "text/plain"}, fields(), 415, "unsupported_media_type", "got text/plain"),
    ("POST", COMPLETIONS, {"Content-Type": "application/jsonl"}, fields(), 415, "unsupported_media_type", "got applic"),
    ("POST", TOKENIZE, {"Content-Type": "x" * 999}, fields(), 415, "unsupported_media_type", "got xxx"),
    ("POST", COMPLETIONS, {**JSON, "Content-Encoding": "gzip"}, b"", 415, "unsupported_encoding", "identity, got gzip"),
    ("POST", COMPLETIONS, JSON, b" " * (2**20 + 1), 413, "body_too_large", "the body must be at most 1,048,576 bytes"),
]  # fmt: skip


@pytest.fixture(scope="module")
def client(model):
    """The application without a socket: the same for all that is not of the connection."""
    with TestClient(create_app(model, ServerSettings(served_name="novelist"))) as found:
        yield found


@pytest.fixture(autouse=True)
def still_serves(client):
    """Whatever comes, nothing keeps running, and the next request is answered."""
    yield
    assert "\ngpt2_onnx_running 0.0\n" in client.get("/metrics").text
    assert client.post(COMPLETIONS, content=fields(), headers=JSON).status_code == 200


def assert_refused(response, status, param, code, told):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert told in error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) <= 500


@pytest.mark.parametrize("what", NOT_A_BODY)
def test_a_body_that_is_none(client, what):
    body, told = NOT_A_BODY[what]
    assert_refused(client.post(COMPLETIONS, content=body, headers=JSON), 400, None, None, told)


def test_a_field_given_twice(client):
    body = b'{"prompt":"a","n":1,"n":2}'
    refused = client.post(COMPLETIONS, content=body, headers=JSON)
    assert_refused(refused, 400, "n", None, "n must be given once, got it twice")


@pytest.mark.parametrize(("given", "param", "told"), WRONG, ids=lambda part: str(part)[:40])
def test_a_field_that_is_wrong(client, given, param, told):
    assert_refused(client.post(COMPLETIONS, content=fields(**given), headers=JSON), 400, param, None, told)


@pytest.mark.parametrize(("path", "given", "param", "told"), ELSEWHERE, ids=lambda part: str(part)[:40])
def test_a_field_of_another_endpoint(client, path, given, param, told):
    assert_refused(client.post(path, content=json.dumps(given), headers=JSON), 400, param, None, told)


@pytest.mark.parametrize(("path", "given", "param", "told"), TOO_LONG, ids=lambda part: str(part)[:40])
def test_more_than_the_context(client, path, given, param, told):
    refused = client.post(path, content=json.dumps(given), headers=JSON)
    assert_refused(refused, 400, param, "context_length_exceeded", told)


@pytest.mark.parametrize("path", [COMPLETIONS, EMBEDDINGS, TOKENIZE, DETOKENIZE])
@pytest.mark.parametrize("name", ["gpt-4", "", "novelist ", "x" * 1000, LONE])
def test_another_model(client, path, name):
    needed = {COMPLETIONS: "prompt", EMBEDDINGS: "input", TOKENIZE: "prompt", DETOKENIZE: "tokens"}[path]
    body = json.dumps({"model": name, needed: [1] if path == DETOKENIZE else "a"})
    refused = client.post(path, content=body, headers=JSON)
    assert_refused(refused, 404, "model", "model_not_found", "does not exist here; this server has 'novelist'")


def test_another_models_card(client):
    assert_refused(client.get("/v1/models/gpt-4"), 404, "model", "model_not_found", "the model 'gpt-4' does not exist")


@pytest.mark.parametrize(("method", "path", "headers", "body", "status", "code", "told"), HTTP)
def test_what_is_wrong_with_a_request_as_http(client, method, path, headers, body, status, code, told):
    refused = client.request(method, path, headers=headers, content=body)
    assert_refused(refused, status, None, code, told)
    assert ("Allow" in refused.headers) == (status == 405)


def test_head_is_get_without_a_body(client):
    assert (client.head("/v1/models").status_code, client.head("/v1/models").content) == (200, b"")
    assert client.head(COMPLETIONS).status_code == 405


def test_too_many_bytes_without_a_length(client):
    chunks = (b" " * 2**15 for _ in range(33))
    refused = client.post(COMPLETIONS, content=chunks, headers=JSON)
    assert_refused(refused, 413, None, "body_too_large", "the body must be at most 1,048,576 bytes")


def said(live, data, *, ends=False):
    """All that a server says to some bytes, until it closes the connection or the last answer is there."""
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        with suppress(ConnectionError):
            connection.sendall(data)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):  # how TCP closes a connection whose bytes have not all been read
            while chunk := connection.recv(65536):
                answer += chunk
    return answer


def request(body=fields(), *headers, path=COMPLETIONS, length=None):  # noqa: B008
    head = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def statuses(answer):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


CLOSE = "Connection: close"
LONG_HEADS = {
    "a line of 100 kB": request(path="/" + "x" * 100_000),
    "a header of 100 kB": request(fields(), "X-A: " + "y" * 100_000),
    "10,000 headers": request(fields(), *(f"X-{number}: y" for number in range(10_000))),
    "headers without an end": b"GET / HTTP/1.1\r\n" + b"X-A: y\r\n" * 20_000,
    "a header without an end": b"GET / HTTP/1.1\r\nX-A: " + b"y" * 1_000_000,
}
RAW = {
    "a handshake of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", [400]),
    "a negative length": (request(length=-5), [400]),
    "two lengths": (request(fields(), "Content-Length: 5"), [400]),
    "a length and chunks": (request(fields(), "Transfer-Encoding: chunked"), [400]),
    "a length of 20 digits": (request(fields(), CLOSE, length=10**19), [413]),
    "three at once": (request() * 2 + request(fields(), CLOSE), [200, 200, 200]),
    "a wrong one between": (request() + request(b"[") + request(fields(), CLOSE), [200, 400, 200]),
    "a host that is none": (b"GET /nope HTTP/1.1\r\nHost: a[b\xff\r\nConnection: close\r\n\r\n", [404]),
}


@pytest.mark.parametrize("what", RAW)
def test_what_comes_over_a_socket(server, what):
    sent, expected = RAW[what]
    assert statuses(said(server, sent)) == expected
    assert server.complete(prompt="It", max_tokens=1).status_code == 200


@pytest.mark.parametrize("what", LONG_HEADS)
def test_a_request_that_begins_with_too_much_is_cut_off(server, what):
    answer = said(server, LONG_HEADS[what])
    assert statuses(answer) in ([400], [])
    assert not answer or b"line and headers must be at most 65,536 bytes" in answer or b"Invalid HTTP" in answer
    assert server.complete(prompt="It", max_tokens=1).status_code == 200


def test_a_body_shorter_than_its_length(server):
    assert said(server, request(length=len(fields()) + 50), ends=True) == b""
    assert server.complete(prompt="It", max_tokens=1).status_code == 200


def test_a_body_may_be_much_longer_than_headers_may(server):
    body = fields(prompt="a " * 200, user="x" * 500_000)
    assert statuses(said(server, request(body, CLOSE))) == [200]


KEYS = "first-key-1234, second-key-5678"


@pytest.fixture
def guarded(model, monkeypatch):
    monkeypatch.setenv("SOME_KEYS", KEYS)
    with TestClient(create_app(model, ServerSettings(served_name="novelist", api_key_env="SOME_KEYS"))) as found:
        yield found


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer first-key-123",
        b"Bearer first-key-12345",
        b"Bearer FIRST-KEY-1234",
        b"Bearer first-key-1234, second-key-5678",
        b"Basic first-key-1234",
        b"first-key-1234",
        b"Bearer \xff\xfe\x80",
        b"Bearer " + b"x" * 10_000,
    ],
)
def test_without_a_key_that_it_knows_a_server_says_401(guarded, header):
    headers = {"Authorization": header} if header is not None else {}
    for method, path in (("GET", "/v1/models"), ("POST", COMPLETIONS), ("GET", "/tokenizer_info"), ("GET", "/nope")):
        refused = guarded.request(method, path, headers=headers)
        assert_refused(refused, 401, None, "invalid_api_key", "send the header Authorization: Bearer KEY")
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert "key-1234" not in refused.text


@pytest.mark.parametrize("header", ["Bearer first-key-1234", "bearer second-key-5678", "BEARER  first-key-1234 "])
def test_with_a_key_it_answers(guarded, header):
    assert guarded.get("/v1/models", headers={"Authorization": header}).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json"])
def test_what_tells_no_text_needs_no_key(guarded, path):
    assert guarded.get(path).status_code == 200


def test_a_request_keeps_its_id(client):
    for path in ("/healthz", "/nope"):
        assert client.get(path, headers={"X-Request-Id": "a.b_C-9"}).headers["X-Request-Id"] == "a.b_C-9"


@pytest.mark.parametrize("name", [b"", b"a b", b"a\xffb", b"x" * 65, b'"', b"a,b", b"\xc3\xa9"])
def test_an_id_that_is_not_fit_for_a_log_is_replaced(client, name):
    found = client.get("/healthz", headers={"X-Request-Id": name}).headers["X-Request-Id"]
    assert re.fullmatch("[0-9a-f]{24}", found)
