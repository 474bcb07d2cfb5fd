"""What `verify` proves of int8 and int4 on the CPU: healthy graphs pass, and those that are wrong as kernels go do not.

Without VNNI, AVX2 adds two products of an unsigned and a signed byte in 16 bits, which saturate. Here a prefill graph
does so by nodes of its own, so that the proof is seen to find it on processors that do not.
"""

import hashlib
import json
import re
import shutil
from dataclasses import asdict

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from runtime.bundle.bundle import open_bundle
from runtime.cli.main import main
from runtime.graphs.kinds import runs
from runtime.proof.rounded import prove_rounded, read_standards

KINDS = {"int8": ["decode", "ragged", "prefill", "ragged_prefill"], "int4": ["decode", "ragged"]}
GRAPHS = [(kind, precision) for precision, kinds in KINDS.items() for kind in kinds]
CACHES = [("int8_cache", precision) for precision in ("fp32", "int8", "int4")] if runs("int8_cache") else []
SIXTEEN_BITS = (-(2.0**15), 2.0**15 - 1)


def saturating(node, most):
    """Nodes in the place of a MatMulIntegerToFloat, whose sums of two products are at most so large."""
    codes, weights, _, scales, zero = node.input
    name = node.name

    def add(operator, suffix, inputs, **settings):
        nodes.append(
            helper.make_node(operator, inputs, [f"{name}.limited.{suffix}"], f"{name}.limited.{suffix}", **settings)
        )
        return f"{name}.limited.{suffix}"

    def constant(suffix, values, kind):
        tensor = numpy_helper.from_array(np.array(values, kind))
        return add("Constant", suffix, [], value=tensor)

    nodes = []
    pairs, columns = constant("by_pairs", [0, -1, 2], np.int64), add("Cast", "floats", [weights], to=TensorProto.FLOAT)
    inputs = add("Cast", "inputs", [codes], to=TensorProto.FLOAT)
    inputs = add("Transpose", "input_pairs", [add("Reshape", "paired", [inputs, pairs])], perm=[1, 0, 2])
    rows = add("Transpose", "outputs", [columns], perm=[1, 0])
    rows = add("Transpose", "weight_pairs", [add("Reshape", "paired_weights", [rows, pairs])], perm=[1, 2, 0])
    ends = [constant(f"end_{n}", end, np.float32) for n, end in enumerate(most)]
    sums = add("Clip", "sums", [add("MatMul", "pair_sums", [inputs, rows]), *ends])
    first = constant("first_axis", [0], np.int64)
    total = add("ReduceSum", "total", [sums, first], keepdims=0)
    place = add("Cast", "place", [zero], to=TensorProto.FLOAT)
    offset = add("Mul", "zeros", [place, add("ReduceSum", "column_sums", [columns, first], keepdims=0)])
    scaled = add("Mul", "exact", [add("Sub", "less", [total, offset]), scales])
    nodes[-1].output[0] = node.output[0]
    assert scaled
    return nodes


@pytest.fixture
def with_sums(precise_bundle, tmp_path, monkeypatch):
    """A copy of the bundle whose prefill graph adds products of two bytes up to a limit, its manifest in order.

    No export writes such nodes, which take 400 MB, so the check of graphs would refuse them.
    """
    monkeypatch.setattr("runtime.bundle.bundle.check_graph", lambda *_: None)

    def make(most):
        folder = shutil.copytree(precise_bundle, tmp_path / "bundle")
        path = folder / "onnx" / "prefill_int8.onnx"
        proto = onnx.load(path, load_external_data=False)
        nodes = [
            new
            for node in proto.graph.node
            for new in (saturating(node, most) if node.op_type == "MatMulIntegerToFloat" else [node])
        ]
        assert len(nodes) > len(proto.graph.node)
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        path.write_bytes(content := proto.SerializeToString())
        change(folder, lambda manifest: manifest["files"].update({"onnx/prefill_int8.onnx": record(content)}))
        return folder

    return make


def record(content):
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def change(folder, do):
    manifest = json.loads((folder / "manifest.json").read_text())
    do(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def verify(monkeypatch, capfd):
    """(exit code, standard output, lines of standard error) of the command."""

    def run(folder, *options):
        monkeypatch.setattr("sys.argv", ["gpt2-onnx", "verify", "--model", str(folder), *options])
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = capfd.readouterr()
        return ended.value.code, output, errors.splitlines()

    return run


def proofs(folder):
    bundle = open_bundle(folder, verify=False)
    return {(proof.graph, name): proof for name in ("int8", "int4") for proof in prove_rounded(bundle, name)}


# what is noted


def test_the_text_is_long_enough_for_the_prefill_graph(precise_bundle):
    for standard in read_standards(open_bundle(precise_bundle, verify=False).manifest):
        assert len(standard.token_ids) == 160
        assert list(standard.pytorch_errors) == KINDS[standard.precision]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_truth_is_that_of_the_checkpoint_but_for_its_codes(precise, precise_bundle, precision):
    """By norms, which the sums tell to within an eighth: keys, values and centred logits of PyTorch."""
    standards = read_standards(open_bundle(precise_bundle, verify=False).manifest)
    (standard,) = [one for one in standards if one.precision == precision]
    with torch.no_grad():
        result = precise.truth(torch.tensor([standard.token_ids]), use_cache=True)
    logits = result.logits[0, -8:]
    truth = {"logits": logits - logits.mean(-1, keepdim=True)}
    for number, layer in enumerate(result.past_key_values.layers):
        truth |= {f"present.{number}.key": layer.keys, f"present.{number}.value": layer.values}
    assert standard.sketches.keys() == truth.keys()
    for name, array in truth.items():
        assert np.sqrt(np.mean(np.square(standard.sketches[name]))) == pytest.approx(float(array.norm()), rel=0.5)
        for noise in standard.pytorch_errors.values():
            assert 0.001 < noise[name] / float(array.norm()) < 0.04


# the verdict


def test_every_graph_passes_here(precise_bundle):
    found = proofs(precise_bundle)
    assert list(found) == GRAPHS
    for proof in found.values():
        assert proof.passed
        assert proof.allowed == 2
        assert 0.5 < proof.error <= 2  # what rounding costs, by any kernel, and no less
        assert proof.tokens == 160


def test_sums_that_saturate_in_the_prefill_graph_are_found(with_sums, verify):
    folder = with_sums(SIXTEEN_BITS)
    found = proofs(folder)
    assert not found["prefill", "int8"].passed
    assert found["prefill", "int8"].error > 2.5
    assert found["decode", "int8"].passed
    assert found["decode", "int4"].passed
    code, output, _ = verify(folder)
    assert code == 1
    assert "is NOT verified on cpu (" in output


def test_the_same_graph_with_room_for_its_sums_passes(with_sums):
    """So that it was the saturation that was found."""
    assert proofs(with_sums((-1e9, 1e9)))["prefill", "int8"].passed


# the command


def test_verify_names_the_processor_and_proves_every_graph_of_every_precision(precise_bundle, verify):
    code, output, errors = verify(precise_bundle)
    assert code == 0
    assert re.match(rf"{re.escape(str(precise_bundle))} is verified on cpu \(.+\): ", output)
    for graph, precision in GRAPHS:
        line = (
            rf"{graph} {precision}: keys, values and logits of 160 tokens as PyTorch's but for rounding, \d\.\d\d times"
        )
        assert re.search(line, output)
        assert any(re.match(rf"  {line}", error) for error in errors)
    assert "  integer products of extreme values: exact" in errors
    assert not any("NOT PROVED" in error for error in errors)


def test_verify_says_it_as_json(precise_bundle, verify):
    code, output, _ = verify(precise_bundle, "--json")
    found = json.loads(output)
    assert (code, found["passed"], found["device"], found["wrong_products"]) == (0, True, "cpu", [])
    assert found["runs_on"].startswith("cpu (")
    by_graph = {(graph["graph"], graph["precision"]): graph for graph in found["graphs"]}
    others = {("decode", "fp32"), ("decode", "fp16"), ("reference", "fp32"), ("lens", "fp32"), *CACHES}
    assert {*others, *GRAPHS} == set(by_graph)
    expected = proofs(precise_bundle)
    for key in GRAPHS:
        assert by_graph[key] == pytest.approx(asdict(expected[key]))


def test_a_bundle_made_before_is_verified_as_before_and_what_is_not_proved_is_said(precise_bundle, tmp_path, verify):
    folder = shutil.copytree(precise_bundle, tmp_path / "bundle")
    change(folder, lambda manifest: [manifest["parity"].pop(name) for name in ("rounded", "refused")])
    code, output, errors = verify(folder)
    assert code == 0
    assert "is verified on cpu" in output
    said = [line for line in errors if "NOT PROVED" in line]
    assert said == [
        f"  {precision}: NOT PROVED, as PyTorch's numbers for it are not in this bundle; a new export has them: "
        f"python -m export CHECKPOINT --precision {precision} --output DIR"
        for precision in ("int8", "int4")
    ]


def test_products_that_are_wrong_at_the_corners_fail_whatever_the_graphs_say(precise_bundle, verify, monkeypatch):
    monkeypatch.setattr("runtime.ort.corners.inexact_products", lambda: ["MatMulNBits of 4 bits: 4 instead of 8"])
    code, output, errors = verify(precise_bundle)
    assert code == 1
    assert "  integer products of extreme values: MatMulNBits of 4 bits: 4 instead of 8" in errors
    assert "is NOT verified on cpu" in output
    assert "MatMulNBits of 4 bits: 4 instead of 8; decode fp32" in output
