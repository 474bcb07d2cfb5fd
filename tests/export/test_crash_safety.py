"""Whatever ends an export, a bundle is there whole or not at all, and what was there before is not lost."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export.bundle import output_folder
from export.bundle.staging import staged
from export.errors import ExportError

fcntl = pytest.importorskip("fcntl", reason="no locks here, so that nothing tells what is left from what is made")
KILLS = Path(__file__).with_name("kills.py")
SMALL = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32}


@pytest.fixture(scope="module")
def checkpoints(make_once, seeded_checkpoint):
    """Two small checkpoints, of which the second has another width."""

    def make(folder):
        seeded_checkpoint(folder / "one", **SMALL)
        seeded_checkpoint(folder / "other", **{**SMALL, "n_embd": 32})

    folder = make_once("two-small-checkpoints", make)
    return folder / "one", folder / "other"


def kill(folder, count, checkpoints):
    seed = random.randrange(2**32)
    print("seed", seed)  # which pytest shows where the test fails
    command = [sys.executable, KILLS, folder, count, seed, *checkpoints]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr
    begun, *kills = map(json.loads, done.stdout.splitlines())
    assert len(kills) == count
    return begun["old"], kills


def check_kills(old, kills):
    new = {told["found"] for told in kills} - {old, None}
    assert len(new) <= 1, new  # of all that are whole
    for told in kills:
        assert told["found"] in {old, *new} if told["force"] else told["found"] in {None, *new}, told
        assert told["after"] in ([], ["gpt2"]), told
        if told["signal"] != signal.SIGKILL:
            assert told["left"] == [], told
            assert told["code"] in (0, 128 + told["signal"], -told["signal"]), told
            assert "Traceback" not in "".join(told["said"]), told


def test_exports_killed_at_random_moments_leave_no_bundle_or_a_whole_one(tmp_path, checkpoints):
    check_kills(*kill(tmp_path, 10, checkpoints))


@pytest.mark.wide
def test_a_hundred_exports_killed_at_random_moments_leave_no_bundle_or_a_whole_one(tmp_path, checkpoints):
    old, kills = kill(tmp_path, 100, checkpoints)
    check_kills(old, kills)
    assert {told["signal"] for told in kills} == {signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT}
    assert sum(told["code"] != 0 for told in kills) > 50


# a full disk

FULL = """
mount -t tmpfs -o size=$2k none "$1" || exit 77
mkdir "$1/models"
"$3" -m export "$4" --output "$1/models/gpt2"
code=$?
find "$1/models" -mindepth 1 >&2
exit $code
"""


def on_a_small_disk(folder, size, checkpoint):
    """An export to a file system of so many kB of its own, which no other process sees."""
    folder.mkdir()
    script = ["sh", "-c", FULL, "sh", str(folder), str(size), sys.executable, str(checkpoint)]
    done = subprocess.run(["unshare", "-rm", *script], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode in (1, 77) and ("unshare:" in done.stderr or "mount:" in done.stderr):
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    return done


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare here, so that no small disk can be mounted")
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 0.99])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, checkpoints, needed, share):
    """Full before the stage, in the tokenizer, in weights, in graphs and near the end."""
    done = on_a_small_disk(tmp_path / "disk", max(8, int(share * needed)), checkpoints[0])
    *steps, last = done.stderr.splitlines()
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert last.startswith("gpt2-onnx-export: ")
    assert "No space left on device" in last
    assert sum(line.startswith("gpt2-onnx-export: ") for line in steps) == 0


@pytest.fixture(scope="module")
def needed(make_once, checkpoints):
    """kB of the whole bundle."""
    from export.pipeline import export_bundle

    folder = make_once("small-bundle", lambda folder: export_bundle(str(checkpoints[0]), folder))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024


# two at once


RACE = """
import sys, time
from pathlib import Path
from export.bundle import output_folder, placing
from export.bundle.staging import staged
from export.errors import ExportError

output, name, way, force = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "force"
if way == "file by file":
    output_folder.is_mounted = lambda folder: folder == output
elif way == "renamed":
    placing.exchange = lambda *_: False
print("ready", flush=True)
sys.stdin.readline()
try:
    with staged(output, force=force) as work:
        for number in range(50):
            (work / f"{name}{number}").write_text(name)
        (work / "manifest.json").write_text(name)
except ExportError as error:
    sys.exit(str(error))
"""


def race(output, way, force):
    """Two exports to one place that begin at once; their exit codes and what they said."""
    told = [sys.executable, "-c", RACE, str(output)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*told, name, way, force], **pipes) for name in ("a", "b")]
    for each in both:
        assert each.stdout.readline() == "ready\n"
    for each in both:
        each.stdin.write("\n")
        each.stdin.flush()
    said = [each.communicate(timeout=60)[1] for each in both]
    return [each.returncode for each in both], said


@pytest.mark.parametrize("force", ["force", "keep"])
@pytest.mark.parametrize("way", ["exchanged", "renamed", "file by file"])
def test_two_exports_to_one_place_do_not_mix(tmp_path, way, force):
    for number in range(4):
        output = tmp_path / str(number) / "gpt2"
        output.parent.mkdir()
        if way == "file by file":
            output.mkdir()
        codes, said = race(output, way, force)
        assert codes == [0, 0] if force == "force" else sorted(codes) == [0, 1], said
        (name,) = {path.read_text() for path in output.iterdir()}
        assert {path.name for path in output.iterdir()} == {"manifest.json", *(f"{name}{n}" for n in range(50))}
        assert list(output.parent.iterdir()) == [output]
        if force == "keep":
            assert said[codes.index(1)].strip() == f"{output} exists; choose another output, or force its replacement"


def test_a_bundle_that_appears_at_the_last_moment_is_kept(tmp_path, monkeypatch):
    """Between the last look and the rename."""
    output, check = tmp_path / "gpt2", output_folder.check_output

    def appears(folder, *, force):
        check(folder, force=force)
        if list(tmp_path.glob(".gpt2.*.partial/new/*")):
            output.mkdir()
            (output / "manifest.json").write_text("theirs")

    monkeypatch.setattr("export.bundle.staging.check_output", appears)
    with pytest.raises((ExportError, OSError)), staged(output, force=False) as work:
        (work / "manifest.json").write_text("ours")
    assert (output / "manifest.json").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [output]


def test_a_folder_that_somebody_else_holds_is_one_line_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr("export.bundle.stage.PATIENCE", 0.2)
    holds = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holds, fcntl.LOCK_EX)
    try:
        with pytest.raises(ExportError, match=f"another process has held {tmp_path} for a minute; find it: fuser"):
            staged(tmp_path / "gpt2", force=False).__enter__()
    finally:
        os.close(holds)
    assert list(tmp_path.iterdir()) == []


# what signals leave


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_leaves_neither_a_stage_nor_the_folders_above_it(tmp_path, name):
    script = """
import sys, time
from pathlib import Path
from export.bundle.staging import staged
from export.cli import exit_on_signals
exit_on_signals()
with staged(Path(sys.argv[1]), force=False) as work:
    (work / "weights").write_bytes(bytes(1000))
    print("at work", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "models" / "more" / "gpt2")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == b"at work\n"
    process.send_signal(getattr(signal, name))
    process.wait(timeout=60)
    process.stdout.close()
    assert process.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_nohup_stays_in_force():
    script = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        "from export.cli import exit_on_signals; exit_on_signals(); "
        "assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("moment", range(1, 5))
def test_a_second_signal_does_not_stop_the_clearing_up(tmp_path, monkeypatch, moment):
    """It comes while files are removed; it takes effect when they are."""
    rmtree = shutil.rmtree

    def interrupted(*arguments, **options):
        for _ in range(moment):
            os.kill(os.getpid(), signal.SIGINT)
        rmtree(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "gpt2", force=False):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


LIBRARY = """
import os, signal, sys
import export.cli

def run(options):
    try:
        os.kill(os.getpid(), getattr(signal, options.checkpoint))
    except BaseException:
        raise RuntimeError("the library's own") from None

export.cli.run = run
export.cli.main()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_of_which_a_library_makes_an_error_is_still_told_by_the_exit_code(name, code):
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY, name, "--output", "bundle"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, "gpt2-onnx-export: interrupted; nothing was written\n")
