"""A bundle that is replaced while it is loaded: every load gives the old or the new one, whole."""

import shutil
import subprocess
import sys
import threading
import time

import pytest

import runtime
from export.bundle.exchange import exchange

PROMPT = "It was"
EXCHANGE = """
import random, sys, time
from pathlib import Path
from export.bundle.exchange import exchange
one, other, longest = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
count = 0
while Path(sys.argv[4]).exists():
    assert exchange(one, other)
    count += 1
    time.sleep(random.uniform(0, longest))
print(count)
"""
REPLACE = """
import random, shutil, sys, time
from pathlib import Path
from export.bundle import placing
from export.bundle.staging import staged
output, sources = Path(sys.argv[1]), sys.argv[2:4]
if sys.argv[5] == "renamed":
    placing.exchange = lambda *_: False
count = 0
while Path(sys.argv[4]).exists():
    with staged(output, force=True) as work:
        shutil.copytree(sources[count % 2], work, dirs_exist_ok=True)
    count += 1
    time.sleep(random.uniform(0, 0.6))  # an export takes longer
print(count)
"""


@pytest.fixture(scope="module")
def two(make_once, seeded_checkpoint):
    """Two bundles that say different things, and both answers."""
    from export.pipeline import export_bundle

    def make(folder):
        for name, width in (("one", 32), ("other", 64)):
            checkpoint = seeded_checkpoint(folder / f"{name}-checkpoint", n_embd=width)
            export_bundle(str(checkpoint), folder / name)

    folder = make_once("two-bundles", make)
    answers = [said(folder / name) for name in ("one", "other")]
    assert answers[0] != answers[1]
    return folder, answers


def said(folder, **options):
    model = runtime.load(folder, device="cpu", threads=1, **options)
    return model.complete(PROMPT, max_new_tokens=12).token_ids


def loads(seconds, folder, allowed, **options):
    """What loads in a loop say, each of which must be allowed: for so long, and until both answers were heard."""
    found, began = [], time.monotonic()
    while time.monotonic() < began + seconds or (len(set(found)) < 2 and time.monotonic() < began + 60):
        found.append(said(folder, **options))
        assert found[-1] in allowed
    return found


def while_it_runs(script, arguments, busy, work):
    """Do `work` while a process does the script; how often it did."""
    busy.touch()
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(0.5)
        work()
    finally:
        busy.unlink()
        told, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return int(told)


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux")
@pytest.mark.parametrize("longest", [0, 0.002, 0.2])
@pytest.mark.parametrize("verify", [True, False])
def test_folders_that_are_exchanged_all_the_time_are_never_mixed(tmp_path, two, longest, verify):
    source, allowed = two
    one, other, busy = tmp_path / "gpt2", tmp_path / "other", tmp_path / "busy"
    shutil.copytree(source / "one", one)
    shutil.copytree(source / "other", other)
    if not exchange(one, other):
        pytest.skip("this file system does not exchange folders")
    found = []

    def in_threads():
        threads = [threading.Thread(target=lambda: found.extend(loads(3, one, allowed, verify=verify))) for _ in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    count = while_it_runs(EXCHANGE, (one, other, longest, busy), busy, in_threads)
    assert count > 5
    assert len(set(found)) == 2


@pytest.mark.parametrize("way", ["exchanged", "renamed"])
def test_a_bundle_that_exports_replace_and_remove_is_loaded_as_the_old_or_the_new(tmp_path, two, way):
    source, allowed = two
    output, busy, found = tmp_path / "gpt2", tmp_path / "busy", []
    shutil.copytree(source / "one", output)
    arguments = (output, source / "other", source / "one", busy, way)
    count = while_it_runs(REPLACE, arguments, busy, lambda: found.extend(loads(4, output, allowed)))
    assert count > 1
    assert len(set(found)) == 2
    assert sorted(tmp_path.iterdir()) == [output]
