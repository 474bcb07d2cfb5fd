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


def test_every_file_in_the_map_exists():
    """Paths in the README's map of the files."""
    listed = re.search(r"## Map of the files\n.*?```\n(.*?)```", README, re.DOTALL)[1]
    folder, paths = "", []
    for line in listed.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
        paths.append(ROOT / (folder + name if line.startswith(" ") else name))
    assert len(paths) > 20
    assert [path for path in paths if not path.exists()] == []
