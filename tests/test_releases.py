"""A release of ONNX Runtime without `query_seqlens`, as onnxruntime-gpu's is: the same bundle, in more runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OLDER = "1.31.1"
CHOSEN = ("slots", "complete", "batches", "sessions", "asyncio", "concurrency")
PROVE = """
import sys
import onnxruntime, runtime
from runtime.bundle.bundle import open_bundle
from runtime.graphs.kinds import decode_path
from runtime.ort.placement import CPU

print(onnxruntime.__version__, decode_path(open_bundle(sys.argv[1]), "fp32", CPU).name)
"""


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """The environment's variables, with an older onnxruntime in front of what is installed."""
    folder = tmp_path_factory.mktemp("older")
    install = ["install", "--quiet", "--no-deps", "--target", str(folder), f"onnxruntime=={OLDER}"]
    done = subprocess.run([sys.executable, "-m", "pip", *install], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"onnxruntime {OLDER} cannot be had: {done.stderr.splitlines()[-1]}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def test_an_older_onnxruntime_runs_the_graph_that_it_can(older, bundle):
    found = subprocess.run([sys.executable, "-c", PROVE, str(bundle)], capture_output=True, text=True, env=older)
    assert found.stdout.split() == [OLDER, "decode.onnx"], found.stderr


def test_the_runtimes_tests_pass_with_an_older_onnxruntime(older, bundle):
    files = [f"tests/runtime/test_{name}.py" for name in CHOSEN]
    settings = {**older, "GPT2_ONNX_TEST_BUNDLE": str(bundle)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
