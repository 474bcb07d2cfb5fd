"""OpenAI's own client, as released, against a live server: what it sends is understood, what comes it can read."""

import asyncio
import re
import threading
import time

import openai
import pytest

PROMPT = "It was a bright cold day"
GREEDY = {"model": "novelist", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}


@pytest.fixture
def connect():
    """Make clients of a server, with the client's own defaults unless told otherwise."""
    made = []

    def make(live, **options):
        made.append(openai.OpenAI(base_url=f"{live.url}/v1", **{"api_key": "none-is-needed", **options}))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(server, connect):
    return connect(server)


def eventually(condition, seconds=10.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def is_idle(live):
    return "\ngpt2_onnx_running 0.0\n" in live.client.get("/metrics").text


def test_a_completion(server, client):
    answer = client.completions.create(**GREEDY)
    expected = server.model.complete(PROMPT, max_new_tokens=12)
    assert isinstance(answer, openai.types.Completion)
    assert [(each.index, each.text, each.finish_reason) for each in answer.choices] == [(0, expected.text, "length")]
    assert (answer.model, answer.object, answer.id[:5]) == ("novelist", "text_completion", "cmpl-")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert abs(answer.created - time.time()) < 60


def test_its_own_types_find_nothing_odd_in_an_answer(client):
    """The client builds its types without checking; a check finds what is missing, or of another type."""
    for options in ({}, {"logprobs": 2}, {"n": 2, "stop": ["the"], "seed": 3, "temperature": 1}):
        answer = client.completions.create(**{**GREEDY, **options})
        assert openai.types.Completion.model_validate(answer.model_dump()) == answer


def test_an_echoed_prompts_first_token_has_no_logprob(client):
    """As in OpenAI's answers, though its types say that it always has one."""
    told = client.completions.create(**GREEDY, logprobs=2, echo=True).choices[0].logprobs
    assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
    assert None not in told.token_logprobs[1:]
    lengths = [len(each) for each in (told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset)]
    assert len(set(lengths)) == 1


def test_a_stream(client):
    whole = client.completions.create(**GREEDY)
    with client.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}) as stream:
        events = list(stream)
    assert "".join(choice.text for event in events for choice in event.choices) == whole.choices[0].text
    assert [choice.finish_reason for event in events for choice in event.choices][-1] == "length"
    assert [event.usage is None for event in events] == [True] * (len(events) - 1) + [False]
    assert (events[-1].choices, events[-1].usage.completion_tokens) == ([], 12)
    assert len(events) > 6


def test_without_waiting(server, client):
    expected = [client.completions.create(**{**GREEDY, "prompt": each}).choices[0].text for each in ("It", "She", "He")]

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none-is-needed") as waiting:
            calls = [waiting.completions.create(**{**GREEDY, "prompt": each}) for each in ("It", "She", "He")]
            wholes = [answer.choices[0].text for answer in await asyncio.gather(*calls)]
            async with await waiting.completions.create(**{**GREEDY, "prompt": "He"}, stream=True) as stream:
                said = [choice.text async for event in stream for choice in event.choices]
            return wholes, "".join(said)

    assert asyncio.run(run()) == (expected, expected[-1])


def test_the_headers(client):
    response = client.completions.with_raw_response.create(**GREEDY, extra_headers={"X-Request-Id": "mine-1"})
    answer = response.parse()
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert (response.request_id, answer.id) == ("mine-1", "cmpl-mine-1")
    assert answer._request_id == "mine-1"
    with client.completions.with_streaming_response.create(**GREEDY, stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert re.fullmatch("[0-9a-f]{24}", response.request_id)
        assert list(response.iter_lines())[-2:] == ["data: [DONE]", ""]


def test_the_models(client):
    (found,) = client.models.list()
    assert (found.id, found.object, found.owned_by) == ("novelist", "model", "gpt2-onnx")
    assert client.models.retrieve("novelist") == found
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_embeddings_come_as_bytes_unless_numbers_are_asked_for(server, client):
    texts = [PROMPT, "Ω — “no”"]
    sent = []
    server_side = client.with_options(max_retries=0)
    server_side._client.event_hooks = {"request": [lambda request: sent.append(request.read())]}
    by_bytes = server_side.embeddings.create(model="novelist", input=texts)
    by_numbers = client.embeddings.create(model="novelist", input=texts, encoding_format="float")
    assert b'"encoding_format":"base64"' in sent[0]
    assert [each.embedding for each in by_bytes.data] == [each.embedding for each in by_numbers.data]
    assert [(each.index, len(each.embedding)) for each in by_numbers.data] == [(0, 256), (1, 256)]
    assert by_numbers.usage.total_tokens == sum(len(server.model.encode(text)) for text in texts)
    assert sum(value**2 for value in by_numbers.data[0].embedding) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"regex": "[0-9]{4}-[0-9]{2}"}, r"\d{4}-\d{2}"),
        ({"json_schema": {"enum": ["red", "green"]}}, '"(red|green)"'),
        ({"grammar": 'start: "x" "y"'}, "xy"),
        ({"top_k": 1, "min_tokens": 3, "repetition_penalty": 1.2}, "(?s).+"),
    ],
    ids=["regex", "json_schema", "grammar", "top_k"],
)
def test_what_the_client_does_not_know_goes_in_an_extra_body(client, extra, pattern):
    answer = client.completions.create(**{**GREEDY, "temperature": 1, "seed": 7}, extra_body=extra)
    assert re.fullmatch(pattern, answer.choices[0].text)


def test_top_k_of_1_is_greedy(client):
    drawn = client.completions.create(**{**GREEDY, "temperature": 1.5}, extra_body={"top_k": 1})
    assert drawn.choices[0].text == client.completions.create(**GREEDY).choices[0].text


@pytest.mark.parametrize(
    ("options", "kind", "param", "code", "told"),
    [
        ({"temperature": 3}, openai.BadRequestError, "temperature", None, "must be a number from 0 to 2, got 3"),
        ({"max_tokens": 600}, openai.BadRequestError, "max_tokens", "context_length_exceeded", "context length is 512"),
        ({"extra_body": {"tok_k": 1}}, openai.BadRequestError, "tok_k", None, "did you mean top_k?"),
        ({"model": "gpt-4"}, openai.NotFoundError, "model", "model_not_found", "'gpt-4' does not exist"),
        ({"stream": True, "n": 99}, openai.BadRequestError, "n", None, "n must be at most 16 on this server, got 99"),
    ],
)
def test_a_refusal_is_an_exception_that_says_what_was_wrong(client, options, kind, param, code, told):
    with pytest.raises(kind) as caught:
        client.completions.create(**{**GREEDY, **options})
    error = caught.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert told in error.message
    assert error.request_id


def test_without_its_key(serve, connect, monkeypatch):
    monkeypatch.setenv("SOME_KEYS", "a-key-of-mine")
    live = serve(api_key_env="SOME_KEYS")
    with pytest.raises(openai.AuthenticationError) as caught:
        connect(live).completions.create(**GREEDY)
    assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
    assert connect(live, api_key="a-key-of-mine").completions.create(**GREEDY).choices


def test_it_waits_as_long_as_a_full_server_says_and_comes_again(serve, connect):
    live = serve(slots=1, max_queue=0)
    service = live.app.state.service

    def leave():
        eventually(lambda: 'status="429"} 1.0' in live.client.get("/metrics").text)
        place.__exit__(None, None, None)

    place = service.admission.admit(1)
    place.__enter__()
    service.admission._seconds = 1.0  # which the server then asks it to wait
    leaving = threading.Thread(target=leave)
    leaving.start()
    began = time.monotonic()
    response = connect(live, max_retries=2).completions.with_raw_response.create(**GREEDY)
    leaving.join()
    assert response.retries_taken == 1
    assert 1.0 <= time.monotonic() - began < 8
    assert response.parse().choices[0].text == live.model.complete(PROMPT, max_new_tokens=12).text


def test_without_retries_a_full_server_is_a_rate_limit_error(serve, connect):
    live = serve(slots=1, max_queue=0)
    with live.app.state.service.admission.admit(1), pytest.raises(openai.RateLimitError) as caught:
        connect(live, max_retries=0).completions.create(**GREEDY)
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert caught.value.response.headers["retry-after"] == "1"


def test_a_stream_closed_midway_frees_its_slot(serve, connect):
    live = serve(slots=1)
    client = connect(live)
    long = {**GREEDY, "max_tokens": 480, "extra_body": {"ignore_eos": True}}
    with client.completions.create(**long, stream=True) as stream:
        next(stream)
    eventually(lambda: is_idle(live))
    assert 'gpt2_onnx_texts_total{reason="cancelled"} 1.0' in live.client.get("/metrics").text
    assert client.completions.create(**GREEDY).choices[0].finish_reason == "length"


def test_an_error_within_a_stream_is_raised(serve, connect):
    live = serve(timeout=0.3)
    with pytest.raises(openai.APIError) as caught:
        list(
            connect(live).completions.create(
                **GREEDY | {"max_tokens": 500}, extra_body={"ignore_eos": True}, stream=True
            )
        )
    assert caught.value.code == "timeout"
