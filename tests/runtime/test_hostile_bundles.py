"""A bundle made by somebody who means harm, its hashes right: refused in one line, soon, and in little memory."""

import base64
import hashlib
import json
import os
import re
import struct
import sys
import textwrap

import pytest
from fakes import SERVED

import runtime
from runtime import BundleError
from runtime.bundle.architecture import count_parameters
from runtime.bundle.bundle import open_bundle
from runtime.inside.summary import summarize

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and /proc are Linux's")

LIMITED = """
    import resource, sys, time
    from pathlib import Path
    import numpy, tokenizers, runtime
    from runtime import BundleError
    from runtime.ort.install import load_onnxruntime

    load_onnxruntime()
    def peak():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    before, started = peak(), time.process_time()
    try:
        model = runtime.load(sys.argv[1], device="cpu", threads=1, slots=2)
        print("served", model.complete("It was", max_new_tokens=2).token_ids)
    except BundleError as error:
        assert len(str(error).splitlines()) == 1, error
        print(error)
    print(time.process_time() - started, peak() - before)
"""


@pytest.fixture
def told(bundle_copy, run_python):
    """What loading says, in a process of its own: BundleError in one line, in under a second and 200 MB."""

    def load() -> str:
        done = run_python("-c", textwrap.dedent(LIMITED), str(bundle_copy.folder))
        assert done.returncode == 0, done.stderr[-2000:]
        line, figures = done.stdout.splitlines()
        seconds, megabytes = map(float, figures.split())
        assert not line.startswith("served"), line
        assert (seconds < 1.0, megabytes < 200.0) == (True, True), f"{line}: {seconds:.2f} s, {megabytes:.0f} MB"
        return line

    return load


# JSON


@linux
@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "generation_config.json"])
def test_a_gigabyte_is_not_read(bundle_copy, told, name):
    bundle_copy.write(name, b"{")
    os.truncate(bundle_copy.folder / name, 2**30)
    if name != "manifest.json":
        with bundle_copy.changed_manifest() as manifest:
            manifest["files"][name] = {"size": 2**30, "sha256": "0" * 64}
    assert "more than" in told() or "larger than" in told()


JSON = {
    "nested": (b'{"a": ' + b"[" * 100_000, "nested too deeply|values"),
    "infinite": (b'{"a": 1e309}', "1e309"),
    "minus infinity": (b'{"a": -Infinity}', "-Infinity"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "twice": (b'{"schema_version": 1, "schema_version": 2}', "'schema_version' twice"),
    "thousands of digits": (b'{"schema_version": ' + b"9" * 100_000 + b"}", "cannot be read"),
    "a million of values": (b'{"a": [' + b"0," * 1_000_000 + b"0]}", "values|larger than"),
}


@linux
@pytest.mark.parametrize("kind", JSON)
@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "generation_config.json"])
def test_json_that_is_more_than_json(bundle_copy, told, name, kind):
    content, words = JSON[kind]
    if name == "manifest.json":
        bundle_copy.write(name, content)
    else:
        bundle_copy.replace(name, content)
    message = told()
    assert name in message
    assert re.search(words, message) or name == "tokenizer.json"


# the manifest


@linux
@pytest.mark.parametrize("name", ["n_layer", "n_positions", "vocab_size", "n_inner", "n_embd"])
@pytest.mark.parametrize("value", [10**5, 10**9, 2**62])
def test_sizes_that_no_file_explains_allocate_nothing(bundle_copy, told, name, value):
    with bundle_copy.changed_manifest() as manifest:
        manifest["architecture"][name] = value
    assert f"Architecture.{name}" in told() or "Architecture" in told()


def test_a_count_of_parameters_made_to_fit_is_held_against_the_files(bundle_copy, refusal):
    with bundle_copy.changed_manifest() as manifest:
        manifest["architecture"]["n_layer"] = 4000
        sizes = runtime.bundle.architecture.Architecture(**manifest["architecture"])
        manifest["architecture"]["parameters"] = count_parameters(sizes)
    assert "more than fit in" in refusal(BundleError, runtime.load, bundle_copy.folder)


def test_parameters_are_counted_as_the_summary_counts_them(bundle):
    architecture = open_bundle(bundle).manifest.architecture
    assert count_parameters(architecture) == summarize(architecture).total == architecture.parameters


@linux
@pytest.mark.parametrize("part", ["files", "graphs"])
def test_a_million_of_names(bundle_copy, told, part):
    with bundle_copy.changed_manifest() as manifest:
        record = {"size": 1, "sha256": "0" * 64}
        graph = {"path": "onnx/decode.onnx", "kind": "decode", "precision": "fp32"}
        many = {"files": {f"f{n}": record for n in range(10**5)}, "graphs": [graph] * 10**5}
        manifest[part] = many[part]
    assert "more than" in told()


@pytest.mark.parametrize("name", ["\u202egnp.exe", "a\u200bb", "a b", "tokenizer.json ", "é", "-rf", ".hidden", "a//b"])
def test_a_name_that_is_hard_to_see(bundle_copy, refusal, name):
    with bundle_copy.changed_manifest() as manifest:
        manifest["files"][name] = {"size": 1, "sha256": "0" * 64}
    assert "no name of a bundle's file" in refusal(BundleError, runtime.load, bundle_copy.folder)


@linux
@pytest.mark.parametrize("target", ["/etc/passwd", "/dev/zero", "../secret", "fifo", "folder"])
@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", "manifest.json"])
def test_what_is_no_file_of_the_bundle_is_not_opened(bundle_copy, told, name, target):
    (bundle_copy.folder.parent / "secret").write_bytes(bundle_copy.read(name))
    place = bundle_copy.folder / name
    place.unlink()
    if target == "fifo":
        os.mkfifo(place)
    elif target == "folder":
        place.mkdir()
    else:
        place.symlink_to(target)
    assert str(place) in told() or "not a bundle" in told()


def test_a_link_within_the_bundle_is_a_file_of_it(bundle_copy, probe):
    bundle_copy.write("tokenizer.real.json", bundle_copy.read("tokenizer.json"))
    (bundle_copy.folder / "tokenizer.json").unlink()
    (bundle_copy.folder / "tokenizer.json").symlink_to("tokenizer.real.json")
    model = runtime.load(bundle_copy.folder, device="cpu")
    assert model.complete(probe.prompt, max_new_tokens=3).token_ids == probe.token_ids[:3]


def test_a_file_that_is_not_listed_is_not_opened(bundle_copy, refusal):
    with bundle_copy.changed_manifest() as manifest:
        del manifest["files"]["tokenizer.json"]
    message = refusal(BundleError, runtime.load, bundle_copy.folder, device="cpu")
    assert "does not list tokenizer.json" in message


# the tokenizer


def change_tokenizer(copy, **parts):
    content = json.loads(copy.read("tokenizer.json"))
    model = {**content["model"], **parts.pop("model", {})}
    copy.replace("tokenizer.json", json.dumps({**content, **parts, "model": model}).encode())


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


HUGE = base64.b64encode(struct.pack("<I", 0xFFFFFFFC) + bytes(8)).decode()
TOKENIZERS = {
    "a Precompiled of 4 GB": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": HUGE}}, "'Precompiled'"),
    "a Precompiled of nothing": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}, "'Precompiled'"),
    "FixedLength": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "'FixedLength'"),
    "an empty pattern": ({"normalizer": replace({"String": ""}, "x")}, "the pattern ''"),
    "a pattern that matches nothing": ({"normalizer": replace({"Regex": "x?"}, "x")}, "the pattern 'x?'"),
    "a text doubled forty times": (
        {"normalizer": {"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * 30}},
        "times as long",
    ),
    "a sequence without an end": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 10_000}},
        "more than 32",
    ),
    "a regex that never ends": ({"pre_tokenizer": split("(a+)+$")}, "may not end"),
    "a regex that looks back": ({"pre_tokenizer": split(r"(?<=a)b\1")}, "may not end"),
    "dropout": ({"model": {"dropout": 0.1}}, "dropout of 0.1"),
    "an id beyond the vocabulary": ({"model": {"vocab": {"a": 2**31}, "merges": []}}, "2147483648"),
    "an id that is no number": ({"model": {"vocab": {"a": "1"}, "merges": []}}, "no integer"),
    "a token of a megabyte": ({"model": {"vocab": {"a" * 10**6: 1}, "merges": []}}, "1,000,000 characters"),
    "another model": ({"model": {"type": "Neural"}}, "'Neural'"),
    "a decoder that takes more than there is": (
        {"decoder": {"type": "Strip", "content": " ", "start": 0, "stop": 9}},
        "Strip",
    ),
    "a template of ids beyond the vocabulary": (
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [],
                "pair": [],
                "special_tokens": {"x": {"id": "x", "ids": [10**6], "tokens": ["x"]}},
            }
        },
        "1000000",
    ),
}


@linux
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_of_parts_that_are_not_read(bundle_copy, told, kind):
    parts, words = TOKENIZERS[kind]
    change_tokenizer(bundle_copy, **parts)
    message = told()
    assert str(bundle_copy.folder / "tokenizer.json") in message
    assert words in message


# graphs, written by hand in protobuf's wire format


def node(wire, operator, inputs, output, *attributes, domain=""):
    """NodeProto: input = 1, output = 2, op_type = 4, attribute = 5, domain = 7."""
    named = b"".join(wire.field(1, name.encode()) for name in inputs)
    rest = b"".join(wire.field(5, attribute) for attribute in attributes)
    return wire.field(
        1,
        named
        + wire.field(2, output.encode())
        + wire.field(4, operator.encode())
        + rest
        + wire.field(7, domain.encode()),
    )


def int64s(wire, name, *values):
    """TensorProto: dims = 1, data_type = 2 (INT64 = 7), name = 8, raw_data = 9."""
    raw = struct.pack(f"<{len(values)}q", *values)
    return wire.field(
        5, wire.integer(1, len(values)) + wire.integer(2, 7) + wire.field(8, name.encode()) + wire.field(9, raw)
    )


def added(content, wire, *parts):
    """The graph with nodes or constants put before its own."""
    from runtime.bundle.wire import fields

    found = b""
    for number, kind, payload in fields(memoryview(content)):
        if number == 7:
            found += wire.field(7, b"".join(parts) + bytes(payload))
        else:
            found += wire.tag(number, kind) + (wire.varint(len(payload)) if kind == 2 else b"") + bytes(payload)
    return found


BODY = b"\x12\x04body"  # GraphProto: name = 2
GRAPHS = {
    "a Loop of 2^62": lambda w: [
        int64s(w, "rounds", 2**62),
        node(
            w,
            "Loop",
            ["rounds", ""],
            "never",
            w.field(1, b"body") + w.field(6, BODY) + w.integer(20, 5),
        ),
    ],
    "8 GB of zeros": lambda w: [int64s(w, "size", 2**31), node(w, "ConstantOfShape", ["size"], "zeros")],
    "8 GB by Expand": lambda w: [int64s(w, "size", 2**31), node(w, "Expand", ["size", "size"], "wide")],
    "a Range of 2^62": lambda w: [
        int64s(w, "axis", 0),
        int64s(w, "end", 2**62),
        int64s(w, "step", 1),
        *(node(w, "Squeeze", [name, "axis"], f"{name} alone") for name in ("axis", "end", "step")),
        node(w, "Range", ["axis alone", "end alone", "step alone"], "all"),
    ],
    "what doubles sixty times": lambda w: [
        int64s(w, "x0", 1),
        *(
            node(w, "Concat", [f"x{n}", f"x{n}"], f"x{n + 1}", w.field(1, b"axis") + w.integer(3, 0) + w.integer(20, 2))
            for n in range(60)
        ),
    ],
    "products of all with all": lambda w: [
        int64s(w, "p0", *range(1, 50)),
        *(
            part
            for n in range(20)
            for part in (
                int64s(w, f"axis{n}", -1),
                node(w, "Unsqueeze", [f"p{n}", f"axis{n}"], f"column{n}"),
                node(w, "Mul", [f"column{n}", "p0"], f"p{n + 1}"),
            )
        ),
    ],
    "random numbers": lambda w: [node(w, "RandomNormal", [], "noise")],
    "another domain": lambda w: [node(w, "Identity", ["input_ids"], "same", domain="evil.example")],
    "an attribute that is not known": lambda w: [
        node(w, "Identity", ["input_ids"], "same", w.field(1, b"execute") + w.integer(3, 1) + w.integer(20, 2))
    ],
    "an index that is out of range": lambda w: [
        int64s(w, "far", 10**6),
        int64s(w, "few", 1, 2, 3),
        node(w, "Gather", ["few", "far"], "beyond"),
    ],
    "an output that is defined twice": lambda w: [
        node(w, "Identity", ["input_ids"], "same"),
        node(w, "Identity", ["input_ids"], "same"),
    ],
}


@linux
@pytest.mark.parametrize("kind", GRAPHS)
def test_a_graph_of_what_export_never_writes(bundle_copy, told, wire, kind):
    bundle_copy.replace(SERVED, added(bundle_copy.read(SERVED), wire, *GRAPHS[kind](wire)))
    assert str(bundle_copy.folder / SERVED) in told()


def test_a_graph_with_a_harmless_node_more_is_served(bundle_copy, wire, probe):
    """Or the tests above would pass whatever was added."""
    more = [int64s(wire, "one", 1), node(wire, "Identity", ["one"], "same")]
    bundle_copy.replace(SERVED, added(bundle_copy.read(SERVED), wire, *more))
    model = runtime.load(bundle_copy.folder, device="cpu")
    assert model.complete(probe.prompt, max_new_tokens=3).token_ids == probe.token_ids[:3]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x0aseqlens_k", b"\x0ainput_ids"),
        (b"past_key_values.0.key", b"past_key_values.0.kez"),
        (b"GroupQueryAttention", b"GroupQueryAttentiox"),
        (b"present.0.value", b"present.0.valuf"),
        (b"next_token", b"next_tokem"),
        (b"logits_indices", b"logits_indicez"),
    ],
)
def test_a_graph_whose_names_are_others(bundle_copy, refusal, old, new):
    content = bundle_copy.read(SERVED)
    assert old in content or old.startswith(b"\x0a")
    changed = content.replace(old, new, 1) if old in content else content.replace(old[1:], new[1:], 1)
    bundle_copy.replace(SERVED, changed)
    assert SERVED in refusal(BundleError, runtime.load, bundle_copy.folder, device="cpu")


# runs


def test_an_error_of_onnx_runtime_during_a_run_is_one_line_and_ends_one_line_of_a_batch(
    bundle_copy, tmp_path, cli_here, monkeypatch
):
    import onnxruntime

    run = onnxruntime.InferenceSession.run_with_iobinding
    calls = []

    def failing(session, binding, *options):
        calls.append(1)
        if len(calls) == 1:
            raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("Non-zero status\nand more")
        return run(session, binding, *options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", failing)
    jobs, output = tmp_path / "jobs.jsonl", tmp_path / "out.jsonl"
    jobs.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("It was", "He opened")))
    options = [
        "--model",
        str(bundle_copy.folder),
        "--output",
        str(output),
        "--batch-size",
        "1",
        "--max-new-tokens",
        "3",
    ]
    done = cli_here("batch", str(jobs), *options)
    assert done.returncode == 1, done.stderr
    first, second = map(json.loads, output.read_text().splitlines())
    assert "cannot be run on cpu: Non-zero status" in first["error"]
    assert second["token_ids"]


def test_weights_that_are_not_numbers_are_one_error_that_names_them(bundle_copy, refusal):
    name = "onnx/model.onnx_data"
    bundle_copy.replace(name, b"\xff" * len(bundle_copy.read(name)))
    model = runtime.load(bundle_copy.folder, device="cpu")
    for options in ({"temperature": 0.9}, {"temperature": 0.9, "top_p": 0.5}, {"num_beams": 2}, {"logprobs": 2}):
        message = refusal(ValueError, model.complete, "It was", max_new_tokens=3, **options)
        assert "the model's logits must be finite, got nan: are its weights damaged?" in message
    assert "logits must be finite" in refusal(ValueError, model.score, "It was a bright cold day")


# proofs


def test_probes_without_an_end(bundle_copy, refusal):
    with bundle_copy.changed_manifest() as manifest:
        greedy = manifest["parity"]["greedy"]
        greedy["probes"] = greedy["probes"][:1] * 500
    message = refusal(BundleError, open_bundle(bundle_copy.folder, verify=False).manifest.probes)
    assert "500" in message


@pytest.mark.parametrize("part", ["likelihoods", "lens"])
def test_an_error_of_pytorchs_that_would_prove_anything_is_not_believed(bundle_copy, cli_here, part):
    with bundle_copy.changed_manifest() as manifest:
        found = manifest["parity"][part]
        found["pytorch_errors"] = dict.fromkeys(found["pytorch_errors"], 1e300)
        found["logprobs"] = [[number - 0.02 for number in row] for row in found["logprobs"]]
    done = cli_here("verify", "--model", str(bundle_copy.folder), "--json")
    assert done.returncode == 1
    proofs = [one for one in json.loads(done.stdout)["graphs"] if one.get("allowed") == 0.01]
    assert proofs
    assert all(one["error"] > 0.01 for one in proofs)


def test_hashes_here_are_right(bundle_copy):
    """Or every test above would pass because of a hash."""
    bundle_copy.replace("README.md", b"other")
    manifest = json.loads(bundle_copy.read("manifest.json"))
    assert manifest["files"]["README.md"]["sha256"] == hashlib.sha256(b"other").hexdigest()
    runtime.load(bundle_copy.folder, device="cpu")
