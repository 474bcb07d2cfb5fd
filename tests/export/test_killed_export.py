"""Whatever moment a kill hits, what is at the output is a whole bundle or none, and the next export clears the rest."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest

from export.bundle.staging import prepare, staged
from runtime.bundle.bundle import find_folder
from runtime.errors import BundleError

fcntl = pytest.importorskip("fcntl", reason="no locks here, so that nothing tells what is left from what is made")

OLD = {"manifest.json": "old", "config.json": "old", "onnx/decode.onnx": "old", "onnx/old.onnx_data": "old"}
NEW = {"manifest.json": "new", "config.json": "new", "onnx/decode.onnx": "new", "more/new.onnx_data": "new"}
# An export that is killed just before the rename, or exchange, of this number.
EXPORT = """
import json, os, signal, sys
from pathlib import Path
from export.bundle import output_folder, placing, staging
output, number, way, files = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
if way == "file by file":
    output_folder.is_mounted = lambda folder: folder == output
done = 0
def counting(step):
    def run(*paths):
        global done
        if done == number:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return step(*paths)
    return run
os.rename = counting(os.rename)
placing.exchange = counting(placing.exchange) if way == "exchanged" else lambda *paths: False
with staging.staged(output, force=True) as work:
    for name, content in files.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text(content)
"""


def fill(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def content(folder):
    """Every file's text, and "" for an empty folder."""
    found = [path for path in folder.rglob("*") if path.is_file() or not any(path.iterdir())]
    return {path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else "" for path in found}


def killed_before_rename(number, output, way):
    """Whether it was killed; else it did fewer renames."""
    command = [sys.executable, "-c", EXPORT, str(output), str(number), way, json.dumps(NEW)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def seen_by_the_runtime(output):
    """Its files, as far as there is a bundle."""
    try:
        find_folder(output)
    except BundleError:
        return None
    return {name: text for name, text in content(output).items() if not name.startswith(".")}


@pytest.mark.parametrize("before", [None, {}, OLD], ids=["nothing", "an empty folder", "a bundle"])
@pytest.mark.parametrize("way", ["exchanged", "renamed", "file by file"])
def test_a_kill_at_any_rename_leaves_a_whole_bundle_or_none(tmp_path, before, way):
    allowed = [OLD, NEW] if before == OLD and way != "file by file" else [None, OLD, NEW]
    for number in range(20):
        output = tmp_path / str(number) / "gpt2"
        output.parent.mkdir()
        if before is not None:
            output.mkdir()
            fill(output, before)
        was = content(output.parent)
        killed = killed_before_rename(number, output, way)
        assert seen_by_the_runtime(output) in allowed
        said = []
        prepare(output, force=True, say=said.append)
        if not killed:
            assert (content(output), said) == (NEW, [])
            assert number > 0
            return
        assert any(line.endswith("left by a killed export") for line in said)
        assert content(output.parent) == was
    pytest.fail("never came to its end")


@pytest.mark.parametrize("number", range(9))
def test_putting_back_may_be_killed_too(tmp_path, number):
    """After a kill in the midst of the moves, one more kill at each rename of what undoes them."""
    output = tmp_path / "gpt2"
    fill(output, OLD)
    assert killed_before_rename(6, output, "file by file")
    assert seen_by_the_runtime(output) is None
    killed_before_rename(number, output, "file by file")
    assert seen_by_the_runtime(output) in (None, OLD, NEW)
    prepare(output, force=True, say=str)
    assert content(tmp_path) in ({f"gpt2/{name}": text for name, text in files.items()} for files in (OLD, NEW))


def test_what_the_runtime_says_of_a_half_moved_bundle_puts_it_right(tmp_path):
    """It is no checkpoint, though all but two of a bundle's files may be there."""
    output = tmp_path / "gpt2"
    fill(output, OLD)
    assert killed_before_rename(6, output, "file by file")
    assert list(output.rglob("decode.onnx"))
    with pytest.raises(BundleError, match=re.escape(f"make one: python -m export CHECKPOINT --output {output}")):
        find_folder(output)
    prepare(output, force=True, say=str)
    assert find_folder(output) == output
    assert content(output) == OLD


def test_what_somebody_put_there_after_the_kill_is_kept(tmp_path):
    output = tmp_path / "gpt2"
    fill(output, OLD)
    assert killed_before_rename(6, output, "file by file")
    (output / "thesis.txt").write_text("ten years")
    prepare(output, force=True, say=str)
    assert content(output) == {**OLD, "thesis.txt": "ten years"}


def test_a_bundle_that_cannot_be_put_back_is_named_with_the_command_that_does(tmp_path, monkeypatch):
    """On a file system without locks nothing tells whether the export lives."""

    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    output = tmp_path / "gpt2"
    fill(output, OLD)
    assert killed_before_rename(1, output, "renamed")
    assert not output.exists()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    (stage,) = tmp_path.iterdir()
    with pytest.raises(BundleError, match=re.escape(f"no bundle at {output}; ")) as refused:
        find_folder(output)
    assert str(refused.value).endswith(f"put it back: mv {stage / 'old'} {output}")
    subprocess.run(str(refused.value).rpartition(": ")[2], shell=True, check=True)
    assert content(output) == OLD


def test_the_runtime_waits_for_an_export_that_is_just_replacing_a_bundle(tmp_path):
    """Where folders cannot be exchanged, there is no bundle for a moment."""
    output, stage = tmp_path / "gpt2", tmp_path / ".gpt2.0a1b2c3d.partial"
    fill(stage / "old", OLD)
    fill(stage / "new", NEW)
    with (stage / "lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        placing = Timer(0.3, lambda: ((stage / "new").rename(output), held.close()))
        placing.start()
        assert find_folder(output) == output
        placing.join()
    assert content(output) == NEW


def size(path):
    return path.stat().st_size if path.exists() else 0


def wait_for_stage(folder, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if found := [path for path in folder.glob(".gpt2.*.partial") if size(path / "new" / "weights") == 2_500_000]:
            return found[0]
        time.sleep(0.02)
    raise AssertionError("no stage appeared")


@pytest.fixture
def living(tmp_path):
    """An export that is at work, its stage, and 2.5 MB in it."""
    script = """
import sys, time
from pathlib import Path
from export.bundle.staging import staged
with staged(Path(sys.argv[1]), force=False) as work:
    (work / "weights").write_bytes(bytes(2_500_000))
    time.sleep(120)
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "gpt2")])
    try:
        yield process, wait_for_stage(tmp_path, process)
    finally:
        process.kill()
        process.wait()


def test_the_next_export_removes_what_a_killed_one_left_and_says_so(tmp_path, living):
    process, stage = living
    with staged(tmp_path / "gpt2", force=False, say=pytest.fail) as work:  # of a living one it has nothing to say
        fill(work, NEW)
    assert size(stage / "new" / "weights") == 2_500_000
    process.kill()
    process.wait()
    said = []
    with staged(tmp_path / "gpt2", force=True, say=said.append) as work:
        fill(work, {"manifest.json": "newer"})
    assert said == [f"removed {stage.name}, 2.5 MB, left by a killed export"]
    assert content(tmp_path) == {"gpt2/manifest.json": "newer"}


def test_others_folders_are_left_alone(tmp_path):
    kept = [".gpt2.partial", ".gpt2.notes.partial", ".gpt3.0a1b2c3d.partial", ".gpt2.x.0a1b2c3d.partial", ".gpt2.old"]
    for name in kept:
        fill(tmp_path / name, {"weights": "somebody's"})
    (tmp_path / ".gpt2.0a1b2c3d.partial").mkdir()  # another export is just making it
    prepare(tmp_path / "gpt2", force=True, say=pytest.fail)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, ".gpt2.0a1b2c3d.partial"])


def test_a_stage_that_was_made_and_never_locked_is_removed_after_a_while(tmp_path):
    """A kill came between the two."""
    stage, said = tmp_path / ".gpt2.0a1b2c3d.partial", []
    stage.mkdir()
    os.utime(stage, (time.time() - 61, time.time() - 61))
    prepare(tmp_path / "gpt2", force=True, say=said.append)
    assert said == [f"removed {stage.name}, 0.0 MB, left by a killed export"]
    assert list(tmp_path.iterdir()) == []


def test_what_a_release_without_locks_left(tmp_path):
    fill(tmp_path / ".gpt2.0a1b2c3d.partial", {"onnx/model.onnx_data": "half"})
    fill(tmp_path / ".gpt2.0a1b2c3d.old", OLD)
    said = []
    prepare(tmp_path / "gpt2", force=True, say=said.append)
    assert sorted(said) == [
        f"put back {tmp_path / 'gpt2'}, which a killed export was replacing",
        "removed .gpt2.0a1b2c3d.partial, 0.0 MB, left by a killed export",
    ]
    assert content(tmp_path) == {f"gpt2/{name}": text for name, text in OLD.items()}
    fill(tmp_path / ".gpt2.4e5f6a7b.old", NEW)
    prepare(tmp_path / "gpt2", force=True, say=said.append)
    assert said[2:] == ["removed .gpt2.4e5f6a7b.old, 0.0 MB, left by a killed export"]
    assert content(tmp_path) == {f"gpt2/{name}": text for name, text in OLD.items()}


def test_without_locks_nothing_is_removed_and_a_command_is_given(tmp_path, monkeypatch, living):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    process, stage = living
    process.kill()
    process.wait()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    said = []
    with staged(tmp_path / "gpt2", force=False, say=said.append) as work:
        fill(work, NEW)
    assert said == [f"left {stage} (Operation not supported); if no export is running, remove it: rm -r {stage}"]
    assert stage.exists()


@pytest.mark.skipif(os.access("/", os.W_OK), reason="root may write anywhere")
def test_what_cannot_be_removed_is_named(tmp_path):
    fill(tmp_path / ".gpt2.0a1b2c3d.partial" / "new", {"weights": "half"})
    (tmp_path / ".gpt2.0a1b2c3d.partial" / "new").chmod(0o500)
    said = []
    prepare(tmp_path / "gpt2", force=True, say=said.append)
    assert said == [
        f"left {tmp_path}/.gpt2.0a1b2c3d.partial (Permission denied); if no export is running, remove it: "
        f"rm -r {tmp_path}/.gpt2.0a1b2c3d.partial"
    ]
    Path(tmp_path / ".gpt2.0a1b2c3d.partial" / "new").chmod(0o700)
