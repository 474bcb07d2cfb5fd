"""The wheel: both packages and nothing else, and the runtime's tests in an environment that has no torch."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parent.parent
BILL = ROOT / "docs" / "sbom.cdx.json"
CHOSEN = (
    "cli",
    "complete",
    "devices",
    "external_data",
    "inspection",
    "installation",
    "locale",
    "sessions",
    "tokenizer",
)
ABSENT = ("torch", "transformers", "optimum", "onnx", "safetensors", "rich")


def run(*command: object, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("gpt2_onnx-*.whl"))


def test_it_holds_export_and_runtime_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"export", "runtime"}
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("export", "runtime")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == sources


def test_its_bill_of_materials_is_the_one_that_was_checked_and_valid(wheel):
    """PEP 770 gives the place, CycloneDX's own schema says what is valid."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if "/sboms/" in name]
        bill = archive.read(name).decode()
    assert re.fullmatch(r"gpt2_onnx-[^/]+\.dist-info/sboms/sbom\.cdx\.json", name)
    assert bill == BILL.read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None


def billed(*extras):
    """{package: version} of what some extras bring, by the bill of materials."""
    components = json.loads(BILL.read_text(encoding="utf-8"))["components"]
    wanted = {"none", *extras}
    return {
        component["name"]: component["version"]
        for component in components
        if wanted & set(component["properties"][0]["value"].split())
    }


@pytest.mark.parametrize("chosen", [CHOSEN, pytest.param((), marks=pytest.mark.wide)], ids=["chosen", "all"])
def test_the_runtimes_tests_pass_without_torch(wheel, bundle, tmp_path, chosen):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    constraints = ["--constraint", ROOT / "constraints.txt"]
    needed = (f"{wheel}[cpu,guide]", "pytest", "hypothesis", "jsonschema")
    run(python, "-m", "pip", "install", "--quiet", *constraints, *needed)
    found = run(python, "-c", f"import importlib.util as u; print([n for n in {ABSENT} if u.find_spec(n)])")
    assert found.strip() == "[]"
    shutil.copytree(ROOT / "tests" / "runtime", tmp_path / "tests" / "runtime")
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    settings = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    settings["GPT2_ONNX_TEST_BUNDLE"] = str(bundle)
    files = [f"tests/runtime/test_{name}.py" for name in chosen] or ["tests/runtime"]
    summary = run(python, "-m", "pytest", *files, "-k", "not thousand_interleavings", cwd=tmp_path, env=settings)
    print(summary)
    assert " passed" in summary
    help_text = run(environment / "bin" / "gpt2-onnx", "--help")
    assert "complete" in help_text


@pytest.mark.wide
def test_what_the_image_installs_serves_by_the_images_command(wheel, bundle, tmp_path):
    """In an environment of its own: the extras, the command and the signal are the Dockerfile's."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    extras = re.search(r'"\$1\[(.*?)\]"', text)[1]
    command = json.loads(re.search(r"^CMD (.+)$", text, re.MULTILINE)[1])
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings |= {"GPT2_ONNX_MODEL": str(bundle), "PYTHONUNBUFFERED": "1"}
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        ROOT / "constraints.txt",
        f"{wheel}[{extras}]",
        env=settings,
    )
    run(python, "-m", "pip", "check", env=settings)
    installed = json.loads(run(python, "-m", "pip", "list", "--format", "json", env=settings))
    found = {re.sub(r"[-_.]+", "-", one["name"]).lower(): one["version"] for one in installed}
    assert {name: found[name] for name in found.keys() - {"pip", "setuptools", "gpt2-onnx"}} == billed(
        *extras.split(",")
    )
    told = [environment / "bin" / "gpt2-onnx", *command, "--port", "0"]
    with subprocess.Popen(told, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=settings) as process:
        try:
            port = next(
                found[1] for line in process.stderr if (found := re.search(r"at http://0\.0\.0\.0:(\d+)", line))
            )
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/completions",
                json.dumps({"prompt": "It was", "max_tokens": 3, "regex": "[a-z ]+"}).encode(),
                {"Content-Type": "application/json"},
            )
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=60) as response:
                assert json.load(response)["usage"]["completion_tokens"] <= 3
            process.send_signal(getattr(signal, re.search(r"^STOPSIGNAL (\w+)$", text, re.MULTILINE)[1]))
            assert process.wait(30) == 0
        finally:
            process.kill()
