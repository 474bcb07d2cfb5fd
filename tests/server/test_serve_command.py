"""`serve` as a process: its address, its signals, its keys, and one clear line for what keeps it from serving."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent.parent
LONG = {"prompt": "It was a bright cold day", "max_tokens": 400, "ignore_eos": True, "stream": True}
HUGE = LONG | {"prompt": [LONG["prompt"]] * 4, "n": 16, "logprobs": 20}  # more than the sockets between hold
LEAVING = 10  # seconds for a process to end, which takes less than one; several on a machine that is busy
KEY, OTHER = "a-key-of-a-client", "a-key-of-another"


def refused(bundle, *arguments, command=None, **environment) -> tuple[int, str]:
    """(exit code, standard error) of a server that does not come to serve."""
    told = command or [sys.executable, "-m", "runtime", "serve", "--model", bundle, "--device", "cpu", "--port", 0]
    given = {name: value for name, value in os.environ.items() if not name.startswith("GPT2_ONNX_")}
    done = subprocess.run(
        [str(part) for part in (*told, *arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=given | environment,
        check=False,
    )
    return done.returncode, done.stderr


def last(lines: str) -> str:
    return lines.splitlines()[-1]


def test_its_address_is_in_the_log_and_answers_a_curl(start):
    server = start("--served-name", "novelist")
    body = json.dumps({"model": "novelist", "prompt": "It was", "max_tokens": 4})
    command = ["curl", "--silent", "--fail", f"{server.url}/v1/completions", "--json", body]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 4
    assert "serving novelist at http://127.0.0.1:" in server.logged("with 32 slots, without API keys")
    assert "warning" not in server.log.read_text()


def test_its_log_as_json(start):
    server = start("--log-format", "json")
    httpx.post(f"{server.url}/v1/completions", json={"prompt": "It", "max_tokens": 2}, headers={"X-Request-Id": "mine"})
    server.logged("POST /v1/completions")
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert {"time", "level", "message"} <= set.intersection(*map(set, lines))
    (line,) = [each for each in lines if each["message"] == "POST /v1/completions"]
    assert (line["id"], line["status"], line["completion_tokens"]) == ("mine", 200, 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_stream_end_and_takes_no_more(start, number):
    server = start()
    with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(number)
        server.logged(f"{number.name}: no new requests; 1 texts under way may end")
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert server.ends() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/healthz")
    assert "Traceback" not in server.log.read_text()


def begun(server, body) -> socket.socket:
    """A connection whose stream has begun, and of which nothing more is read."""
    host, port = server.url.removeprefix("http://").split(":")
    sent = json.dumps(body).encode()
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
    assert connection.recv(20).startswith(b"HTTP/1.1 200")
    return connection


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stream_that_takes_longer_than_its_grace_ends_with_an_error(start, number):
    server = start("--grace", 1, "--slots", 1)
    with httpx.stream("POST", f"{server.url}/v1/completions", json=HUGE, timeout=30) as response:
        lines = filter(None, response.iter_lines())
        assert "choices" in json.loads(next(lines).removeprefix("data: "))
        began = time.monotonic()
        server.process.send_signal(number)
        *_, last = lines
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert server.ends() == 0
    assert 1 <= time.monotonic() - began < 1 + LEAVING
    assert "Traceback" not in server.log.read_text()
    assert '"error"' in server.logged("finish_reasons=")


def test_who_does_not_read_its_stream_is_cut_off(start):
    server = start("--grace", 1)
    with begun(server, HUGE):
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.ends() == 0
    assert time.monotonic() - began < 1 + 2
    assert "Traceback" not in server.log.read_text()


def test_a_whole_answer_that_takes_longer_is_a_503(start):
    server = start("--grace", 0)
    body = LONG | {"prompt": [LONG["prompt"]] * 6, "n": 16, "stream": False}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=30)
        while "gpt2_onnx_running 32.0" not in httpx.get(f"{server.url}/metrics").text:
            assert not answer.done()
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.ends() == 0
        assert time.monotonic() - began < 2
        assert (answer.result().status_code, answer.result().json()["error"]["code"]) == (503, "shutting_down")
    assert "Traceback" not in server.log.read_text()


def test_a_second_sigint_ends_it_at_once(start):
    server = start("--grace", 60)
    with begun(server, HUGE):
        server.process.send_signal(signal.SIGINT)
        server.logged("SIGINT: no new requests")
        server.process.send_signal(signal.SIGINT)
        assert server.ends() == 0


LOADS_FOR_LONG = """
import sys, time
from runtime.cli.main import main
from runtime.server import loading

def load(*_, **__):
    print("loading", file=sys.stderr, flush=True)
    time.sleep(60)

loading.load = load
main()
"""


def test_sigterm_while_the_model_is_loaded_ends_it_with_0():
    with subprocess.Popen([sys.executable, "-c", LOADS_FOR_LONG, "serve"], stderr=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stderr.readline() == b"loading\n"
            process.send_signal(signal.SIGHUP)
            time.sleep(0.2)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert process.stderr.read() == b""
        finally:
            process.kill()


def test_connections_are_refused_while_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", LOADS_FOR_LONG, "serve", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stderr.readline() == b"loading\n"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=5)
        finally:
            process.kill()


def asked(server, key) -> int:
    return httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code


def test_sighup_reads_the_keys_again_and_a_broken_file_leaves_them(start, tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# clients\n{KEY}\n")
    server = start("--api-key-file", file)
    assert "without API keys" not in server.log.read_text()
    assert (asked(server, KEY), asked(server, OTHER)) == (200, 401)
    file.write_text(f"{OTHER}\n{OTHER}2\n")
    assert (asked(server, KEY), asked(server, OTHER)) == (200, 401)
    server.process.send_signal(signal.SIGHUP)
    server.logged("SIGHUP: 2 API keys")
    assert (asked(server, KEY), asked(server, OTHER)) == (401, 200)
    for broken, told in (("short\n", "at least 8"), ("", "at least one API key"), (None, "No such file")):
        file.unlink() if broken is None else file.write_text(broken)
        server.process.send_signal(signal.SIGHUP)
        line = server.logged(told)
        assert "SIGHUP: the API keys stay as they were: " in line
        assert (asked(server, KEY), asked(server, OTHER)) == (401, 200)
    assert len([line for line in server.log.read_text().splitlines() if "stay as they were" in line]) == 3
    assert KEY not in server.log.read_text()
    assert server.process.poll() is None


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "msgspec", "prometheus_client"])
def test_without_its_extra_one_line_says_what_to_install(bundle, tmp_path, missing):
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('none', name={missing!r})")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code, told = refused(bundle, PYTHONPATH=path)
    needed = "serving needs the extra `serve`: pip install 'gpt2-onnx[serve]'"
    assert (code, told) == (1, f"gpt2-onnx: {needed} ({missing} is missing)\n")


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, told = refused("no bundle, so that the port is looked at before", "--port", port)
    in_use = "it is in use; end what listens there, or take another port (0 is any that is free)"
    assert (code, told) == (1, f"gpt2-onnx: cannot listen at port {port} of 127.0.0.1: {in_use}\n")


@pytest.mark.parametrize("host", ["192.0.2.7", "no-such-host.invalid", "2001:db8::7"])
def test_a_host_that_is_not_this_machine(bundle, host):
    code, told = refused(bundle, "--host", host)
    assert code == 1
    assert last(told).startswith(f"gpt2-onnx: cannot listen at port 0 of {host}: ")
    assert "take 127.0.0.1" in last(told) or "not supported" in last(told)
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "65536"], "port must be an integer of at least 0 and at most 65,535, got 65536"),
        (["--port", "http"], "argument --port: invalid int value: 'http'"),
        (["--grace", "-1"], "grace must be a number of seconds from 0 to 86,400, got -1"),
        (["--host", ""], "host must be a name or an address, got ''"),
        (["--served-name", ""], "served_name must be a name, got ''"),
        (["--api-key-file", ""], "api_key_file must be a name, got ''"),
        (["--grace", "nan"], "grace must be a number of seconds from 0 to 86,400, got nan"),
        (["--max-queue", "-1"], "max_queue must be an integer of at least 0 and at most 100,000, got -1"),
        (["--max-body", "10"], "max_body must be"),
        (["--timeout", "0"], "timeout must be"),
        (["--slots", "0"], "slots must be"),
        (["--threads", "0"], "threads must be"),
        (["--log-format", "xml"], "argument --log-format: invalid choice: 'xml'"),
        (["--api-key-env", "NO_SUCH"], "the variable NO_SUCH must hold at least one API key, got none"),
        (["--api-key-file", "/no/such/file"], "/no/such/file: No such file or directory"),
        (["--precision", "fp8"], "precision must be"),
        (["--model", "/no/such/bundle"], "/no/such/bundle"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_bad_flag_is_one_line(bundle, arguments, told):
    code, error = refused(bundle, *arguments)
    assert code in (1, 2)
    assert told in last(error)
    assert error.count("gpt2-onnx") == 1 or "(see" in error
    assert "Traceback" not in error


def test_variables_are_heard_and_flags_go_first(start, bundle, tmp_path):
    """A key file that a container names by a variable must not be passed over."""
    file = tmp_path / "keys"
    file.write_text(KEY)
    variables = {"GPT2_ONNX_API_KEY_FILE": str(file), "GPT2_ONNX_SLOTS": "3", "GPT2_ONNX_SERVED_NAME": "by-variable"}
    server = start("--served-name", "by-flag", **variables, GPT2_ONNX_MAX_N="2")
    assert "serving by-flag at" in server.logged("with 3 slots")
    assert (asked(server, KEY), asked(server, OTHER)) == (200, 401)
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "It", "n": 3}, headers=headers)
    assert answer.json()["error"]["message"] == "n must be at most 2 on this server, got 3"
    code, told = refused(bundle, GPT2_ONNX_MAX_N="many")
    assert (code, last(told)) == (2, "gpt2-onnx: GPT2_ONNX_MAX_N must be an integer, got 'many'")
    code, told = refused(
        bundle, "--device", "cpu", command=[sys.executable, "-m", "runtime", "serve"], GPT2_ONNX_SLOTS="x"
    )
    assert (code, last(told)) == (2, "gpt2-onnx: GPT2_ONNX_SLOTS must be an integer, got 'x'")


FACTORY = (sys.executable, "-m", "uvicorn", "--factory", "runtime.server:create_app", "--port", "0")


def test_the_factory_hears_variables(start, bundle):
    variables = {"MODEL": str(bundle), "DEVICE": "cpu", "SLOTS": "2", "MAX_PROMPTS": "1", "SERVED_NAME": "mine"}
    server = start(command=FACTORY, **{f"GPT2_ONNX_{name}": value for name, value in variables.items()})
    assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"] == "mine"
    assert "gpt2_onnx_slots 2.0" in httpx.get(f"{server.url}/metrics").text
    assert httpx.post(f"{server.url}/v1/completions", json={"prompt": ["a", "b"]}).status_code == 400
    server.process.send_signal(signal.SIGTERM)
    assert server.ends() in (0, -signal.SIGTERM)  # uvicorn's own server gives itself the signal again


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"MAX_QUEUE": "many"}, "GPT2_ONNX_MAX_QUEUE must be an integer, got 'many'"),
        ({"TIMEOUT": "soon"}, "GPT2_ONNX_TIMEOUT must be a number, got 'soon'"),
        ({"LOG_PROMPTS": "perhaps"}, "GPT2_ONNX_LOG_PROMPTS must be 1 or 0, got 'perhaps'"),
        ({"MAX_N": "1000"}, "max_n must be an integer of at least 1 and at most 128, got 1000"),
        ({"SLOTS": "few"}, "GPT2_ONNX_SLOTS must be an integer, got 'few'"),
        ({"API_KEY_ENV": "NO_SUCH"}, "the variable NO_SUCH must hold at least one API key, got none"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_the_factory_refuses_a_bad_variable_by_its_name(bundle, variables, told):
    given = {f"GPT2_ONNX_{name}": value for name, value in variables.items()}
    code, error = refused(bundle, command=FACTORY, GPT2_ONNX_MODEL=str(bundle), GPT2_ONNX_DEVICE="cpu", **given)
    assert code
    assert last(error).endswith(told)


def test_beyond_this_machine_without_keys_is_a_warning(start):
    server = start("--host", "0.0.0.0")
    line = server.logged("warning")
    assert re.search(r"whoever reaches 0\.0\.0\.0:\d+ may use the server, as it has no API keys", line)
    keyed = start("--host", "0.0.0.0", "--api-key-env", "CLIENTS", CLIENTS=f"{KEY},{OTHER}")
    assert (asked(keyed, KEY), asked(keyed, OTHER), asked(keyed, KEY[:-1])) == (200, 200, 401)
    assert "warning" not in keyed.log.read_text()
