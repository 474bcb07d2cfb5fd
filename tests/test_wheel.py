"""The wheel: both packages and nothing else, and the runtime's tests in an environment that has no torch."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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
