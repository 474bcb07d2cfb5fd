"""Whatever is wrong is said in one line that names it."""

import json

import pytest
from fakes import SERVED

import runtime
from runtime import BundleError

WEIGHTS = "onnx/model.onnx_data"


@pytest.fixture
def load_error(bundle_copy, refusal):
    """What loading the damaged bundle says."""
    return lambda **options: refusal(BundleError, runtime.load, bundle_copy.folder, **options)


@pytest.fixture
def manifest_error(bundle_copy, load_error):
    """What loading says after a change to the manifest; the line names the file."""

    def change(edit):
        with bundle_copy.changed_manifest() as manifest:
            edit(manifest)
        message = load_error()
        assert "manifest.json" in message
        return message

    return change


# no bundle there


def test_a_model_that_does_not_exist(tmp_path, refusal):
    message = refusal(BundleError, runtime.load, tmp_path / "nothing")
    assert str(tmp_path / "nothing") in message
    assert "no bundle" in message
    assert "python -m export" in message


def test_a_folder_that_is_no_bundle(tmp_path, refusal):
    message = refusal(BundleError, runtime.load, tmp_path)
    assert str(tmp_path) in message
    assert "not a bundle" in message
    assert "python -m export" in message


def test_a_checkpoint_instead_of_its_bundle(tmp_path, refusal):
    (tmp_path / "config.json").write_text("{}")
    message = refusal(BundleError, runtime.load, tmp_path)
    assert "checkpoint" in message
    assert f"python -m export {tmp_path}" in message


def test_a_file_instead_of_a_folder(tmp_path, refusal):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"")
    message = refusal(BundleError, runtime.load, file)
    assert str(file) in message
    assert "not a bundle" in message


def test_a_name_too_long_for_any_file_system(refusal):
    assert "xxx" in refusal(BundleError, runtime.load, "x" * 5000)


def test_the_home_of_a_user_who_does_not_exist(refusal):
    assert "~nobody-of-this-name" in refusal(BundleError, runtime.load, "~nobody-of-this-name/model")


@pytest.mark.parametrize("path", [3, 1.5, b"model", ["model"]], ids=repr)
def test_a_model_that_is_no_path(refusal, path):
    refusal(TypeError, runtime.load, path)


# files that are not as they were


def test_a_weights_file_that_was_cut_short(bundle_copy, load_error, manifest):
    whole = manifest["files"][WEIGHTS]["size"]
    bundle_copy.write(WEIGHTS, bundle_copy.read(WEIGHTS)[:-1])
    for verify in (True, False):
        message = load_error(verify=verify)
        assert str(bundle_copy.folder / WEIGHTS) in message
        assert f"{whole:,}" in message
        assert f"{whole - 1:,}" in message


def test_one_byte_of_the_weights_changed(bundle_copy, load_error, manifest):
    bundle_copy.flip_byte(WEIGHTS)
    message = load_error()
    assert str(bundle_copy.folder / WEIGHTS) in message
    assert "SHA-256" in message
    assert manifest["files"][WEIGHTS]["sha256"][:12] in message


def test_one_byte_of_the_weights_changed_and_no_wish_to_know(bundle_copy):
    bundle_copy.flip_byte(WEIGHTS)
    model = runtime.load(bundle_copy.folder, verify=False)
    assert len(model.complete("It", max_new_tokens=3).token_ids) in (1, 2, 3)


def test_any_file_of_the_manifest_may_be_the_changed_one(bundle_copy, load_error, manifest):
    for name in manifest["files"]:
        if name.endswith(("_fp16.onnx_data", "_int8.onnx_data", "_int4.onnx_data")):
            continue  # weights that this load does not read
        whole = bundle_copy.read(name)
        bundle_copy.flip_byte(name)
        assert str(bundle_copy.folder / name) in load_error()
        bundle_copy.write(name, whole)
    runtime.load(bundle_copy.folder)


def test_any_file_of_the_manifest_may_be_missing(bundle_copy, load_error, manifest):
    for name in manifest["files"]:
        whole = bundle_copy.read(name)
        (bundle_copy.folder / name).unlink()
        message = load_error(verify=False)
        assert str(bundle_copy.folder / name) in message
        assert "missing" in message
        bundle_copy.write(name, whole)


def test_a_file_that_the_manifest_does_not_know_is_nobodys_concern(bundle_copy, probe):
    (bundle_copy.folder / "notes.txt").write_text("mine")
    model = runtime.load(bundle_copy.folder)
    assert model.complete(probe.prompt, max_new_tokens=3).token_ids == probe.token_ids[:3]


# the manifest


def test_a_manifest_of_a_newer_release(manifest_error):
    message = manifest_error(lambda manifest: manifest.update(schema_version=2))
    assert "schema_version 2" in message
    assert "pip install --upgrade gpt2-onnx" in message


@pytest.mark.parametrize("version", [None, 0, -1, 1.0, "1", True, [1]], ids=repr)
def test_a_manifest_with_a_version_that_cannot_be(manifest_error, version):
    message = manifest_error(lambda manifest: manifest.update(schema_version=version))
    assert "schema_version" in message
    assert repr(version) in message


def test_a_manifest_of_a_later_export_with_more_in_it_is_read(bundle_copy, probe):
    with bundle_copy.changed_manifest() as manifest:
        manifest["novelty"] = {"a": 1}
        manifest["architecture"]["novelty"] = 1
        manifest["files"][WEIGHTS]["novelty"] = 1
    model = runtime.load(bundle_copy.folder)
    assert model.complete(probe.prompt, max_new_tokens=3).token_ids == probe.token_ids[:3]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"not JSON", b"\xff\xfe\x00", b"[]", b"3", b"null", b'"text"', b"[" * 200_000],
    ids=["empty", "half", "text", "no UTF-8", "list", "number", "null", "string", "endless"],
)
def test_a_manifest_that_is_no_json_object(bundle_copy, load_error, content):
    bundle_copy.write("manifest.json", content)
    assert str(bundle_copy.folder / "manifest.json") in load_error()


@pytest.mark.parametrize("name", ["source", "architecture", "graphs", "files", "made_with", "parity"])
def test_a_manifest_that_lacks_a_part(manifest_error, name):
    assert name in manifest_error(lambda manifest: manifest.pop(name))


@pytest.mark.parametrize("value", [None, "text"], ids=repr)
@pytest.mark.parametrize("name", ["source", "architecture", "graphs", "files", "made_with", "parity"])
def test_a_manifest_with_a_part_of_another_type(manifest_error, name, value):
    assert name in manifest_error(lambda manifest: manifest.update({name: value}))


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("architecture", "n_layer", "6"),
        ("architecture", "n_positions", 512.0),
        ("architecture", "n_head", True),
        ("architecture", "vocab_size", None),
        ("architecture", "tie_word_embeddings", 1),
        ("architecture", "activation_function", 1),
        ("source", "id", 3),
        ("source", "weights_sha256", None),
    ],
)
def test_a_manifest_with_a_value_of_another_type(manifest_error, part, name, value):
    message = manifest_error(lambda manifest: manifest[part].update({name: value}))
    assert name in message
    assert repr(value) in message


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_layer", 0), ("n_layer", -4), ("n_head", 0), ("n_embd", 0), ("n_positions", 0), ("vocab_size", 0)],
)
def test_a_manifest_with_a_number_that_cannot_be(manifest_error, name, value):
    message = manifest_error(lambda manifest: manifest["architecture"].update({name: value}))
    assert name in message
    assert str(value) in message


@pytest.mark.parametrize("name", ["n_layer", "n_head", "vocab_size"])
def test_an_architecture_that_is_not_the_graphs(bundle_copy, load_error, name):
    """No hash covers the manifest itself, so a slip in it would come up in the middle of a completion."""
    with bundle_copy.changed_manifest() as manifest:
        manifest["architecture"][name] *= 2
    load_error()


@pytest.mark.parametrize(
    "record",
    [None, 3, [], {}, {"size": 3}, {"sha256": "0"}, {"size": "3", "sha256": "0"}, {"size": 3, "sha256": 0}],
    ids=repr,
)
def test_a_manifest_with_a_file_record_that_is_none(manifest_error, record):
    manifest_error(lambda manifest: manifest["files"].update({"README.md": record}))


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/passwd",
        "onnx/../../x",
        "..",
        ".",
        "",
        "..\\x",
        "C:\\x",
        "C:x",
        "\\\\server\\x",
    ],
    ids=repr,
)
def test_a_manifest_with_a_file_outside_the_bundle(manifest_error, path):
    record = {"size": 1, "sha256": "0" * 64}
    message = manifest_error(lambda manifest: manifest["files"].update({path: record}))
    assert repr(path) in message
    assert "outside the bundle" in message


def test_a_file_name_that_no_file_system_takes(bundle_copy, load_error):
    with bundle_copy.changed_manifest() as manifest:
        manifest["files"]["a\0b"] = {"size": 1, "sha256": "0" * 64}
    assert str(bundle_copy.folder) in load_error()


def test_a_graph_that_is_not_among_the_files(manifest_error):
    graph = {"path": "onnx/other.onnx", "kind": "decode", "precision": "fp32"}
    assert "onnx/other.onnx" in manifest_error(lambda manifest: manifest["graphs"].append(graph))


def test_a_bundle_without_a_decode_graph(bundle_copy, load_error):
    with bundle_copy.changed_manifest() as manifest:
        manifest["graphs"] = [graph for graph in manifest["graphs"] if graph["kind"] not in ("decode", "ragged")]
    message = load_error()
    assert "no decode graph" in message
    assert "reference fp32" in message


# graphs


@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", "../../secret", "../onnx/../../secret", "other.bin", ".", ""],
    ids=repr,
)
def test_a_graph_that_reads_weights_from_outside_the_bundle(bundle_copy, load_error, wire, location):
    (bundle_copy.folder.parent / "secret").write_bytes(bytes(8))
    (bundle_copy.folder / "secret").write_bytes(bytes(8))
    (bundle_copy.folder / "onnx" / "other.bin").write_bytes(bytes(8))
    bundle_copy.replace(SERVED, wire.model(wire.field(5, wire.stored_in(location))))
    message = load_error()
    assert str(bundle_copy.folder / SERVED) in message
    assert repr(location) in message


def test_a_graph_that_reads_weights_from_a_file_of_the_bundle_gets_past_that_check(bundle_copy, load_error, wire):
    bundle_copy.replace(SERVED, wire.model(wire.field(5, wire.stored_in("model.onnx_data"))))
    assert "reads weights" not in load_error()  # it is no GPT-2, which ONNX Runtime says


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"no graph", b"\xff" * 1000, b"\x80" * 1000, b"{}", bytes(range(256)) * 4],
    ids=["empty", "zero", "text", "0xFF", "0x80", "JSON", "all bytes"],
)
def test_a_graph_file_of_garbage(bundle_copy, load_error, content):
    bundle_copy.replace(SERVED, content)
    assert str(bundle_copy.folder / SERVED) in load_error()


def test_a_graph_file_that_was_cut_short(bundle_copy, load_error):
    whole = bundle_copy.read(SERVED)
    bundle_copy.replace(SERVED, whole[: len(whole) // 2])
    assert str(bundle_copy.folder / SERVED) in load_error()


def test_a_valid_graph_that_is_no_gpt2(bundle_copy, load_error, wire):
    type_of = wire.field(1, wire.integer(1, 1) + wire.field(2, wire.field(1, wire.integer(1, 2))))
    node = wire.field(1, b"weight") + wire.field(2, b"y") + wire.field(4, b"Identity")
    tensor = wire.integer(1, 2) + wire.integer(2, 1) + wire.field(8, b"weight") + wire.field(9, bytes(8))
    output = wire.field(1, b"y") + wire.field(2, type_of)
    graph = wire.field(1, node) + wire.field(2, b"g") + wire.field(5, tensor) + wire.field(12, output)
    bundle_copy.replace(SERVED, wire.model(graph))
    assert str(bundle_copy.folder / SERVED) in load_error()


# the other files


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\xfe", b'{"model":\n3}'], ids=repr)
def test_a_tokenizer_that_is_none(bundle_copy, load_error, content):
    bundle_copy.replace("tokenizer.json", content)
    message = load_error()
    assert str(bundle_copy.folder / "tokenizer.json") in message
    assert "tokenizer" in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"], ids=repr)
def test_a_generation_config_that_is_none(bundle_copy, load_error, content):
    bundle_copy.replace("generation_config.json", content)
    assert str(bundle_copy.folder / "generation_config.json") in load_error()


def test_config_json_speaks_where_generation_config_is_silent(bundle_copy, probe):
    config = json.loads(bundle_copy.read("config.json")) | {"eos_token_id": probe.token_ids[0]}
    bundle_copy.replace("config.json", json.dumps(config).encode())
    bundle_copy.replace("generation_config.json", b"{}")
    assert runtime.load(bundle_copy.folder).complete(probe.prompt).finish_reason == "stop"


# what a caller passes


@pytest.mark.parametrize("count", [0, -1, -(10**20)])
def test_max_new_tokens_out_of_its_range(model, bundle, refusal, count):
    for call, options in ((model.complete, {}), (runtime.complete, {"model": bundle})):
        message = refusal(ValueError, call, "x", max_new_tokens=count, **options)
        assert "max_new_tokens" in message
        assert "at least 1" in message
        assert str(count) in message


@pytest.mark.parametrize("count", [True, False, 1.5, 8.0, "8", None, [8]], ids=repr)
def test_max_new_tokens_of_another_type(model, refusal, count):
    message = refusal(TypeError, model.complete, "x", max_new_tokens=count)
    assert "max_new_tokens" in message
    assert "integer of at least 1" in message
    assert repr(count) in message


@pytest.mark.parametrize("prompt", [None, b"It was", 3, 1.5, {"It was"}, {"It": "was"}], ids=repr)
def test_a_prompt_that_is_no_string(model, refusal, prompt):
    message = refusal(TypeError, model.complete, prompt)
    assert "prompt" in message
    assert "string" in message
    assert type(prompt).__name__ in message


@pytest.mark.parametrize(
    ("prompt", "code", "position"), [("\ud800", "U+D800", 0), ("ab\udfff", "U+DFFF", 2), ("\ude00\ud83d", "U+DE00", 0)]
)
def test_a_lone_surrogate(model, refusal, prompt, code, position):
    message = refusal(ValueError, model.complete, prompt)
    assert "prompt" in message
    assert code in message
    assert f"position {position}" in message
