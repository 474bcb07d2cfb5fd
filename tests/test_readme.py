"""What the README says is run as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_runs_as_written(precise_bundle, tmp_path):
    """Its model is models/gpt2 under the current folder; here a bundle of the shipped checkpoint lies there."""
    tutorial, *more = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in tutorial.splitlines() if line.strip()]) <= 5
    shutil.copytree(precise_bundle, tmp_path / "models" / "gpt2")
    command = [sys.executable, "-c", "".join([tutorial, *more])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 5


def test_the_demo_command_runs_as_written(tmp_path):
    clone = tmp_path / "clone"
    kept = shutil.ignore_patterns(".*", "novelist-onnx", "__pycache__", "build", "dist")
    shutil.copytree(ROOT, clone, ignore=kept)
    (clone / ".venv").symlink_to(sys.prefix)
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    command = ["make", "--old-file=.venv/.ready", "demo"]  # the environment is this one, however old
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "parity" in done.stdout.lower()
    assert "PyTorch and transformers in this process: neither" in done.stdout
    assert len(re.findall(r"tokens read, \d+ written \([\d,]+ tokens/s\) +\d+\.\d\d s", done.stdout)) == 2


def test_the_map_is_as_the_modules_are():
    done = subprocess.run([sys.executable, ROOT / "docs" / "map.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
