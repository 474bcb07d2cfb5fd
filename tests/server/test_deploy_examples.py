"""examples/deploy: what systemd, Kubernetes' schemas and nginx say of the files, and a stream through nginx."""

import copy
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from runtime.cli import serve
from runtime.cli.main import make_parser
from runtime.engine.texts import GeneratedText
from runtime.server.endpoints import ENDPOINTS
from runtime.server.settings import ServerSettings

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "examples" / "deploy"
PATHS = {each.path for each in ENDPOINTS}
SMALL_TOKEN = 2 * 12 * 768 * 4  # bytes of keys and values of GPT-2 small
SMALL_MEMORY = 770 * 2**20 + (32 + 8) * 1024 * SMALL_TOKEN  # measured in docs/speed.md; the eight that ended last stay
LONG = {"prompt": "It was a bright cold day", "max_tokens": 400, "ignore_eos": True, "stream": True}


def served(arguments):
    """The options of a `gpt2-onnx serve`, as the command line reads them."""
    options = make_parser().parse_args(arguments)
    assert options.run is serve.run
    return options


# systemd

UNIT = (DEPLOY / "gpt2-onnx.service").read_text(encoding="utf-8")


def unit(name):
    return [line.split("=", 1)[1] for line in UNIT.splitlines() if line.startswith(f"{name}=")]


def verified(tmp_path, text):
    """(exit code, what systemd says) of the unit, with a command that is there."""
    path = tmp_path / "gpt2-onnx.service"
    path.write_text(text.replace("/opt/gpt2-onnx/bin/gpt2-onnx", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed: the unit is unread")
def test_systemd_reads_the_unit(tmp_path):
    assert verified(tmp_path, UNIT) == (0, "")
    assert "ProtectSistem" in verified(tmp_path, UNIT.replace("ProtectSystem", "ProtectSistem"))[1]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed: the unit is unread")
def test_systemd_finds_little_exposed():
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", DEPLOY / "gpt2-onnx.service"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_units_command_is_one_that_serves():
    _, *arguments = shlex.split(unit("ExecStart")[0])
    options = served(arguments)
    assert options.host == "127.0.0.1"
    assert options.api_key_file == "${CREDENTIALS_DIRECTORY}/" + unit("LoadCredential")[0].split(":")[0]
    assert float(unit("TimeoutStopSec")[0]) >= options.grace + 5
    assert unit("KillSignal") == ["SIGTERM"]
    assert "-HUP" in unit("ExecReload")[0]
    assert float(unit("MemoryMax")[0].removesuffix("G")) * 2**30 > SMALL_MEMORY


# Kubernetes


@pytest.fixture
def manifests():
    import yaml

    found = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
    return {each["kind"]: each for each in found}


@pytest.mark.parametrize("release", ["1.30", "1.37"])
def test_kubernetes_schemas_fit(manifests, release):
    import kubernetes_validate

    assert set(manifests) == {"Deployment", "Service"}
    for each in manifests.values():
        kubernetes_validate.validate(each, release, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "replicas"), "two"),
        (("spec", "template", "spec", "containers", 0, "ports", 0, "containerPort"), "http"),
        (("spec", "template", "spec", "containers", 0, "livenesProbe"), {}),
        (("spec", "template", "spec", "securityContext", "runAsNonRoot"), "yes"),
        (("spec", "template", "spec", "containers", 0, "name"), None),
        (("spec", "selector"), None),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else None,
)
def test_a_field_that_is_wrong_does_not(manifests, path, value):
    import kubernetes_validate

    broken = copy.deepcopy(manifests["Deployment"])
    place = broken
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    if value is None:
        del place[path[-1]]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.37", strict=True)


def test_the_pod_serves_what_its_probes_and_its_service_ask(manifests):
    pod = manifests["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    options = served(container["args"])
    (port,) = container["ports"]
    assert (options.host, options.port) == ("0.0.0.0", port["containerPort"])
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/healthz",
        "readiness": "/readyz",
        "liveness": "/healthz",
    }
    assert {probe["path"] for probe in probes.values()} <= PATHS
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    service = manifests["Service"]["spec"]
    assert [each["targetPort"] for each in service["ports"]] == [port["name"]]
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["enableServiceLinks"] is False
    sleep = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] >= sleep + options.grace + 5
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert options.api_key_file == f"{mounts['keys']}/keys"
    assert mounts["model"] == "/model"  # GPT2_ONNX_MODEL of the image
    memory = float(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30
    assert memory > SMALL_MEMORY


# nginx

CONF = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
needs_nginx = pytest.mark.skipif(
    not (shutil.which("nginx") and shutil.which("openssl")),
    reason="nginx or openssl is not installed: nginx.conf is unread",
)
BUFFERED = "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"


def nginx_conf(folder: Path, conf: str, upstream: str = "127.0.0.1:1") -> tuple[Path, int]:
    """(a configuration with the example in it, the port where it listens)."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run([*command, "-keyout", key, "-out", certificate], capture_output=True, check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for place, here in (
        ("127.0.0.1:8000", upstream),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/gpt2.example.org.pem", str(certificate)),
        ("/etc/ssl/gpt2.example.org.key", str(key)),
    ):
        assert conf.count(place) == 1
        conf = conf.replace(place, here)
    (folder / "gpt2-onnx.conf").write_text(conf)
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary} include {folder}/gpt2-onnx.conf; }}\n"
    )
    return folder / "nginx.conf", port


@contextmanager
def proxied(folder: Path, url: str, conf: str = CONF):
    """A client that speaks with the server through nginx."""
    path, port = nginx_conf(folder, conf, url.removeprefix("http://"))
    with (folder / "log").open("wb") as log, subprocess.Popen(["nginx", "-c", path], stderr=log) as process:
        try:
            with httpx.Client(
                base_url=f"https://127.0.0.1:{port}", verify=False, timeout=60, trust_env=False
            ) as client:
                end = time.monotonic() + 20
                while True:
                    try:
                        assert client.get("/healthz").json() == {"status": "ok"}
                        break
                    except httpx.ConnectError:
                        assert process.poll() is None, (folder / "log").read_text()
                        assert time.monotonic() < end
                        time.sleep(0.05)
                yield client
        finally:
            process.terminate()


@needs_nginx
@pytest.mark.parametrize(("conf", "code"), [(CONF, 0), (CONF.replace("proxy_buffering off", "proxy_buffering of"), 1)])
def test_nginx_reads_the_configuration(tmp_path, conf, code):
    path, _ = nginx_conf(tmp_path, conf)
    done = subprocess.run(["nginx", "-t", "-c", path], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ("proxy_buffering" in done.stderr) is bool(code)


@needs_nginx
@pytest.mark.parametrize("streams", [True, False], ids=["as it is", "buffered"])
def test_events_come_one_by_one_through_nginx(serve, tmp_path, monkeypatch, streams):
    """Four events, slowly. The control buffers them, so that the first comes when the text has ended."""
    take = GeneratedText.take

    def slowly(text, work, answer):
        time.sleep(0.3)
        take(text, work, answer)

    monkeypatch.setattr(GeneratedText, "take", slowly)
    live = serve()
    conf = CONF if streams else CONF.replace("proxy_buffering off;", BUFFERED)
    body = LONG | {"max_tokens": 4, "temperature": 0}
    with proxied(tmp_path, live.url, conf) as client, client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        chunks = response.iter_raw()
        said = next(chunks)
        assert ("gpt2_onnx_running 1.0" in live.client.get("/metrics").text) is streams
        said = [said, *chunks]
    assert said[-1].endswith(b"data: [DONE]\n\n")
    if streams:
        assert [chunk.count(b"data: {") for chunk in said if b"data: {" in chunk] == [1, 1, 1, 1]


@needs_nginx
def test_a_client_that_leaves_nginx_leaves_the_server(serve, tmp_path):
    live = serve()
    with proxied(tmp_path, live.url) as client:
        with client.stream("POST", "/v1/completions", json=LONG) as response:
            next(response.iter_raw())
        end = time.monotonic() + 10
        while 'texts_total{reason="cancelled"} 1.0' not in live.client.get("/metrics").text:
            assert time.monotonic() < end
            time.sleep(0.02)


@needs_nginx
def test_ids_and_limits_through_nginx(serve, tmp_path):
    live = serve()
    body = {"prompt": "It", "max_tokens": 1}
    with proxied(tmp_path, live.url) as client:
        given = client.post("/v1/completions", json=body, headers={"X-Request-Id": "mine.1"})
        assert given.headers["x-request-id"] == "mine.1"
        other = client.post("/v1/completions", json=body, headers={"X-Request-Id": "not fit; for a log"})
        assert re.fullmatch("[0-9a-f]{32}", other.headers["x-request-id"])
        assert client.post("/v1/completions", json={"prompt": "x" * 2**20}).status_code == 413
        refused = client.post("/v1/completions", json={"prompt": "x", "n": 100})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


def test_nginxs_limits_are_the_servers():
    assert re.search(r"client_max_body_size (\d+)m;", CONF)[1] == str(ServerSettings().max_body // 2**20)
    assert float(re.search(r"proxy_read_timeout (\d+)s;", CONF)[1]) > ServerSettings().timeout
    assert served(["serve"]).port == int(re.search(r"server 127.0.0.1:(\d+);", CONF)[1])
