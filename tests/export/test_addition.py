"""A bundle gains a precision: as if it had been made with it, and without a change of what was there."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

import export.addition
import runtime
from export.addition import add_precisions
from export.errors import ExportError
from export.pipeline import export_bundle
from export.quantization import cache_scales
from export.quantization.recipe import RECIPES
from runtime.errors import BundleError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("addition")


@pytest.fixture(scope="module")
def tiny(seeded_checkpoint, folder):
    return seeded_checkpoint(folder / "tiny")


@pytest.fixture(scope="module")
def whole(tiny, folder):
    """Everything at once."""
    export_bundle(str(tiny), folder / "whole", precisions=["fp32", "fp16", "int8", "int4"], cache="int8")
    return folder / "whole"


@pytest.fixture(scope="module")
def part(tiny, folder):
    """Float32 and int8, each with an int8 cache."""
    export_bundle(str(tiny), folder / "part", precisions="int8", cache="int8")
    return folder / "part"


@pytest.fixture(scope="module")
def plain(tiny, folder):
    export_bundle(str(tiny), folder / "plain")
    return folder / "plain"


@pytest.fixture
def copied(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "bundle")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def change(folder, **parts):
    (folder / "manifest.json").write_text(json.dumps({**manifest_of(folder), **parts}, indent=2) + "\n")


def command(*arguments):
    words = [sys.executable, "-m", "export", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("order", [["int4", "fp16"], ["fp16", "int4"]])
def test_one_after_the_other_is_all_at_once_byte_for_byte(whole, part, tmp_path, order):
    bundle = shutil.copytree(part, tmp_path / "bundle")
    for precision in order:
        add_precisions(bundle, precision)
    found, expected = contents(bundle), contents(whole)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_the_command_needs_no_checkpoint_and_shows_the_report(copied, whole):
    done = command("--add", "int8, int4", "--output", copied)
    assert (done.returncode, done.stderr.splitlines()[-1].split()[:3]) == (0, ["Verifying", "against", "PyTorch"])
    assert done.stdout.splitlines()[-1].startswith(f"{copied} is ready: python -m runtime complete --model {copied}")
    assert "int4: perplexity" in done.stdout
    assert "Traceback" not in done.stderr
    served = [runtime.load(each, precision="int4", device="cpu") for each in (copied, whole)]
    assert served[0].complete("He").token_ids == served[1].complete("He").token_ids


def test_what_was_there_is_the_same_file_as_before(copied):
    weights = copied / "onnx" / "model.onnx_data"
    before, known = weights.stat().st_ino, manifest_of(copied)
    assert add_precisions(copied, "int8").precisions() == ["fp32", "int8"]
    after = manifest_of(copied)
    assert weights.stat().st_ino == before
    assert {name: record for name, record in after["files"].items() if name in known["files"]} == {
        **known["files"],
        "README.md": after["files"]["README.md"],
    }
    assert [row for row in after["parity"]["tensors"] if "int8" not in row["graph"]] == known["parity"]["tensors"]
    assert after["parity"]["greedy"] == known["parity"]["greedy"]
    assert after["made_with"] == known["made_with"]
    assert [path.name for path in copied.parent.iterdir()] == ["bundle"]


def test_proofs_of_other_machines_and_files_that_are_not_the_bundles_stay(copied):
    (copied / "notes.txt").write_text("mine")
    (copied / "proofs.json").write_text('{"proofs": [{"card": "a card"}]}')
    add_precisions(copied, "int4")
    assert (copied / "proofs.json").read_text() == '{"proofs": [{"card": "a card"}]}'
    assert (copied / "notes.txt").read_text() == "mine"
    assert not {"notes.txt", "proofs.json"} & manifest_of(copied)["files"].keys()


def test_other_versions_are_recorded_for_the_new_precision_alone(copied):
    made_with = {**manifest_of(copied)["made_with"], "torch": "2.0.0"}
    now = manifest_of(copied)["made_with"]["torch"]
    change(copied, made_with=made_with)
    add_precisions(copied, "int4")
    assert manifest_of(copied)["made_with"] == {**made_with, "int4": f"torch {now}"}


def test_a_precision_that_costs_too_much_is_left_out_and_the_rest_is_as_it_was(copied, monkeypatch):
    monkeypatch.setitem(RECIPES, "int4", replace(RECIPES["int4"], most_cost=-0.9))
    before = contents(copied)
    report = add_precisions(copied, ["int8", "int4"])
    assert [(one.precision, one.replaced) for one in report.refused] == [("int4", False)]
    assert report.precisions() == ["fp32", "int8"]
    assert not list(copied.rglob("*int4*"))
    after = contents(copied)
    assert {name for name in before if after[name] != before[name]} == {"README.md", "manifest.json"}
    monkeypatch.undo()
    assert add_precisions(copied, "int4").refused == ()


def test_an_int8_cache_that_fails_in_the_new_precision_takes_no_other_along(part, tmp_path, monkeypatch):
    bundle = shutil.copytree(part, tmp_path / "bundle")
    monkeypatch.setattr(cache_scales, "LARGEST_CODE", 127 * 16)  # codes of 127 for values up to 16 times as large
    (refusal,) = add_precisions(bundle, "int4").refused
    assert refusal.precision == "int4"
    assert refusal.reason.startswith("its int8 keys and values fail: perplexity +")
    kinds = {(graph["kind"], graph["precision"]) for graph in manifest_of(bundle)["graphs"]}
    assert {("int8_cache", "fp32"), ("int8_cache", "int8")} <= kinds
    assert not any(precision == "int4" for _, precision in kinds)


def test_a_bundle_that_is_replaced_meanwhile_is_left_alone(copied, monkeypatch):
    work = export.addition.verify_bundle

    def meanwhile(*arguments):
        change(copied, source={**manifest_of(copied)["source"], "revision": "another"})
        return work(*arguments)

    monkeypatch.setattr(export.addition, "verify_bundle", meanwhile)
    with pytest.raises(ExportError, match="was replaced meanwhile and is left as it is; add to it again"):
        add_precisions(copied, "int4")
    assert manifest_of(copied)["source"]["revision"] == "another"
    assert not list(copied.rglob("*int4*"))


def test_a_file_that_was_changed_is_found_before_anything_is_made(copied):
    path = copied / "onnx" / "model.onnx_data"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(BundleError, match=r"model\.onnx_data was changed"):
        add_precisions(copied, "int4")


def test_a_report_that_cannot_be_read_is_named(copied):
    parity = manifest_of(copied)["parity"]
    del parity["tensors"]
    change(copied, parity=parity)
    with pytest.raises(BundleError, match=r"parity report of manifest\.json cannot be read .*export the bundle again"):
        add_precisions(copied, "int4")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--add", "int8"], 1, "{bundle} has int8 already; it has: fp32, int8"),
        (["--add", "int2"], 1, "precision must be among fp32, fp16, int8, int4, got 'int2'"),
        (["--add", "int4", "--force"], 2, "--force does not go with --add, as the bundle says how it was made"),
        (["--add", "int4", "gpt2"], 2, "CHECKPOINT does not go with --add, as the bundle says how it was made"),
        (["--add", "int4", "--cache", "int8"], 2, "--cache does not go with --add, as the bundle says how it was made"),
    ],
)
def test_bad_input_gets_one_line(part, arguments, code, message):
    before = contents(part)
    done = command(*arguments, "--output", part)
    assert (done.returncode, done.stdout) == (code, "")
    ending = " (see gpt2-onnx-export --help)" if code == 2 else ""
    assert done.stderr.splitlines()[-1] == f"gpt2-onnx-export: {message.format(bundle=part)}{ending}"
    assert contents(part) == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--output", "nowhere"], 1, "no bundle at nowhere; make one: python -m export CHECKPOINT --output nowhere"),
        (["--output", ""], 1, "--output must name a bundle's folder, got ''"),
        ([], 2, "the following arguments are required: --output (see gpt2-onnx-export --help)"),
    ],
)
def test_there_must_be_a_bundle(tmp_path, arguments, code, said):
    words = [sys.executable, "-m", "export", "--add", "int4", *arguments]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, f"gpt2-onnx-export: {said}")
    assert list(tmp_path.iterdir()) == []
