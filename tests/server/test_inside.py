"""`POST /inside` and `GET /`: the pages for people, what they are made of, and the limits they keep to."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import runtime.server.inside
from runtime.inside.page import make_page
from runtime.server.embeddings import vector

PROMPT = "It was a bright cold day"


def eventually(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def look_inside(live, prompt=PROMPT, **body):
    return live.client.post("/inside", json={"prompt": prompt, **body})


@pytest.fixture
def slow(monkeypatch):
    """Let looks take as long as a test wants, and count how many there are at once and in all."""

    class Looks:
        def __init__(self):
            self.now = self.most = self.ended = 0
            self.may_end = threading.Event()

        def look(self, *_):
            self.now += 1
            self.most = max(self.most, self.now)
            self.may_end.wait(10)
            time.sleep(0.05)
            self.now -= 1
            self.ended += 1
            return "a page"

    looks = Looks()
    monkeypatch.setattr(runtime.server.inside, "look", looks.look)
    monkeypatch.setattr(runtime.server.embeddings, "vector", lambda *given: (looks.look(), vector(*given))[1])
    yield looks
    looks.may_end.set()


@pytest.mark.parametrize("form", ["text", "ids"])
def test_it_is_the_page_of_the_text(server, form):
    answer = look_inside(server, PROMPT if form == "text" else server.model.encode(PROMPT))
    expected = make_page(server.model.inspect(PROMPT), server.model.lens(PROMPT), model="novelist")
    assert answer.text == expected
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_it_has_256_tokens_at_most(server):
    assert look_inside(server, [5] * 256).status_code == 200
    refused = look_inside(server, [5] * 257)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    assert refused.json()["error"]["message"] == "prompt must be at most 256 tokens to look inside, got 257"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": 5}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": ["a", "b"]}, 400, "prompt"),
        ({"prompt": [10**6]}, 400, "prompt"),
        ({"prompt": "\ud800"}, 400, "prompt"),
        ({"prompt": "a", "layers": 1}, 400, "layers"),
        ({"prompt": "a", "model": "another"}, 404, "model"),
    ],
)
def test_what_it_cannot_look_into_is_refused(server, body, status, param):
    headers = {"Content-Type": "application/json"}
    refused = server.client.post("/inside", content=json.dumps(body), headers=headers)
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)


def test_looks_and_embeddings_run_one_at_a_time(serve, slow):
    live = serve()
    slow.may_end.set()
    with ThreadPoolExecutor(4) as pool:
        looks = [pool.submit(look_inside, live) for _ in range(3)]
        other = pool.submit(live.client.post, "/v1/embeddings", json={"input": [PROMPT, "It"]})
        assert [each.result().text for each in looks] == ["a page"] * 3
        assert other.result().status_code == 200
    assert (slow.most, slow.ended) == (1, 5)


def test_one_whose_client_leaves_ends_before_the_next_begins(serve, slow):
    live = serve()
    with pytest.raises(httpx.ReadTimeout):
        live.client.post("/inside", json={"prompt": PROMPT}, timeout=0.2)
    eventually(lambda: live.app.state.service.admission.under_way == 0)
    assert slow.now == 1
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(look_inside, live)
        eventually(lambda: live.app.state.service.admission.under_way == 1)
        slow.may_end.set()
        assert following.result().text == "a page"
    assert (slow.most, slow.ended) == (1, 2)


def test_one_that_waits_and_leaves_never_runs(serve, slow):
    live = serve()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(look_inside, live)
        eventually(lambda: slow.now == 1)
        with pytest.raises(httpx.ReadTimeout):
            live.client.post("/inside", json={"prompt": PROMPT}, timeout=0.2)
        eventually(lambda: live.app.state.service.admission.under_way == 1)
        slow.may_end.set()
        assert first.result().text == "a page"
    assert look_inside(live).text == "a page"
    assert slow.ended == 2


def test_it_counts_among_the_texts_that_run_or_wait(serve, slow):
    live = serve(slots=1, max_queue=0)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(look_inside, live)
        eventually(lambda: slow.now == 1)
        refused = look_inside(live)
        slow.may_end.set()
        assert first.result().status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")


@pytest.mark.usefixtures("slow")
def test_time_runs_out(serve):
    refused = look_inside(serve(timeout=0.2))
    assert (refused.status_code, refused.json()["error"]["code"]) == (504, "timeout")


def test_texts_stream_on_meanwhile(serve, slow):
    live = serve()
    expected = live.model.complete(PROMPT, max_new_tokens=20).text
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look_inside, live)
        eventually(lambda: slow.now == 1)
        assert live.complete(prompt=PROMPT, max_tokens=20, temperature=0).json()["choices"][0]["text"] == expected
        slow.may_end.set()
        looking.result()


def test_the_page_needs_no_key_and_looking_inside_does(serve, monkeypatch):
    monkeypatch.setenv("INSIDE_KEYS", "correct-horse")
    live = serve(api_key_env="INSIDE_KEYS")
    page = live.client.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "correct-horse" not in page.text
    assert look_inside(live).status_code == 401
    live.client.headers["Authorization"] = "Bearer correct-horse"
    assert look_inside(live).status_code == 200


def test_both_pages_are_in_the_openapi_document(server):
    paths = server.client.get("/openapi.json").json()["paths"]
    for path, method in (("/", "get"), ("/inside", "post")):
        assert list(paths[path][method]["responses"]["200"]["content"]) == ["text/html"]
    (body,) = paths["/inside"]["post"]["requestBody"]["content"].values()
    assert body["schema"]["$ref"].endswith("/InsideBody")
    assert {"400", "401", "404", "413", "415", "429", "500", "503", "504"} <= set(paths["/inside"]["post"]["responses"])


def test_other_sites_cannot_frame_the_page(server):
    policy = server.client.get("/").headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'none'" in policy
