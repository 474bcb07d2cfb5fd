"""A bundle can be made again from what its manifest says, and comes out the same, byte for byte."""

import json
import re
import shutil
import subprocess
import sys
from hashlib import sha256

import pytest

from export.errors import ExportError
from export.pipeline import export_bundle
from export.reproduce import reproduce_bundle
from runtime.errors import BundleError

PRECISIONS = ("fp32", "fp16", "int8", "int4")


@pytest.fixture(scope="module")
def tiny(seeded_checkpoint, tmp_path_factory):
    return seeded_checkpoint(tmp_path_factory.mktemp("reproduce") / "tiny")


def command(*arguments):
    """A process of its own: PyTorch has as many threads in each, which it need not have among other tests."""
    words = [sys.executable, "-m", "export", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


def made_at(folder, tiny):
    done = command(tiny, "--output", folder, "--precision", ",".join(PRECISIONS), "--cache", "int8")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def made(tiny):
    return made_at(tiny.parent / "bundle", tiny)


@pytest.fixture(scope="module")
def plain(tiny):
    export_bundle(str(tiny), tiny.parent / "plain")
    return tiny.parent / "plain"


@pytest.fixture
def copied(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "bundle")
    return tmp_path / "bundle"


def change(folder, **parts):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}, indent=2) + "\n")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_exports_are_the_same_bytes(tiny, made, tmp_path):
    first, second = contents(made), contents(made_at(tmp_path / "second", tiny))
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_the_command_makes_it_again_and_compares(tiny, made):
    done = command(tiny, "--reproduce", made)
    count = len(contents(made))
    assert (done.returncode, done.stdout) == (0, f"{made}: all {count} files are the same, byte for byte\n"), (
        done.stderr
    )


def test_what_other_machines_have_proved_since_is_not_compared(tiny, copied):
    parity = json.loads((copied / "manifest.json").read_text())["parity"]
    change(copied, parity={**parity, "proofs": [{"device": "cuda"}]})
    assert reproduce_bundle(copied, str(tiny)).same


def test_a_file_that_was_changed_with_its_hash_is_named_and_so_are_other_versions(tiny, copied):
    path = copied / "onnx" / "model.onnx_data"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    content = json.loads((copied / "manifest.json").read_text())
    content["files"]["onnx/model.onnx_data"]["sha256"] = sha256(path.read_bytes()).hexdigest()
    change(copied, files=content["files"], made_with={**content["made_with"], "torch": "2.0.0"})
    found = reproduce_bundle(copied, str(tiny))
    assert found.differing == ("onnx/model.onnx_data", "manifest.json")
    assert re.fullmatch(
        rf"2 of {len(contents(copied))} files differ: onnx/model.onnx_data, manifest.json; what made it differs, too: "
        r"torch 2\.0\.0 then, \S+ now",
        found.line(),
    )


def test_where_the_manifests_differ_is_told(tiny, copied):
    parity = json.loads((copied / "manifest.json").read_text())["parity"]
    parity["greedy"]["tokens"] += 1
    parity["tensors"][2]["error"] = 0.5
    change(copied, parity=parity)
    found = reproduce_bundle(copied, str(tiny))
    assert found.fields == ("parity.tensors.2.error", "parity.greedy.tokens")
    assert "files differ: manifest.json (in parity.tensors.2.error, parity.greedy.tokens); all that" in found.line()


def test_a_damaged_file_is_found_before_anything_is_made(tiny, copied):
    path = copied / "onnx" / "model.onnx_data"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(BundleError, match=r"model\.onnx_data"):
        reproduce_bundle(copied, str(tiny))


def test_a_checkpoint_of_other_weights_is_refused(plain, seeded_checkpoint, tmp_path):
    other = seeded_checkpoint(tmp_path / "tiny", n_layer=2)
    with pytest.raises(ExportError, match=r"has other weights than those that .* was made from"):
        reproduce_bundle(plain, str(other))


def test_a_checkpoint_known_by_its_folders_name_alone_is_asked_for(plain):
    with pytest.raises(
        ExportError, match="knows the checkpoint's folder only by name, tiny; say where it is: python -m"
    ):
        reproduce_bundle(plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x"], "--output does not go with --reproduce, as the bundle says how it was made"),
        (["--precision", "int8"], "--precision does not go with --reproduce, as the bundle says how it was made"),
        (["--force"], "--force does not go with --reproduce, as the bundle says how it was made"),
    ],
)
def test_what_the_bundle_says_cannot_be_said_again(arguments, message):
    command = [sys.executable, "-m", "export", "--reproduce", "bundle", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"gpt2-onnx-export: {message} (see gpt2-onnx-export --help)\n"
