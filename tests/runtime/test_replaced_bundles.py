"""What becomes of a loaded model when its bundle is moved, replaced or written over, or the current folder changes."""

import ctypes
import mmap
import os
import shutil
import sys
import textwrap
import time
from pathlib import Path

import pytest
from fakes import SERVED

import runtime
import runtime.graphs.decode
from runtime import BundleError
from runtime.ort.own_pages import own_pages

WEIGHTS = "onnx/model.onnx_data"
MAPS = Path("/proc/self/maps")
LONG = " the" * 150  # over the 128 ids from which on a prompt is read by the prefill graph


@pytest.fixture
def prefilling(bundle_copy):
    """A bundle with a prefill graph beside the decode graph, which is opened by the first long prompt."""
    bundle_copy.replace("onnx/prefill.onnx", bundle_copy.read(SERVED))
    with bundle_copy.changed_manifest() as manifest:
        manifest["graphs"].append({"path": "onnx/prefill.onnx", "kind": "prefill", "precision": "fp32"})
    return bundle_copy


@pytest.fixture
def other(prefilling, tmp_path):
    """Another bundle of the same sizes: other weights, whose hashes its manifest has."""
    folder = shutil.copytree(prefilling.folder, tmp_path / "other")
    made = type(prefilling)(folder, tmp_path / "other one")
    content = bytearray(made.read(WEIGHTS))
    content[: len(content) // 2] = content[: len(content) // 2][::-1]
    made.replace(WEIGHTS, bytes(content))
    return made


LATER = {
    "inspect": lambda model: model.inspect("It was").logits.tolist(),
    "lens": lambda model: model.lens("It was").ranks.tolist(),
    "prefill": lambda model: model.complete(LONG, max_new_tokens=3).token_ids,
}


@pytest.fixture(scope="session")
def expected(model):
    """What a model says whose files are left alone."""
    return {name: later(model) for name, later in LATER.items()}


def load(folder, **options):
    return runtime.load(folder, device="cpu", threads=1, **options)


@pytest.mark.parametrize("later", LATER)
def test_the_current_folder_may_change(prefilling, expected, monkeypatch, tmp_path, later):
    monkeypatch.chdir(prefilling.folder.parent)
    model = load(prefilling.folder.name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert LATER[later](model) == expected[later]


@pytest.mark.parametrize("later", LATER)
def test_a_link_may_be_switched(prefilling, other, expected, tmp_path, later):
    link = tmp_path / "current"
    link.symlink_to(prefilling.folder)
    model = load(link)
    link.unlink()
    link.symlink_to(other.folder)
    assert LATER[later](model) == expected[later]
    assert LATER["inspect"](load(link)) != expected["inspect"]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("later", LATER)
def test_another_bundle_in_its_place_is_never_taken_for_it(prefilling, other, refusal, probe, later, verify):
    model = load(prefilling.folder, verify=verify)
    prefilling.folder.rename(prefilling.folder.with_name("before"))
    other.folder.rename(prefilling.folder)
    message = refusal(BundleError, LATER[later], model)
    assert f"{prefilling.folder / WEIGHTS} was replaced since" in message
    assert f"runtime.load('{prefilling.folder}')" in message
    assert model.complete(probe.prompt, max_new_tokens=8).token_ids == probe.token_ids[:8]


@pytest.mark.parametrize("graph", ["model", "lens", "prefill"])
def test_another_graph_in_its_place_is_not_even_parsed(prefilling, refusal, graph):
    model = load(prefilling.folder)
    prefilling.write(f"onnx/{graph}.onnx", bytes((prefilling.folder / f"onnx/{graph}.onnx").stat().st_size))
    later = {"model": "inspect", "lens": "lens", "prefill": "prefill"}[graph]
    assert f"{graph}.onnx was replaced since" in refusal(BundleError, LATER[later], model)


@pytest.mark.parametrize("later", LATER)
def test_a_bundle_that_is_gone(prefilling, refusal, later):
    model = load(prefilling.folder)
    prefilling.folder.rename(prefilling.folder.with_name("before"))
    assert "is gone since" in refusal(BundleError, LATER[later], model)


@pytest.mark.parametrize("later", LATER)
def test_a_copy_in_its_place_is_as_good(prefilling, expected, tmp_path, later):
    model = load(prefilling.folder)
    prefilling.folder.rename(tmp_path / "before")
    shutil.copytree(tmp_path / "before", prefilling.folder, copy_function=shutil.copyfile)
    assert LATER[later](model) == expected[later]


def test_what_is_replaced_while_it_is_opened_is_refused(prefilling, other, refusal, monkeypatch):
    model, make = load(prefilling.folder), runtime.graphs.decode.make_session

    def replaced_meanwhile(path, **options):
        made = make(path, **options)
        prefilling.write(WEIGHTS, other.read(WEIGHTS))
        return made

    monkeypatch.setattr(runtime.graphs.decode, "make_session", replaced_meanwhile)
    assert "was replaced since" in refusal(BundleError, LATER["prefill"], model)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["tokenizer.json", SERVED, WEIGHTS])
def test_a_bundle_that_is_replaced_while_it_is_loaded_is_refused(prefilling, refusal, monkeypatch, name, verify):
    make = runtime.graphs.decode.make_session

    def replaced_meanwhile(path, **options):
        made = make(path, **options)
        prefilling.flip_byte(name)
        return made

    monkeypatch.setattr(runtime.graphs.decode, "make_session", replaced_meanwhile)
    message = refusal(BundleError, load, prefilling.folder, verify=verify)
    assert str(prefilling.folder / name) in message


def test_complete_goes_over_to_the_bundle_that_was_put_in_the_place_of_the_first(prefilling, other, probe, caplog):
    caplog.set_level("INFO", "runtime")
    options = {"model": prefilling.folder, "device": "cpu", "max_new_tokens": 8}
    assert runtime.complete(probe.prompt, **options).token_ids == probe.token_ids[:8]
    prefilling.folder.rename(prefilling.folder.with_name("before"))
    assert runtime.complete(probe.prompt, **options).token_ids == probe.token_ids[:8]  # nothing is there to go over to
    other.folder.rename(prefilling.folder)
    found = runtime.complete(probe.prompt, **options).token_ids
    assert found == load(prefilling.folder).complete(probe.prompt, max_new_tokens=8).token_ids != probe.token_ids[:8]
    assert any("was replaced" in message for message in caplog.messages)


def test_a_link_to_a_manifest_does_not_replace_it_and_another_content_with_the_same_time_does(prefilling):
    bundle = load(prefilling.folder).bundle
    manifest = prefilling.folder / "manifest.json"
    time.sleep(0.02)  # file systems count the time of a change in steps of some milliseconds
    (prefilling.folder.parent / "link").hardlink_to(manifest)
    assert not bundle.has_successor()
    before, content = manifest.stat(), manifest.read_bytes()
    for other in (content.replace(b'"fp32"', b'"fp16"'), b" " * len(content)):
        manifest.write_bytes(other)
        os.utime(manifest, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert bundle.has_successor()


OVERWRITE = """
    import json, os, sys
    from pathlib import Path
    import runtime

    model = runtime.load(sys.argv[1], device="cpu", threads=1, precision=sys.argv[2])
    for weights in Path(sys.argv[1], "onnx").glob("*_data"):
        size = weights.stat().st_size
        with weights.open("wb") as file:  # as cp does: the same file, emptied
            if sys.argv[3] == "written over":
                file.write(bytes(size))
    print(json.dumps(model.complete(sys.argv[4], max_new_tokens=20).token_ids))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere weights stay mapped from their file")
@pytest.mark.parametrize("how", ["written over", "emptied"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_checked_model_does_not_depend_on_what_is_written_into_its_files(
    bundle, model, probe, run_python, tmp_path, precision, how
):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    done = run_python("-c", textwrap.dedent(OVERWRITE), str(copy), precision, how, probe.prompt)
    assert done.returncode == 0, (done.returncode, done.stderr)
    expected = model if precision == "fp32" else load(bundle, precision=precision)
    assert done.stdout.strip() == str(list(expected.complete(probe.prompt, max_new_tokens=20).token_ids))


@pytest.mark.skipif(not MAPS.exists(), reason="this system shows no table of what is mapped")
def test_weights_are_taken_out_of_their_file_where_they_are_checked(bundle_copy):
    def mapped():
        return [line for line in MAPS.read_text().splitlines() if str(bundle_copy.folder) in line]

    kept = [load(bundle_copy.folder, verify=False)]
    assert mapped()  # or this test would see nothing
    kept.clear()
    assert not mapped()
    kept.append(load(bundle_copy.folder))
    assert not mapped()


@pytest.mark.skipif(not MAPS.exists(), reason="this system shows no table of what is mapped")
def test_an_address_that_another_file_had_before_is_no_reason_to_leave_a_file_mapped(tmp_path):
    """As where the collector frees a session while another is made, whose weights then come to its addresses."""
    size, private, fixed, rights = mmap.PAGESIZE, mmap.MAP_PRIVATE, 0x10, mmap.PROT_READ | mmap.PROT_WRITE
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    one, other = tmp_path / "one", tmp_path / "other"
    for file, content in ((one, b"1"), (other, b"2")):
        file.write_bytes(content * size)
    with one.open() as first, other.open() as second:
        address = libc.mmap(None, ctypes.c_size_t(size), rights, private, first.fileno(), ctypes.c_long(0))
        with own_pages([other]):
            at = ctypes.c_void_p(address)
            libc.mmap(at, ctypes.c_size_t(size), rights, private | fixed, second.fileno(), ctypes.c_long(0))
            assert str(other) in MAPS.read_text()
    try:
        assert str(other) not in MAPS.read_text()
        assert ctypes.string_at(address, size) == b"2" * size
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
