"""`python -m export` as its user meets it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

OTHER_EPSILON = """
import copy
from importlib import import_module
from export.graphs.tracing.choice import find_tracer
graph = import_module(find_tracer().module)
original = graph.weightless_model
def other(config):
    config = copy.deepcopy(config)
    config.layer_norm_epsilon = 1e-3
    return original(config)
graph.weightless_model = other
"""


def export(*arguments, **options):
    command = [sys.executable, "-m", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, seeded_checkpoint):
    return seeded_checkpoint(tmp_path_factory.mktemp("cli") / "tiny")


NAME = """-my  bundle's "x" $HOME"""


def test_it_shows_its_steps_and_a_table_and_says_what_to_do_next(checkpoint, tmp_path):
    done = export(checkpoint, f"--output={NAME}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Verifying against PyTorch +\d+\.\d s", done.stderr)
    assert (
        len(re.findall(r"pass", done.stdout)) == 15
    )  # a line a family of tensors: 6 of the reference graph and the lens, 3 of each of three decode graphs
    assert re.search(r"greedy: (\d+) of \1 tokens over 5 prompts as PyTorch's", done.stdout)
    assert "python -m runtime verify --model DIR --device cuda\n" in done.stdout
    command = re.search(r"is ready: (python -m runtime complete .*)", done.stdout)[1]
    assert pasted(command, tmp_path).returncode == 0
    again = export(checkpoint, f"--output={NAME}", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.count("\n") == 1
    assert "exists; choose another output, or force its replacement" in again.stderr
    report = export(checkpoint, f"--output={NAME}", "--force", "--json", cwd=tmp_path)
    assert json.loads(report.stdout)["passed"] is True


def pasted(command, folder):
    """What bash makes of a printed command, with this Python for `python`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(["bash", "-c", command], cwd=folder, env={**os.environ, "PATH": path}, check=False)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "the following arguments are required: CHECKPOINT, --output"),
        (["gpt2"], 2, "the following arguments are required: --output"),
        (["./nowhere", "--output", "out"], 1, "no folder at ./nowhere, and it is not a Hub id"),
        ([".", "--output", "out"], 1, "it has no config.json"),
        (["gpt2", "--output", ""], 1, "--output must name a folder, got ''"),
    ],
)
def test_wrong_usage_is_one_line(arguments, code, message, tmp_path):
    done = export(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("defect", "seen"),
    [
        ("import export.graphs.decode as g; g.attention_scale = lambda config, layer: 0.999 / 8 ** 0.5", "decode"),
        ("import export.graphs.decode as g; g.ACTIVATIONS = {'gelu_new': 'Gelu'}", "decode"),
        (OTHER_EPSILON, "reference"),
    ],
)
def test_graphs_that_do_not_compute_the_checkpoint_are_not_written(checkpoint, tmp_path, defect, seen):
    """A scale off by a thousandth, the other gelu, another epsilon: each is found, and shown."""
    script = f"{defect}\nfrom export.cli import main; main()"
    command = [sys.executable, "-c", script, str(checkpoint), "--output", str(tmp_path / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert any(seen in line and "FAIL" in line for line in done.stderr.splitlines())
    assert "do not compute what PyTorch computes; nothing was written" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there, whatever the locale")
def test_names_that_are_not_ascii_in_an_ascii_locale(checkpoint, tmp_path):
    """Refused before the work with what to do, and that is right."""
    locale = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (tmp_path / "çheckpoint").symlink_to(checkpoint)
    for source, output, name in (
        (checkpoint, tmp_path / "bündle", "b\\xc3\\xbcndle"),
        (tmp_path / "çheckpoint", tmp_path / "bundle", "\\xc3\\xa7heckpoint"),
    ):
        done = export(source, "--output", output, env=locale)
        advice = "in this locale names are ASCII; choose another: export LC_ALL=C.UTF-8 (or PYTHONUTF8=1)"
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"gpt2-onnx-export: $'{tmp_path}/{name}' cannot be used: {advice}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["çheckpoint"]
    done = export(tmp_path / "çheckpoint", "--output", tmp_path / "bündle", env={**locale, "LC_ALL": "C.UTF-8"})
    assert done.returncode == 0, done.stderr
    assert "ready" in done.stdout


def heed_interrupts():
    """A shell starts what it puts in the background with interrupts ignored, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_export_leaves_nothing(checkpoint, tmp_path, sign):
    command = [sys.executable, "-m", "export", str(checkpoint), "--output", str(tmp_path / "out" / "bundle")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("out/.bundle.*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list(tmp_path.glob("out/.bundle.*"))
        process.send_signal(sign)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (130, 143)
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []  # nor the folder above the bundle


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_checkpoint_in_a_read_only_place_is_exported(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "read-only")
    folder.chmod(0o500)
    assert export(folder, "--output", tmp_path / "bundle").returncode == 0


def test_without_onnx_runtime_it_is_one_line(tmp_path):
    (tmp_path / "onnxruntime-1.0.dist-info").mkdir()
    (tmp_path / "onnxruntime_gpu-1.0.dist-info").mkdir()
    done = export("gpt2", "--output", tmp_path / "bundle", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "onnxruntime and onnxruntime-gpu are both installed" in done.stderr
