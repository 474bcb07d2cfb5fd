"""examples/deploy: what systemd, Kubernetes, KServe and nginx say of the files, and a stream through nginx."""

import copy
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import kserve_schema
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

RELEASES = ("1.30", "1.37")
CONTAINER = ("spec", "template", "spec", "containers", 0)
METRIC = ("spec", "metrics", 0, "pods")


def loaded(name):
    import yaml

    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8"))}


@pytest.fixture
def manifests():
    return loaded("kubernetes.yaml")


def changed(manifest, path, value):
    """A copy with another value at a place, or with nothing there."""
    copied = copy.deepcopy(manifest)
    place = copied
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    if value is None:
        del place[path[-1]]
    return copied


@pytest.fixture
def gauges(server):
    """What a server's /metrics shows as gauges."""
    from prometheus_client.parser import text_string_to_metric_families

    told = text_string_to_metric_families(server.client.get("/metrics").text)
    return {family.name for family in told if family.type == "gauge"}


@pytest.mark.parametrize("release", RELEASES)
def test_kubernetes_schemas_fit(manifests, release):
    import kubernetes_validate

    assert set(manifests) == {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    for each in manifests.values():
        kubernetes_validate.validate(each, release, strict=True)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "replicas"), "two"),
        ("Deployment", (*CONTAINER, "ports", 0, "containerPort"), "http"),
        ("Deployment", (*CONTAINER, "livenesProbe"), {}),
        ("Deployment", ("spec", "template", "spec", "securityContext", "runAsNonRoot"), "yes"),
        ("Deployment", (*CONTAINER, "name"), None),
        ("Deployment", ("spec", "selector"), None),
        ("Service", ("spec", "ports", 0, "port"), None),
        ("HorizontalPodAutoscaler", ("spec", "maxReplicas"), None),
        ("HorizontalPodAutoscaler", ("spec", "minimumReplicas"), 2),
        ("HorizontalPodAutoscaler", (*METRIC, "metric", "name"), None),
        ("HorizontalPodAutoscaler", (*METRIC, "target", "average"), "4"),
        ("HorizontalPodAutoscaler", ("spec", "behavior", "scaleUp", "policies", 0, "value"), "100%"),
        ("PodDisruptionBudget", ("spec", "maxUnavailabel"), 1),
        ("PodDisruptionBudget", ("spec", "selector", "matchLabels"), ["gpt2-onnx"]),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else None,
)
def test_a_field_that_is_wrong_does_not(manifests, kind, path, value, release):
    import kubernetes_validate

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(changed(manifests[kind], path, value), release, strict=True)


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


def test_the_autoscaler_counts_what_the_server_shows(manifests, gauges):
    deployment, autoscaler = manifests["Deployment"], manifests["HorizontalPodAutoscaler"]["spec"]
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]  # each `kubectl apply` would set it anew
    targets = {
        each["pods"]["metric"]["name"]: float(each["pods"]["target"]["averageValue"]) for each in autoscaler["metrics"]
    }
    assert targets.keys() <= gauges
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    options = served(container["args"])
    assert "max_queue" not in options  # the default, then
    assert 0 < targets["gpt2_onnx_waiting"] < ServerSettings().max_queue
    assert 0 < targets["gpt2_onnx_running"] < options.slots


def test_a_drain_and_an_update_go_on_and_leave_pods(manifests):
    deployment, budget = manifests["Deployment"]["spec"], manifests["PodDisruptionBudget"]["spec"]
    assert budget["selector"] == deployment["selector"]
    assert budget["selector"]["matchLabels"].items() <= deployment["template"]["metadata"]["labels"].items()
    least = manifests["HorizontalPodAutoscaler"]["spec"]["minReplicas"]
    assert (least, budget["maxUnavailable"]) == (2, 1)  # one may always go, and one stays
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


# KServe

EXTERNAL = ("spec", "predictor", "autoScaling", "metrics", 0, "external")


@pytest.fixture
def kserve():
    return loaded("kserve.yaml")


@pytest.fixture(scope="session")
def schema(make_once):
    """KServe's types, of a wheel that is fetched."""
    try:
        return kserve_schema.Schema(make_once("kserve", kserve_schema.fetch))
    except kserve_schema.WheelError as error:
        pytest.skip(f"kserve {kserve_schema.RELEASE} cannot be fetched, kserve.yaml is unread: {error}")


def test_kserves_types_fit(kserve, schema):
    """What is Kubernetes' own in both manifests, their pod has."""
    import kubernetes_validate

    assert set(kserve) == {"ServingRuntime", "InferenceService"}
    of_runtime, of_service = (schema.check(kserve[kind]) for kind in ("ServingRuntime", "InferenceService"))
    assert of_runtime.keys() == {"V1ObjectMeta", "V1Container", "V1Volume"}
    assert of_service.keys() == {"V1ObjectMeta", "V1PodSecurityContext"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "spec": {
            "containers": of_runtime["V1Container"],
            "volumes": of_runtime["V1Volume"],
            "securityContext": of_service["V1PodSecurityContext"][0],
        },
    }
    for release in RELEASES:
        for parts in (of_runtime, of_service):
            kubernetes_validate.validate({**pod, "metadata": parts["V1ObjectMeta"][0]}, release, strict=True)
        broken = changed(pod, ("spec", "containers", 0, "startupProbe", "httpGet", "prot"), 1)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, release, strict=True)


@pytest.mark.parametrize(
    ("kind", "path", "value", "told"),
    [
        ("ServingRuntime", ("spec", "supportedModelFormat"), [], "ServingRuntime.spec has no field supportedModelF"),
        ("ServingRuntime", ("spec", "containers"), None, "ServingRuntime.spec: .*`containers`, must not be"),
        (
            "ServingRuntime",
            ("spec", "supportedModelFormats", 0, "autoSelect"),
            "yes",
            r"Formats\[0\].autoSelect must be",
        ),
        ("ServingRuntime", ("spec", "annotations", "prometheus.io/port"), 8080, "port must be str, got 8080"),
        ("InferenceService", ("spec", "predictor", "maxReplicas"), True, "predictor.maxReplicas must be int, got True"),
        ("InferenceService", ("spec", "predictor", "model", "uri"), "pvc://x", "predictor.model has no field uri"),
        ("InferenceService", (*EXTERNAL, "target"), None, r"metrics\[0\].external: .*`target`, must not be"),
        ("InferenceService", (*EXTERNAL, "target", "value"), "four", "target.value must be a quantity, got 'four'"),
        ("InferenceService", ("spec", "predictor", "model"), [], "predictor.model must be a mapping"),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_what_kserve_does_not_know_does_not_fit(kserve, schema, kind, path, value, told):
    with pytest.raises(ValueError, match=told):
        schema.check(changed(kserve[kind], path, value))


def test_kserves_types_leave_no_module_behind(schema):
    assert schema is not None
    assert not [name for name in sys.modules if name.partition(".")[0] == "kserve"]


def test_kserves_container_serves_what_its_probes_ask(kserve):
    runtime, service = kserve["ServingRuntime"]["spec"], kserve["InferenceService"]
    (container,) = runtime["containers"]
    assert container["name"] == "kserve-container"  # whose model KServe mounts at /mnt/models
    named = [part.replace("{{.Name}}", service["metadata"]["name"]) for part in container["args"]]
    options = served(named)
    assert options.served_name == service["metadata"]["name"]
    (port,) = container["ports"]
    assert (options.host, options.port, options.model) == ("0.0.0.0", port["containerPort"], "/mnt/models")
    assert runtime["annotations"]["prometheus.io/port"] == str(options.port)
    assert {runtime["annotations"]["prometheus.io/path"]} <= PATHS
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert probes == {
        "startup": {"path": "/healthz", "port": options.port},
        "readiness": {"path": "/readyz", "port": options.port},
        "liveness": {"path": "/healthz", "port": options.port},
    }
    (mount,), (volume,) = container["volumeMounts"], runtime["volumes"]
    assert (mount["name"], options.api_key_file) == (volume["name"], f"{mount['mountPath']}/keys")
    predictor = service["spec"]["predictor"]
    assert predictor["model"]["runtime"] == kserve["ServingRuntime"]["metadata"]["name"]
    assert predictor["model"]["modelFormat"]["name"] in [each["name"] for each in runtime["supportedModelFormats"]]
    assert predictor["timeout"] > ServerSettings().timeout
    sleep = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert predictor["terminationGracePeriodSeconds"] >= sleep + options.grace + 5
    assert float(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30 > SMALL_MEMORY


def test_kserve_scales_by_what_the_server_shows(kserve, gauges):
    """By KEDA, as KServe's own metrics are processor and memory without Knative."""
    service = kserve["InferenceService"]
    assert service["metadata"]["annotations"] == {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "keda",
    }
    predictor = service["spec"]["predictor"]
    assert 2 <= predictor["minReplicas"] < predictor["maxReplicas"]
    (container,) = kserve["ServingRuntime"]["spec"]["containers"]
    most = {"gpt2_onnx_waiting": ServerSettings().max_queue, "gpt2_onnx_running": served(container["args"]).slots}
    assert most.keys() <= gauges
    targets = {}
    for each in predictor["autoScaling"]["metrics"]:
        query = each["external"]["metric"]["query"]
        name, pods = re.fullmatch(r"sum\(avg_over_time\((\w+)\{pod=~\"(.+)\"\}\[1m\]\)\)", query).groups()
        assert re.fullmatch(pods, f"{service['metadata']['name']}-predictor-6d4b75cb6d-hwfnx")
        targets[name] = float(each["external"]["target"]["value"])
    assert targets.keys() == most.keys()
    assert all(0 < targets[name] < limit for name, limit in most.items())


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
