"""What a front and a replica do with one request, and the settings of a cluster, without a cluster."""

import asyncio
import json
from pathlib import Path

import pytest

import runtime
from runtime.server import ServerSettings, create_app

pytest.importorskip("ray", reason="the extra `cluster` is not installed here")

from runtime.cluster import ClusterSettings, application
from runtime.cluster.asgi import answered, read_body
from runtime.cluster.events import DiffersError, Events
from runtime.cluster.requests import Asked
from runtime.cluster.told import Told

ROOT = Path(__file__).parent.parent.parent
ODD = {"model": "m", "prompt": "The old", "max_tokens": 8, "stream": True}


# a stream that is told anew


def event(*choices, **more):
    told = [
        {"index": index, "text": text, "logprobs": None, "finish_reason": reason} for index, text, reason in choices
    ]
    return b"data: " + json.dumps({"id": "a", "created": 1, "choices": told, **more}).encode() + b"\n\n"


def heard(parts):
    """The text of each choice, their ends, the ids, and the last line, as a client reads them."""
    texts, ends, ids, lines = {}, {}, set(), b"".join(parts).split(b"\n\n")[:-1]
    for line in lines:
        if line != b"data: [DONE]":
            content = json.loads(line.removeprefix(b"data: "))
            ids.add((content["id"], content["created"]))
            for choice in content["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
                ends[choice["index"]] = choice["finish_reason"] or ends.get(choice["index"])
    return texts, ends, ids, lines[-1]


WHOLE = [
    event((0, "It was", None), (1, "Once", None)),
    event((0, " a", None)),
    event((1, " upon a time", "stop")),
    event((0, " bright day", "length")),
    event(usage={"total_tokens": 9}),
    b"data: [DONE]\n\n",
]
OTHERWISE_CUT = [
    event((0, "It", None), id="b", created=2),
    event((0, " was a bri", None), (1, "Once upon", None), id="b", created=2),
    event((0, "ght day", "length"), (1, " a time", "stop"), id="b", created=2),
    event(usage={"total_tokens": 9}, id="b", created=2),
    b"data: [DONE]\n\n",
]


@pytest.mark.parametrize("told", range(len(WHOLE)))
@pytest.mark.parametrize("anew", [WHOLE, OTHERWISE_CUT], ids=["cut alike", "cut otherwise"])
def test_a_client_hears_each_text_once(told, anew):
    events = Events()
    parts = [events.lacking(part) for part in WHOLE[:told]]
    events.begin_again()
    parts += [events.lacking(part) for part in anew]
    texts, ends, ids, last = heard(parts)
    assert texts == {0: "It was a bright day", 1: "Once upon a time"}
    assert ends == {0: "length", 1: "stop"}
    assert last == b"data: [DONE]"
    assert len(ids) == 1


def test_a_replica_may_end_in_the_middle_of_an_event():
    events = Events()
    first = events.lacking(WHOLE[0] + WHOLE[1][:20])
    assert first == WHOLE[0]
    events.begin_again()
    texts, *_ = heard([first, *(events.lacking(part) for part in WHOLE)])
    assert texts == {0: "It was a bright day", 1: "Once upon a time"}


def test_replicas_may_end_one_after_the_other():
    events, parts = Events(), []
    for told in (2, 3, 6):
        parts += [events.lacking(part) for part in WHOLE[:told]]
        events.begin_again()
    assert heard(parts)[0] == {0: "It was a bright day", 1: "Once upon a time"}


@pytest.mark.parametrize(
    "other",
    [
        event((0, "It is", None)),
        event((0, "It was no", None)),
        event((1, "Once upon a time in", None)),
    ],
    ids=["another text", "another end", "more than the whole"],
)
def test_another_text_is_not_passed_for_the_rest(other):
    events = Events()
    for part in WHOLE[:3]:
        events.lacking(part)
    events.begin_again()
    with pytest.raises(DiffersError):
        events.lacking(other)


def test_log_probabilities_are_those_of_the_tokens_that_were_not_told():
    def with_logprobs(text, tokens, offsets):
        told = {"tokens": tokens, "token_logprobs": offsets, "top_logprobs": None, "text_offset": offsets}
        choice = {"index": 0, "text": text, "logprobs": told, "finish_reason": None}
        return b"data: " + json.dumps({"id": "a", "choices": [choice]}).encode() + b"\n\n"

    events = Events()
    events.lacking(with_logprobs("It was", ["It", " was"], [0, 2]))
    events.begin_again()
    lacking = events.lacking(with_logprobs("It was a", ["It", " was", " a"], [0, 2, 6]))
    (choice,) = json.loads(lacking.removeprefix(b"data: "))["choices"]
    assert (choice["text"], choice["logprobs"]["tokens"]) == (" a", [" a"])
    assert choice["logprobs"]["text_offset"] == choice["logprobs"]["token_logprobs"] == [6]
    assert choice["logprobs"]["top_logprobs"] is None


# what is read of a request


@pytest.mark.parametrize(
    ("request_", "repeatable"),
    [
        ({**ODD, "temperature": 0}, True),
        ({**ODD, "seed": 3}, True),
        (ODD, True),
        ({**ODD, "prompt": [1, 2, 3]}, True),
        ({**ODD, "prompt": ["a", "b"]}, False),
        ({**ODD, "seed": None}, False),
        ({**ODD, "stream": False}, False),
    ],
)
def test_a_stream_gets_a_seed_where_it_can_be_told_anew(request_, repeatable):
    body = json.dumps(request_).encode()
    asked = Asked(body)
    assert asked.repeatable is repeatable
    content = json.loads(asked.body)
    assert {name: value for name, value in content.items() if name != "seed"} == {
        name: value for name, value in request_.items() if name != "seed"
    }
    if request_ in (ODD, {**ODD, "prompt": [1, 2, 3]}):
        assert isinstance(content["seed"], int)
        assert Asked(body).body != asked.body
    else:
        assert asked.body == body


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b"[1]", b'"x"', b"\xff", b'{"prompt": 3}', b'{"prompt": []}']
)
def test_what_is_no_request_is_passed_on_as_it_came(body):
    asked = Asked(body)
    assert asked.body == body
    assert asked.beginning(100) is None


def test_requests_go_together_by_the_beginning_of_their_first_prompt():
    def beginning(prompt, most=8):
        return Asked(json.dumps({"prompt": prompt}).encode()).beginning(most)

    assert beginning("The old house") == beginning("The old man") == beginning(["The old hat", "x"])
    assert beginning("The old house") != beginning("The new house")
    assert beginning([1, 2, 3]) == beginning([1, 2, 4]) == beginning([[1, 2, 5], [7]])
    assert beginning([1, 2, 3]) != beginning([1, 3, 3])
    assert beginning("The old house", 0) is None
    assert beginning("\udc80 alone") is not None


# ASGI, from process to process


def test_an_answer_crosses_whole_and_a_caller_that_leaves_is_a_client_that_has_left(bundle):
    app = create_app(runtime.load(bundle, device="cpu", threads=1, slots=2), ServerSettings(served_name="m"))
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b""}
    scope |= {"headers": [(b"content-type", b"application/json")]}
    service = app.state.service

    async def run():
        body = json.dumps({**ODD, "temperature": 0, "stream": False}).encode()
        start, whole = [message async for message in answered(app, dict(scope), body)]
        assert start["status"] == 200
        assert json.loads(whole["body"])["usage"]["completion_tokens"] == 8
        long = json.dumps({**ODD, "max_tokens": 250, "ignore_eos": True, "n": 8}).encode()
        messages = answered(app, dict(scope), long)
        await anext(messages)
        await anext(messages)
        assert service.admission.under_way == 8
        await messages.aclose()
        assert service.admission.under_way == 0

    asyncio.run(run())


def test_of_a_body_that_is_too_long_no_more_is_read_than_shows_it():
    given = iter([{"type": "http.request", "body": b"x" * 60, "more_body": True}] * 3)

    async def receive():
        return next(given)

    assert asyncio.run(read_body(receive, 100)) == b"x" * 101
    assert len(list(given)) == 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_refusal_is_openais_before_a_stream_and_its_last_event_in_it(begun):
    sent = []

    async def run():
        async def send(message):
            sent.append(message)

        told = Told(send)
        if begun:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await told({"type": "http.response.start", "status": 200, "headers": headers})
            await told({"type": "http.response.body", "body": WHOLE[0], "more_body": True})
        await told.refuse(503, "gone")

    asyncio.run(run())
    *_, start, last = sent
    error = json.loads(last["body"].removeprefix(b"data: "))["error"]
    assert (error["message"], error["type"]) == ("gone", "server_error")
    assert not last.get("more_body", False)
    if not begun:
        assert (start["status"], dict(start["headers"])[b"retry-after"]) == (503, b"1")


def test_a_replica_that_refuses_what_another_began_is_not_heard():
    sent = []

    async def send(message):
        sent.append(message)

    async def run():
        told = Told(send)
        await told({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await told({"type": "http.response.body", "body": WHOLE[0], "more_body": True})
        told.begin_again()
        refused = {"type": "http.response.start", "status": 429, "headers": [(b"content-type", b"application/json")]}
        with pytest.raises(DiffersError):
            await told(refused)
        told.begin_again()
        for message in (
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]},
            *({"type": "http.response.body", "body": part, "more_body": True} for part in WHOLE),
        ):
            await told(message)

    asyncio.run(run())
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert heard([message.get("body", b"") for message in sent])[0] == {0: "It was a bright day", 1: "Once upon a time"}


# settings


def test_options_side_by_side_are_sorted():
    settings = ClusterSettings.of(model="m", replicas="1:8", cpus=2, slots=4, precision="int8", max_queue=3, timeout=9)
    assert settings.replicas == (1, 8)
    assert settings.load() == {"slots": 4, "threads": 2, "precision": "int8"}
    assert settings.server() == ServerSettings(max_queue=3, timeout=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replica": 2}, "there is no option 'replica' of a cluster; there are"),
        ({"model": ""}, "model must name a bundle's folder, got ''"),
        ({"model": "m", "replicas": [3, 2]}, "replicas must be an integer from 3 to 10,000, got 2"),
        ({"model": "m", "replicas": [1, 2, 3]}, "replicas must be a number, or two such as 1:8, got [1, 2, 3]"),
        ({"model": "m", "replicas": None}, "replicas must be a number, or two such as 1:8, got None"),
        ({"model": "m", "slots": 1.5}, "slots must be an integer from 1 to 4,096, got 1.5"),
        ({"model": "m", "gpus": True}, "gpus must be a number from 0 to 64, got True"),
        ({"model": "m", "fronts": 0}, "fronts must be an integer from 1 to 1,000, got 0"),
        ({"model": "m", "surge": 101}, "surge must be an integer from 0 to 100, got 101"),
        ({"model": "m", "max_queue": -1}, "max_queue must be an integer of at least 0 and at most 100,000, got -1"),
    ],
)
def test_an_option_that_is_wrong_is_named(options, message):
    with pytest.raises(ValueError) as told:  # noqa: PT011  (its message is compared below)
        ClusterSettings.of(**options)
    assert str(told.value).startswith(message)


def replicas_of(options):
    """Ray's own description of the replicas' deployment."""
    from ray.serve._private.build_app import build_app

    built = build_app(application(options), name="x", default_runtime_env={})
    return next(each for each in built.deployments if each.name == "replicas")


def test_a_number_of_replicas_a_range_and_cards():
    fixed = replicas_of({"model": "m", "replicas": 3, "slots": 5, "max_queue": 7, "gpus": 0.5, "cpus": 2})
    assert (fixed.num_replicas, fixed.max_ongoing_requests, fixed.max_queued_requests) == (3, 5, 7)
    assert (fixed.ray_actor_options["num_gpus"], fixed.ray_actor_options["num_cpus"]) == (0.5, 2)
    scaled = replicas_of({"model": "m", "replicas": [1, 4], "slots": 5})._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (1, 4, 5)


def test_a_replica_is_passed_by_from_a_quarter_of_its_slots_on():
    from types import SimpleNamespace

    from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

    from runtime.cluster.router import BeginningsRouter

    replicas = [SimpleNamespace(replica_id=name) for name in "abc"]

    class Router(BeginningsRouter):
        replica_queue_len_cache = {"a": 8, "b": 7}  # noqa: RUF012  (read only); nothing is known of c

        def __init__(self):
            self._soon = 8

    async def ring(*_):
        return [[each] for each in replicas]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConsistentHashRouter, "choose_replicas", ring)
        asked = asyncio.run(Router().choose_replicas(replicas))
    assert [[each.replica_id for each in rank] for rank in asked] == [["b"], ["c"], ["a", "b", "c"]]


@pytest.mark.parametrize(("prefix", "router"), [(256, "BeginningsRouter"), (0, "PowerOfTwoChoicesRequestRouter")])
def test_the_router_is_the_one_that_was_asked_for(prefix, router):
    config = replicas_of({"model": "m", "prefix": prefix, "slots": 10})._deployment_config.request_router_config
    assert config.get_request_router_class().__name__ == router
    assert config.request_router_kwargs == ({"soon": 2} if prefix else {})


def test_serves_schema_reads_the_example_and_its_application_is_one():
    import yaml
    from ray.serve.schema import ServeDeploySchema

    text = (ROOT / "examples" / "deploy" / "serve.yaml").read_text(encoding="utf-8")
    (app,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    assert app.import_path == "runtime.cluster:application"
    found = replicas_of(app.args)
    assert found.init_args[0] == "/models/gpt2"
    assert found._deployment_config.autoscaling_config.max_replicas == 8
