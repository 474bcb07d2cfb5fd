"""The server opens one listener, where it was told to, and asks no network for anything else."""

import json
import signal
import subprocess
import sys
import urllib.request

NOTED = """
import json, sys

NOTED = {"bind", "connect", "sendto", "sendmsg", "getaddrinfo", "gethostbyname", "gethostbyaddr", "getnameinfo"}

def note(event, arguments):
    place, _, name = event.partition(".")
    if place == "socket" and name in NOTED:
        told = [str(each) for each in arguments if isinstance(each, (str, tuple))]
        print("socket", json.dumps([event, told]), flush=True)

sys.addaudithook(note)
from runtime.cli.main import main
main()
"""


def test_it_listens_and_never_connects(bundle, tmp_path):
    command = [sys.executable, "-c", NOTED, "serve", "--model", str(bundle), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            url = next(line.rpartition(" at ")[2].split()[0] for line in process.stderr if " at http://" in line)
            body = json.dumps({"prompt": "It was", "max_tokens": 3}).encode()
            request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            for path in ("healthz", "metrics", "openapi.json", ""):
                opener.open(f"{url}/{path}", timeout=60).read()
            with opener.open(request, timeout=60) as response:
                assert json.load(response)["usage"]["completion_tokens"] == 3
        finally:
            process.send_signal(signal.SIGINT)
            process.stderr.read()
            told = process.stdout.read()
            process.wait(60)
    events = [json.loads(line.removeprefix("socket ")) for line in told.splitlines() if line.startswith("socket ")]
    assert [name for name, _ in events if name != "socket.getaddrinfo"] == ["socket.bind"]
    assert events.pop() == ["socket.bind", ["('127.0.0.1', 0)"]]
    assert events == [] or {name for name, _ in events} == {"socket.getaddrinfo"}
