"""What the two Dockerfiles promise, as far as their text shows it: no container engine is needed here."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from runtime.cli import serve
from runtime.cli.main import make_parser

ROOT = Path(__file__).parent.parent
EXTRAS = {"Dockerfile": "cpu,cli,serve", "Dockerfile.gpu": "gpu,cli,serve"}


class Instruction(NamedTuple):
    name: str
    value: str


def stages(name: str) -> list[list[Instruction]]:
    """The instructions of each stage, continued lines joined."""
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found: list[list[Instruction]] = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            instruction = Instruction(*line.split(maxsplit=1))
            if instruction.name == "FROM":
                found.append([])
            found[-1].append(instruction)
    return found


def values(stage: list[Instruction], name: str) -> list[str]:
    return [instruction.value for instruction in stage if instruction.name == name]


def environment(stage: list[Instruction]) -> dict[str, str]:
    return dict(pair.split("=", 1) for value in values(stage, "ENV") for pair in value.split())


@pytest.fixture(params=EXTRAS)
def name(request) -> str:
    return request.param


def test_the_wheel_is_built_in_one_stage_and_installed_in_the_next(name):
    build, final = stages(name)
    (origin,) = values(build, "FROM")
    assert origin.endswith(" AS build")
    assert any("build --wheel" in command and "--outdir /dist" in command for command in values(build, "RUN"))
    copies = values(final, "COPY")
    assert any("/dist/*.whl" in copy for copy in copies)
    assert all(copy.startswith("--from=build ") for copy in copies), "the sources must not be in the image"


def test_the_image_holds_the_runtime_with_its_extra_and_pinned_versions_and_no_torch(name):
    _, final = stages(name)
    commands = values(final, "RUN")
    assert re.findall(r'"\$1\[(.*?)\]"', " ".join(commands)) == [EXTRAS[name]]
    installs = [part for command in commands for part in command.split("&&") if "pip install" in part]
    assert installs
    for install in installs:
        assert "--constraint /opt/gpt2-onnx/constraints.txt" in install
        assert "--no-cache-dir" in install
        assert not re.search("torch|export|transformers|optimum", install)


def test_cuda_s_libraries_are_installed_for_the_gpu_alone():
    commands = {name: " ".join(values(stages(name)[-1], "RUN")) for name in EXTRAS}
    assert '"onnxruntime-gpu[cuda,cudnn]"' in commands["Dockerfile.gpu"]
    assert not re.search("gpu]|gpu,|nvidia", commands["Dockerfile"])


def test_it_runs_as_a_user_without_rights(name):
    _, final = stages(name)
    user, group = values(final, "USER")[-1].split(":")
    assert int(user) >= 1000
    assert int(group) >= 1000
    assert f"--uid {user} " in " ".join(values(final, "RUN"))
    kinds = [instruction.name for instruction in final]
    assert "RUN" not in kinds[kinds.index("USER") :]


def test_it_serves_where_the_port_is_exposed(name):
    _, final = stages(name)
    assert values(final, "ENTRYPOINT") == ['["gpt2-onnx"]']
    (command,) = map(json.loads, values(final, "CMD"))
    options = make_parser().parse_args(command)
    assert options.run is serve.run
    assert (options.host, options.log_format) == ("0.0.0.0", "json")
    assert values(final, "EXPOSE") == [str(options.port)]
    assert values(final, "STOPSIGNAL") == ["SIGINT"]


@pytest.mark.parametrize("status", [200, 503, None])
def test_its_health_is_what_healthz_says(name, status):
    """The command as it stands, but for the port; None is where nobody listens."""
    _, final = stages(name)
    (check,) = values(final, "HEALTHCHECK")
    options, _, command = check.partition("CMD ")
    assert {"--interval", "--timeout", "--start-period", "--retries"} == {
        part.split("=")[0] for part in options.split()
    }
    python, *arguments = json.loads(command)
    assert python == "python"
    with answering(status) as (port, asked):
        given = [part.replace("8000", str(port)) for part in arguments]
        done = subprocess.run(
            [sys.executable, *given], check=False, env={**os.environ, "http_proxy": "http://x.invalid"}
        )
    assert done.returncode == (0 if status == 200 else 1)
    assert asked == ([] if status is None else ["/healthz"])


@contextmanager
def answering(status: int | None) -> Iterator[tuple[int, list[str]]]:
    """(the port of a server that always answers so, the paths that it is asked for)."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        if status is None:
            server.server_close()
            yield server.server_port, asked
            return
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_port, asked
        server.shutdown()
        thread.join()


def test_telemetry_is_off_and_the_bundle_is_mounted(name):
    build, final = stages(name)
    settings = environment(final)
    assert settings["ORT_DISABLE_TELEMETRY"] == "1"
    assert settings["PYTHONUNBUFFERED"] == "1"
    assert settings["GPT2_ONNX_MODEL"] == "/model"
    assert not [copy for copy in values(build, "COPY") + values(final, "COPY") if "models" in copy]


def test_the_container_toolkit_is_asked_for_the_driver_and_nvidia_smi():
    settings = environment(stages("Dockerfile.gpu")[-1])
    assert settings["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert set(settings["NVIDIA_DRIVER_CAPABILITIES"].split(",")) == {"compute", "utility"}
    assert not [key for key in environment(stages("Dockerfile")[-1]) if key.startswith("NVIDIA")]


def test_what_is_copied_is_in_the_repository_and_in_the_context(name):
    build, _ = stages(name)
    sources = [source for copy in values(build, "COPY") for source in copy.split()[:-1]]
    assert {"pyproject.toml", "LICENSE", "constraints.txt", "export", "runtime"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert not is_ignored(source)


def is_ignored(path: str) -> bool:
    """As .dockerignore has it: the last line that fits decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#") and fits(Path(path), line.removeprefix("!")):
            ignored = not line.startswith("!")
    return ignored


def fits(path: Path, pattern: str) -> bool:
    """Whether a pattern names a path or a folder above it; of Docker's rules those that are used."""
    places = [path, *path.parents[:-1]]
    if pattern.startswith("**/"):
        return any(place.name == pattern.removeprefix("**/") for place in places)
    return any(fnmatch(place.as_posix(), pattern) for place in places)


@pytest.mark.parametrize(
    "path", [".git", ".venv", ".hypothesis", "models", "build", "tests", "benchmarks", "docs", "runtime/__pycache__"]
)
def test_the_rest_is_no_part_of_the_context(path):
    assert is_ignored(path)


def test_hadolint_has_nothing_to_say(name):
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, name], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
