"""Pressure: full queues, clients that leave or read slowly, time that runs out, and requests that fail."""

import json
import logging
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import httpx
import pytest

import runtime.server.completions
from runtime.engine.texts import AHEAD, GeneratedText

PROMPT = "It was a bright cold day"
LONG = {"prompt": PROMPT, "max_tokens": 400, "temperature": 0, "ignore_eos": True}


MANY = LONG | {"prompt": [PROMPT] * 16}  # takes seconds, however fast the machine


def eventually(condition, seconds=10.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)
    return found


def stands_still(number):
    """A number, if it does not change for a while."""
    before = number()
    time.sleep(0.3)
    return before if before == number() else None


def gauge(live, name):
    return float(re.search(rf"^gpt2_onnx_{name} (\S+)", live.client.get("/metrics").text, re.MULTILINE)[1])


def is_idle(live):
    return gauge(live, "running") == 0 and not live.model.loop.busy


def opened(live, **body):
    """A connection that has sent a request, and reads nothing yet."""
    host, port = live.url.removeprefix("http://").split(":")
    sent = json.dumps(body).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    head = ["POST /v1/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    connection.sendall("\r\n".join([*head, f"Content-Length: {len(sent)}", "", ""]).encode() + sent)
    return connection


def test_a_full_queue_is_a_429_that_says_when_to_come_again(serve):
    live = serve(slots=1, max_queue=1)
    with opened(live, **LONG), opened(live, **LONG):
        eventually(lambda: gauge(live, "waiting") == 1)
        refused = live.complete(prompt="It", max_tokens=1)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    eventually(lambda: is_idle(live))
    assert live.complete(prompt="It", max_tokens=1).status_code == 200


def test_a_request_that_could_never_be_taken_is_refused_for_good(serve):
    live = serve(slots=1, max_queue=2)
    refused = live.complete(prompt=["a", "b"], n=2, max_tokens=1)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    assert "at most 3" in refused.json()["error"]["message"]
    assert live.complete(prompt=["a", "b", "c"], max_tokens=1).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot_within_a_step(serve, stream):
    live = serve(slots=1)
    tokens = []
    with opened(live, **LONG, stream=stream) as connection:
        (text,) = eventually(lambda: list(live.model.loop._scheduler._running))
        if stream:
            connection.recv(1)
        eventually(lambda: len(text.generation.token_ids) > 3)
    eventually(lambda: is_idle(live))
    tokens.append(len(text.generation.token_ids))
    assert tokens[0] < 400
    assert text.cancelled


def test_one_that_waits_and_leaves_never_runs(serve):
    live = serve(slots=1, max_queue=4)
    with opened(live, **LONG):
        eventually(lambda: gauge(live, "running") == 1)
        opened(live, **LONG).close()
        with opened(live, prompt="It", max_tokens=1):
            eventually(lambda: gauge(live, "waiting") == 1)
        eventually(lambda: gauge(live, "waiting") == 0)
    eventually(lambda: is_idle(live))
    assert 'gpt2_onnx_texts_total{reason="cancelled"} 3.0' in live.client.get("/metrics").text


def test_one_that_reads_slowly_holds_up_nobody(serve):
    """Its text stops once the sockets are full, and gives its slot to others who wait."""
    live = serve(slots=1)
    expected = live.model.complete(PROMPT, max_new_tokens=400, ignore_eos=True, temperature=0)
    with opened(live, **LONG, stream=True, logprobs=20, echo=True) as connection:
        (text,) = eventually(lambda: list(live.model.loop._scheduler._running))
        told = eventually(lambda: stands_still(lambda: len(text.generation.token_ids)))
        for _ in range(5):
            assert live.complete(prompt="It", max_tokens=8).status_code == 200
        assert told <= len(text.generation.token_ids) <= told + AHEAD + 1
        answer = b""
        while b"[DONE]" not in answer:
            answer += connection.recv(65536)
    found = [json.loads(line) for line in re.findall(rb'\{"id":"cmpl-.*\}', answer)]
    said = "".join(choice["text"] for each in found for choice in each["choices"])
    assert said == PROMPT + expected.text


def test_time_runs_out_for_a_whole_answer(serve):
    live = serve(timeout=0.3)
    refused = live.complete(**MANY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (504, "timeout")
    assert "0.3 s" in refused.json()["error"]["message"]
    eventually(lambda: is_idle(live))
    assert live.complete(prompt="It", max_tokens=1).status_code == 200


def test_time_runs_out_in_a_stream(serve):
    live = serve(timeout=0.3)
    found = live.complete(**MANY, stream=True)
    assert found.status_code == 200
    *_, last = [line for line in found.text.split("\n\n") if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    eventually(lambda: is_idle(live))


def test_time_runs_out_for_one_that_waits(serve):
    live = serve(slots=1, timeout=0.5)
    with ThreadPoolExecutor(2) as pool:
        statuses = [each.result().status_code for each in [pool.submit(live.complete, **MANY) for _ in range(2)]]
    assert statuses == [504, 504]
    eventually(lambda: is_idle(live))


@pytest.fixture
def failing(monkeypatch):
    """Let texts whose prompt has one token fail at their third token with an error."""

    def fail_with(error):
        class Failing(GeneratedText):
            def take(self, work, answer):
                if len(self.generation.prompt_ids) == 1 and len(self.generation.token_ids) == 3:
                    raise error
                super().take(work, answer)

        def text_of(model, generation, *, streamed=False):
            return Failing(generation, model.drafting.drafters(generation), streamed=streamed)

        monkeypatch.setattr(runtime.server.completions, "text_of", text_of)

    return fail_with


def test_a_request_that_fails_is_a_500_with_an_id_in_the_log(serve, failing, caplog):
    live = serve()
    failing(ZeroDivisionError("what nobody has foreseen"))
    expected = live.model.complete(PROMPT, max_new_tokens=60).text
    with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.INFO, logger="runtime.server"):
        other = pool.submit(live.complete, prompt=PROMPT, max_tokens=60, temperature=0)
        refused = live.client.post(
            "/v1/completions", json={"prompt": "It", "max_tokens": 50}, headers={"X-Request-Id": "the-one-that-fails"}
        )
        assert other.result().json()["choices"][0]["text"] == expected
    assert refused.status_code == 500
    assert "the-one-that-fails" in refused.json()["error"]["message"]
    assert "ZeroDivision" not in refused.text
    (logged,) = [record for record in caplog.records if record.exc_info]
    assert "the-one-that-fails" in logged.getMessage()
    assert isinstance(logged.exc_info[1], ZeroDivisionError)
    eventually(lambda: is_idle(live))


def test_a_stream_that_fails_ends_with_its_error(serve, failing):
    live = serve()
    failing(ZeroDivisionError("what nobody has foreseen"))
    found = live.complete(prompt="It", max_tokens=50, stream=True, ignore_eos=True)
    events = [json.loads(line.removeprefix("data: ")) for line in found.text.split("\n\n") if line]
    assert len(events) >= 2
    assert events[-1]["error"]["code"] == "internal_error"
    eventually(lambda: is_idle(live))


@pytest.mark.parametrize("stream", [False, True])
def test_out_of_memory_is_a_503_and_the_server_lives(serve, failing, stream):
    live = serve()
    failing(MemoryError("no room"))
    found = live.complete(prompt="It", max_tokens=50, stream=stream)
    if stream:
        assert '"code":"out_of_memory"' in found.text
    else:
        assert (found.status_code, found.headers["retry-after"]) == (503, "5")
    assert live.complete(prompt=PROMPT, max_tokens=2).status_code == 200
    eventually(lambda: is_idle(live))


def test_a_long_prompt_lets_streams_go_on(serve):
    """A megabyte of text takes the tokenizer longer than steps take."""
    live = serve(max_body=2**22)
    times = []

    def read():
        with live.client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
            for _ in response.iter_lines():
                times.append(time.monotonic())

    reader = threading.Thread(target=read)
    reader.start()
    eventually(lambda: len(times) > 10)
    began = time.monotonic()
    with httpx.Client(base_url=live.url, timeout=60) as other:
        refused = other.post("/v1/completions", json={"prompt": "so much text " * 80_000})
    ended = time.monotonic()
    reader.join()
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    during = [moment for moment in times if began < moment < ended]
    assert len(during) > 3
    assert not [pair for pair in pairwise(during) if pair[1] - pair[0] > (ended - began) / 2]


def logged(caplog, count):
    """What is logged of so many requests; a request is logged after its answer has left."""
    found = [record.fields for record in caplog.records if record.getMessage() == "POST /v1/completions"]
    return found if len(found) == count else None


def test_prompts_are_logged_only_if_asked_for(serve, caplog):
    with caplog.at_level(logging.INFO, logger="runtime.server"):
        serve().complete(prompt="a secret", max_tokens=1, user="someone")
        serve(log_prompts=True).complete(prompt="no secret", max_tokens=1)
        first, second = eventually(lambda: logged(caplog, 2))
    assert "prompt" not in first
    assert (first["user"], first["status"], first["completion_tokens"]) == ("someone", 200, 1)
    assert second["prompt"] == "no secret"
