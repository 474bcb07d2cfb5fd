"""`POST /v1/completions`: what comes out is what `runtime` gives for the same options."""

import json

import pytest

PROMPT = "It was a bright cold day"


def events(response):
    """The JSON of each event, up to [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def joined(found, index=0):
    return "".join(each["text"] for event in found for each in event["choices"] if each["index"] == index)


def test_a_greedy_completion_is_that_of_the_model(server):
    expected = server.model.complete(PROMPT, max_new_tokens=12)
    answer = server.complete(model="novelist", prompt=PROMPT, max_tokens=12, temperature=0).json()
    assert answer["choices"] == [
        {"index": 0, "text": expected.text, "logprobs": None, "finish_reason": expected.finish_reason}
    ]
    assert (answer["object"], answer["model"]) == ("text_completion", "novelist")
    counts = answer["usage"]
    assert (counts["prompt_tokens"], counts["completion_tokens"]) == (expected.prompt_tokens, 12)
    assert counts["total_tokens"] == expected.prompt_tokens + 12


def test_openais_defaults_are_16_tokens_sampled_at_temperature_1(server):
    expected = server.model.complete(PROMPT, max_new_tokens=16, temperature=1.0, seed=5)
    assert server.complete(prompt=PROMPT, seed=5).json()["choices"][0]["text"] == expected.text


@pytest.mark.parametrize("form", ["text", "texts", "ids", "lists of ids"])
def test_a_prompt_has_four_forms(server, form):
    ids = server.model.encode(PROMPT)
    prompt = {"text": PROMPT, "texts": [PROMPT, PROMPT], "ids": ids, "lists of ids": [ids, ids]}[form]
    expected = server.model.complete(PROMPT, max_new_tokens=6).text
    answer = server.complete(prompt=prompt, max_tokens=6, temperature=0).json()
    several = form in ("texts", "lists of ids")
    assert [each["text"] for each in answer["choices"]] == [expected] * (2 if several else 1)
    assert answer["usage"]["prompt_tokens"] == len(ids) * (2 if several else 1)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"top_p": 0.7}, {"top_p": 0.7}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"top_k": -1}, {}),
        ({"min_p": 0.2}, {"min_p": 0.2}),
        ({"presence_penalty": 1.5}, {"presence_penalty": 1.5}),
        ({"frequency_penalty": -1}, {"frequency_penalty": -1.0}),
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"logit_bias": {"11": -100, "12": 5.5}}, {"logit_bias": {11: -100, 12: 5.5}}),
        ({"stop": " the"}, {"stop": " the"}),
        ({"stop": [",", "."]}, {"stop": [",", "."]}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
        ({"min_tokens": 3, "stop_token_ids": [12]}, {"min_new_tokens": 3, "eos_token_id": [12]}),
        ({"bad_words": ["the"]}, {"bad_words": ["the"]}),
        ({"regex": "[a-f]{9}"}, {"regex": "[a-f]{9}"}),
        ({"json_schema": {"enum": [1, 2]}}, {"json_schema": {"enum": [1, 2]}}),
        ({"grammar": 'start: "x" "y"*'}, {"grammar": 'start: "x" "y"*'}),
    ],
    ids=lambda options: ",".join(options) if isinstance(options, dict) else None,
)
def test_an_option_does_what_it_does_in_python(server, theirs, ours):
    expected = server.model.complete(PROMPT, max_new_tokens=20, temperature=0.9, seed=3, **ours)
    answer = server.complete(prompt=PROMPT, max_tokens=20, temperature=0.9, seed=3, **theirs).json()
    found = answer["choices"][0]
    assert (found["text"], found["finish_reason"]) == (expected.text, expected.finish_reason)


def test_n_completions_are_those_of_n_in_python(server):
    options = {"temperature": 0.9, "seed": 4}
    expected = server.model.complete(PROMPT, n=3, max_new_tokens=8, **options)
    answer = server.complete(prompt=[PROMPT, "She"], n=3, max_tokens=8, **options).json()
    assert [each["index"] for each in answer["choices"]] == [0, 1, 2, 3, 4, 5]
    assert [each["text"] for each in answer["choices"][:3]] == [each.text for each in expected]
    assert answer["usage"]["completion_tokens"] == 48


def test_the_best_of_several(server):
    options = {"n": 2, "best_of": 5, "seed": 4, "temperature": 0.9}
    expected = server.model.complete(PROMPT, max_new_tokens=8, **options)
    answer = server.complete(prompt=PROMPT, max_tokens=8, **options).json()
    assert [each["text"] for each in answer["choices"]] == [each.text for each in expected]
    assert answer["usage"]["completion_tokens"] == 40


def test_greedy_completions_are_equal_as_often_as_asked(server):
    answer = server.complete(prompt=PROMPT, n=3, max_tokens=5, temperature=0).json()
    assert [each["text"] for each in answer["choices"]] == [server.model.complete(PROMPT, max_new_tokens=5).text] * 3


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_a_stream_says_what_the_whole_answer_says(server, echo, logprobs):
    body = {"prompt": [PROMPT, "Ω — “no”"], "max_tokens": 9, "seed": 2, "echo": echo, "logprobs": logprobs, "n": 2}
    whole = server.complete(**body).json()
    found = events(server.complete(**body, stream=True, stream_options={"include_usage": True}))
    assert found[-1]["choices"] == []
    assert {**found[-1]["usage"], "prompt_tokens_details": 0} == {**whole["usage"], "prompt_tokens_details": 0}
    assert len({event["id"] for event in found}) == 1
    for choice in whole["choices"]:
        parts = [each for event in found for each in event["choices"] if each["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]
        if logprobs is None:
            assert all(part["logprobs"] is None for part in parts)
            continue
        for name, values in choice["logprobs"].items():
            assert [value for part in parts for value in part["logprobs"][name]] == values


def test_echo_says_the_prompt_first(server):
    answer = server.complete(prompt=PROMPT, max_tokens=4, temperature=0, echo=True, logprobs=1).json()
    (choice,) = answer["choices"]
    expected = server.model.complete(PROMPT, max_new_tokens=4, logprobs=1, prompt_logprobs=1)
    assert choice["text"] == PROMPT + expected.text
    told = choice["logprobs"]
    both = [*expected.prompt_logprobs, *expected.logprobs]
    assert told["token_logprobs"] == [None if each is None else pytest.approx(each.logprob) for each in both]
    assert told["top_logprobs"][0] is None
    for token, logprob, top in zip(
        told["tokens"][1:], told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True
    ):
        assert top[token] == logprob
    assert [
        choice["text"][start:].startswith(token)
        for token, start in zip(told["tokens"], told["text_offset"], strict=True)
    ]
    assert "".join(told["tokens"]) == choice["text"]


def test_a_prompt_is_scored_without_a_token_more(server):
    ids = server.model.encode(PROMPT)
    answer = server.complete(prompt=ids, max_tokens=0, echo=True, logprobs=0).json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
    expected = server.model.complete(PROMPT, max_new_tokens=1, prompt_logprobs=0).prompt_logprobs
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx([each.logprob for each in expected[1:]], abs=1e-5)
    assert answer["usage"]["completion_tokens"] == 0


def test_a_text_that_ends_at_once_still_has_the_token_that_ended_it(server):
    """Clients that score a prompt with max_tokens 1 leave out the last token, whichever it is."""
    ids = server.model.encode(PROMPT)
    body = {"prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    (choice,) = server.complete(**body, logit_bias={"0": 100}).json()["choices"]  # 0 is <|endoftext|>
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "stop")
    assert {len(values) for values in choice["logprobs"].values()} == {len(ids) + 1}
    (other,) = server.complete(**body).json()["choices"]
    assert choice["logprobs"]["token_logprobs"][:-1] == other["logprobs"]["token_logprobs"][:-1]


def test_a_prompt_that_fills_the_context_can_be_scored(server):
    ids = [5] * server.model.prompting.context
    answer = server.complete(prompt=ids, max_tokens=0, echo=True, logprobs=0)
    assert len(answer.json()["choices"][0]["logprobs"]["token_logprobs"]) == len(ids)
    assert server.complete(prompt=ids, max_tokens=1).json()["error"]["code"] == "context_length_exceeded"
    assert server.complete(prompt=ids).json()["error"]["param"] == "prompt"


def test_nothing_at_all_may_be_asked_for(server):
    answer = server.complete(prompt="It", max_tokens=0).json()
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("", "length")


def test_a_second_request_tells_what_was_cached(server):
    prompt = server.model.encode(PROMPT) * 8
    server.complete(prompt=prompt, max_tokens=1)
    cached = server.complete(prompt=prompt, max_tokens=1).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == len(prompt) - 1


def test_what_ends_before_its_schema_is_whole_says_so(server):
    answer = server.complete(prompt=PROMPT, max_tokens=3, regex="[a-z]{40}").json()
    assert answer["choices"][0]["finish_reason"] == "incomplete"
