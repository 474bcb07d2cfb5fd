"""`serve --cluster` on a cluster of this machine: the server's own answers, whatever becomes of a replica."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

import runtime

pytest.importorskip("ray", reason="the extra `cluster` is not installed here")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
NAMES = ("Anna", "Peter", "Mary", "John", "Emma", "Elizabeth", "Charles", "Jane", "Philip", "Estella", "Joe", "Pip")
PROMPTS = [f"{name} had never seen the house" for name in NAMES]
TOKENS = 24


def body(prompt, **options):
    return {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, **options}


def connect(cluster):
    return openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none")  # with its default retries


@pytest.fixture(scope="module")
def expected(bundle):
    """What one model says of each prompt."""
    model = runtime.load(bundle, device="cpu", threads=1)
    return {prompt: model.complete(prompt, max_new_tokens=TOKENS).text for prompt in PROMPTS}


def test_two_replicas_share_a_load_and_answer_as_one_server(client, expected):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: client.post("/v1/completions", json=body(prompt)), PROMPTS))
    assert [answer.json()["choices"][0]["text"] for answer in answers] == [expected[prompt] for prompt in PROMPTS]
    assert len({answer.headers["x-replica"] for answer in answers}) == 2


def test_prompts_that_begin_alike_go_to_one_replica_which_has_read_that_beginning(client):
    beginning = "The old house stood at the end of the lane, and nobody had lived in it for a great many years. " * 3
    answers = [client.post("/v1/completions", json=body(beginning + name)) for name in NAMES]
    assert len({answer.headers["x-replica"] for answer in answers}) == 1
    cached = [answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert min(cached[1:]) > 40


def test_a_replica_with_texts_enough_passes_the_next_on(client):
    """One has slots for all four of these, which begin alike and come one after the other; yet the other takes some."""
    wanted = body("Alike in each request, " * 10, max_tokens=400, ignore_eos=True)
    asked = []
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            asked.append(pool.submit(client.post, "/v1/completions", json=wanted))
            time.sleep(0.1)  # the front has passed it on by then, and it runs still
    answers = [each.result() for each in asked]
    assert len({answer.headers["x-replica"] for answer in answers}) == 2
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/models", 200), ("GET", "/nowhere", 404), ("GET", "/v1/completions", 405), ("GET", "/", 200)],
)
def test_routes_are_the_servers_own(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert "x-request-id" in answer.headers


def test_what_is_wrong_is_told_as_the_server_tells_it(client):
    assert client.post("/v1/completions", json=body("x", top_p=2)).json()["error"]["param"] == "top_p"
    long = client.post("/v1/completions", content=b" " * (2**20 + 1), headers={"content-type": "application/json"})
    assert (long.status_code, long.json()["error"]["code"]) == (413, "body_too_large")


def test_a_stream_comes_event_by_event(cluster, expected):
    parts = list(connect(cluster).completions.create(model=None, stream=True, **body(PROMPTS[0])))
    assert len(parts) > TOKENS // 2
    assert "".join(part.choices[0].text for part in parts) == expected[PROMPTS[0]]


def metrics(client, name):
    """A metric of each replica, by the replica's name; several askings, as each goes to any of them."""
    found = {}
    for _ in range(12):
        answer = client.get("/metrics")
        lines = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
        found[answer.headers["x-replica"]] = float(lines[name])
    return found


def test_a_client_that_leaves_frees_its_slots_in_the_replica(cluster, client):
    before = sum(metrics(client, "gpt2_onnx_generated_tokens_total").values())
    wanted = body("It was", max_tokens=240, ignore_eos=True, stream=True, n=16)
    with client.stream("POST", "/v1/completions", json=wanted) as answer:
        lines = answer.iter_lines()  # kept: the stream ends with it
        next(lines)
        assert max(metrics(client, "gpt2_onnx_running").values()) == 4
    cluster.wait_for(lambda: max(metrics(client, "gpt2_onnx_running").values()) == 0, 10)
    made = sum(metrics(client, "gpt2_onnx_generated_tokens_total").values()) - before
    assert 0 < made < 16 * 240 / 2


class Load:
    """Callers that ask one prompt after the other until they are told to end."""

    def __init__(self, cluster, callers):
        self._client, self._ended, self.texts, self.errors = connect(cluster), threading.Event(), [], []
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(callers)]

    def _ask(self, number):
        asked = number
        while not self._ended.is_set():
            prompt = PROMPTS[asked % len(PROMPTS)]
            asked += 1
            try:
                if number % 2:
                    answer = self._client.completions.create(model=None, **body(prompt))
                    self.texts.append((prompt, answer.choices[0].text, answer.model))
                else:
                    parts = list(self._client.completions.create(model=None, stream=True, **body(prompt)))
                    self.texts.append((prompt, "".join(part.choices[0].text for part in parts), parts[-1].model))
            except Exception as error:
                self.errors.append(repr(error))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join(120)


def test_a_replica_that_is_killed_under_load_fails_no_request(cluster, expected):
    cluster.wait_for(lambda: len(cluster.replicas()) == 2)
    before = cluster.replicas()
    with Load(cluster, 6) as load:
        cluster.wait_for(lambda: len(load.texts) > 20)
        os.kill(before[0], signal.SIGKILL)
        told = len(load.texts)
        cluster.wait_for(lambda: len(load.texts) > told + 20)
        cluster.wait_for(lambda: len(set(cluster.replicas()) - {before[0]}) == 2)
    assert load.errors == []
    assert {(prompt, text) for prompt, text, _ in load.texts} <= set(expected.items())


def test_a_new_model_is_rolled_out_without_a_failed_request(started, bundle, tmp_path, expected):
    for name in ("first", "second"):
        shutil.copytree(bundle, tmp_path / name)
    link = tmp_path / "current"
    link.symlink_to("first")
    cluster = started(link, "--replicas", 2, "--slots", 4)
    with Load(cluster, 4) as load:
        cluster.wait_for(lambda: len(load.texts) > 10)
        (tmp_path / "next").symlink_to("second")
        (tmp_path / "next").rename(link)
        cluster.signal(signal.SIGHUP)
        cluster.wait_for(lambda: "all replicas are new" in cluster.log.read_text(), 120)
        told = len(load.texts)
        cluster.wait_for(lambda: len(load.texts) > told + 20)
    assert load.errors == []
    assert {(prompt, text) for prompt, text, _ in load.texts} <= set(expected.items())
    assert load.texts[0][2] == "first"
    assert {model for *_, model in load.texts[told + 8 :]} == {"second"}


@pytest.mark.wide
def test_a_replica_more_is_made_where_slots_do_not_suffice(started, bundle, expected):
    cluster = started(bundle, "--replicas", "1:2", "--slots", 2)
    with Load(cluster, 8) as load:
        cluster.wait_for(lambda: len(cluster.replicas()) == 2, 90)
    assert load.errors == []
    assert {(prompt, text) for prompt, text, _ in load.texts} <= set(expected.items())


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "serve", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "2"], "--replicas is for --cluster, which is not given"),
        (["--cluster", "--replicas", "two"], "replicas must be a number, or two such as 1:8, got 'two'"),
        (["--cluster", "--replicas", "4:2"], "replicas must be an integer from 4 to 10,000, got 2"),
        (["--cluster", "--replicas", "0"], "replicas must be an integer from 1 to 10,000, got 0"),
        (["--cluster", "--cpus", "-1"], "cpus must be a number from 0 to 1,024, got -1.0"),
        (["--cluster", "--port", "0"], "port must be an integer of at least 1 and at most 65,535, got 0"),
        (["--cluster", "--max-queue", "-1"], "max_queue must be an integer of at least 0 and at most 100,000, got -1"),
    ],
)
def test_a_wrong_option_is_one_line(bundle, arguments, message):
    code, said = command("--model", bundle, *arguments)
    assert (code, said) == (2, f"gpt2-onnx: {message}\n")


def test_a_bundle_that_is_not_there_is_one_line(tmp_path):
    code, said = command("--cluster", "--model", tmp_path / "nothing", "--port", 8765)
    assert code == 1
    assert said.count("\n") == 1
    assert "nothing" in said


def test_without_ray_the_command_says_what_to_install(bundle):
    script = "import sys; sys.modules['ray'] = None; from runtime.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "serve", "--cluster", "--model", bundle],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gpt2-onnx: a cluster needs the extra `cluster`: pip install 'gpt2-onnx[cluster]'")
    assert done.stderr.count("\n") == 1
