"""The decode graphs for CUDA as files: what goes in and out, in which order things happen, and their weights."""

import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from transformers import GPT2LMHeadModel

from export.bundle.writer import write_half_graph
from export.checkpoint import find_checkpoint
from export.parity.report import Refusal
from export.pipeline import export_bundle
from runtime.bundle.bundle import open_bundle

FLOAT, HALF, INT32, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64
NAMES = ("decode_cuda", "decode_fp16")
ADVANCING = ("position_ids", "seqlens_k", "log_indices")
ON_THE_HOST = {  # in whole or in part, or with an output whose size only a run can tell
    *("Shape", "Size", "Range", "Split", "Slice", "ConstantOfShape", "Expand", "Tile", "NonZero", "Compress", "Unique"),
    *("If", "Loop", "Scan", "SequenceAt", "TopK", "Pad", "Resize", "OneHot", "NonMaxSuppression"),
}


@pytest.fixture(scope="module")
def folder(bundle):
    return bundle / "onnx"


@pytest.fixture(scope="module")
def graphs(folder):
    return {name: onnx.load(folder / f"{name}.onnx", load_external_data=False) for name in NAMES}


@pytest.fixture(scope="module")
def original(novelist):
    return GPT2LMHeadModel.from_pretrained(novelist)


def described(values):
    """By name (kind of element, dimensions)."""
    found = {}
    for value in values:
        kind = value.type.tensor_type
        found[value.name] = kind.elem_type, [each.dim_param or each.dim_value for each in kind.shape.dim]
    return found


def caches(config, prefix, kind):
    shape = ["batch_size", config.n_head, "capacity", config.n_embd // config.n_head]
    return {f"{prefix}.{n}.{part}": (kind, shape) for n in range(config.n_layer) for part in ("key", "value")}


def ancestors(graph, tensor):
    """The tensors that `tensor` is computed of, by any way."""
    sources = {output: node.input for node in graph.node for output in node.output}
    found, open_ends = set(), [tensor]
    while open_ends:
        for name in sources.get(open_ends.pop(), ()):
            if name and name not in found:
                found.add(name)
                open_ends.append(name)
    return found


def readers(graph, tensor):
    return [node for node in graph.node if tensor in node.input]


@pytest.mark.parametrize(("name", "kind"), [("decode_cuda", FLOAT), ("decode_fp16", HALF)])
def test_ids_and_a_cache_go_in_and_come_out(graphs, original, name, kind):
    graph, config = graphs[name].graph, original.config
    ids = ["batch_size", "sequence_length"]
    assert described(graph.input) == {
        "input_ids": (INT64, ids),
        "position_ids": (INT64, ids),
        "seqlens_k": (INT32, ["batch_size"]),
        "total_sequence_length": (INT32, [1]),
        "logits_indices": (INT64, ["logits_count"]),
        "token_log": (INT64, ["log_size"]),
        "log_indices": (INT64, ["logits_count"]),
        **caches(config, "past_key_values", kind),
    }
    assert described(graph.output) == {
        "next_token": (INT64, ["logits_count", 1]),
        "logits": (FLOAT, ["logits_count", config.vocab_size]),
        "next_position_ids": (INT64, ids),
        "next_seqlens_k": (INT32, ["batch_size"]),
        "next_log_indices": (INT64, ["logits_count"]),
        "next_token_log": (INT64, ["log_size"]),
        **caches(config, "present", kind),
    }


@pytest.mark.parametrize(("name", "opset", "ir_version"), [("decode_cuda", 24, 11), ("decode_fp16", 18, 8)])
def test_the_versions_are_the_oldest_that_have_what_is_used(graphs, name, opset, ir_version):
    model = graphs[name]
    assert {each.domain: each.version for each in model.opset_import} == {"": opset, "com.microsoft": 1}
    assert model.ir_version == ir_version
    used = {node.op_type for node in model.graph.node if not node.domain}
    assert max(onnx.defs.get_schema(operator, opset).since_version for operator in used) == opset


@pytest.mark.parametrize("name", NAMES)
def test_the_standards_checker_passes_it(folder, tmp_path, name):
    """In a copy: it refuses weights with other hard links, as a test's bundle may have. Contrib operators it skips."""
    copy = shutil.copytree(folder, tmp_path / "onnx")
    onnx.checker.check_model(copy / f"{name}.onnx")


def test_no_node_of_the_float16_graph_runs_on_the_host(graphs):
    graph = graphs["decode_fp16"].graph
    assert not ON_THE_HOST & {node.op_type for node in graph.node}
    constants = {initializer.name for initializer in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape":  # reads its shape on the host
            assert node.input[1] in constants
    assert {node.op_type for node in readers(graph, "total_sequence_length")} == {"GroupQueryAttention"}


def test_only_the_logits_of_the_float16_graph_are_float32(graphs):
    graph = graphs["decode_fp16"].graph
    assert {each.data_type for each in graph.initializer} == {HALF, INT64}
    widened = {node.input[0] for node in graph.node if node.op_type == "Cast" and node.attribute[0].i == FLOAT}
    (product,) = (node for node in graph.node if "logits" in node.output)
    (rows,) = (node.output[0] for node in readers(graph, "logits_indices"))
    assert widened == {rows, "transformer.wte.weight"}
    assert ancestors(graph, product.input[0]) >= {rows}
    assert not widened & set(product.input)


# in which order things happen


@pytest.mark.parametrize("name", NAMES)
def test_every_advance_waits_for_the_log_and_the_log_for_the_token(graphs, name):
    graph = graphs[name].graph
    assert "next_token" in ancestors(graph, "next_token_log")
    for advancing in ADVANCING:
        assert {advancing, "next_token_log"} <= ancestors(graph, f"next_{advancing}")


@pytest.mark.parametrize("name", NAMES)
def test_whatever_reads_what_advances_has_run_before_it_is_written(graphs, name):
    """Reads are those nodes that do not write the advance themselves."""
    graph = graphs[name].graph
    before_token, before_log = ancestors(graph, "next_token"), ancestors(graph, "next_token_log")
    waits = {"input_ids": before_token, **dict.fromkeys(ADVANCING, before_log)}
    for tensor, before in waits.items():
        for node in readers(graph, tensor):
            if f"next_{tensor}" not in node.output and "next_token_log" not in node.output:
                assert before & set(node.output), (tensor, node.name)
    writers = {output: node for node in graph.node for output in node.output}
    for tensor in ADVANCING:
        assert list(writers[f"next_{tensor}"].input).count(tensor) == 1
    assert [node.output[0] for node in readers(graph, "token_log")] == ["next_token_log"]


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_is_written_where_it_is_read_and_before_the_token_is_known(graphs, original, name):
    graph = graphs[name].graph
    before = ancestors(graph, "next_token")
    for part in (past.removeprefix("past_key_values") for past in caches(original.config, "past_key_values", 0)):
        (writer,) = (node for node in graph.node if f"present{part}" in node.output)
        assert [node.name for node in readers(graph, f"past_key_values{part}") if node.op_type != "Shape"] == [
            writer.name
        ]
        assert before & set(writer.output)


# weights


def stored(folder, model):
    """By name, each initializer that lies in another file, read by its offset: (file, array)."""
    kinds, found = {FLOAT: np.float32, HALF: np.float16}, {}
    for each in model.graph.initializer:
        if each.data_location == TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in each.external_data}
            kind, path = kinds[each.data_type], folder / where["location"]
            array = np.fromfile(path, kind, int(np.prod(each.dims)), offset=int(where["offset"]))
            assert array.nbytes == int(where["length"])
            found[each.name] = where["location"], array.reshape(each.dims)
    return found


@pytest.mark.parametrize(
    ("name", "file", "kind"),
    [("decode_cuda", "model.onnx_data", np.float32), ("decode_fp16", "decode_fp16.onnx_data", np.float16)],
)
def test_weights_are_the_checkpoints_rounded(folder, graphs, original, name, file, kind):
    found, weights = stored(folder, graphs[name]), original.state_dict()
    assert found.keys() == weights.keys() - {"lm_head.weight"}  # which is wte
    for key, (place, array) in found.items():
        assert place == file
        assert array.dtype == kind
        assert np.array_equal(array, weights[key].numpy().astype(kind)), key


@pytest.mark.parametrize("name", NAMES)
def test_constants_in_the_graph_itself_are_small(graphs, name):
    for each in graphs[name].graph.initializer:
        assert each.data_location == TensorProto.EXTERNAL or np.prod(each.dims) <= 512


@pytest.fixture
def with_weight(seeded_checkpoint, tmp_path):
    """A checkpoint in which one weight is so large."""

    def make(name, value):
        folder = seeded_checkpoint(tmp_path / "checkpoint", n_layer=1)
        model = GPT2LMHeadModel.from_pretrained(folder)
        with torch.no_grad():
            model.get_parameter(name).view(-1)[5] = value
        model.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("transformer.h.0.mlp.c_fc.weight", 70_000.0, "70,000"),
        ("transformer.ln_f.bias", -123_456.0, "123,456"),
        ("transformer.wpe.weight", 65_536.0, "65,536"),
    ],
)
def test_weights_that_float16_does_not_hold_cost_the_bundle_fp16_alone(with_weight, tmp_path, name, value, said):
    bundle = tmp_path / "out" / "bundle"
    report = export_bundle(str(with_weight(name, value)), bundle, precisions=("fp32", "fp16"))
    assert report.passed
    assert report.refused == (Refusal("fp16", f"it holds weights up to 65,504, but the largest here is {said}"),)
    assert {graph.precision for graph in open_bundle(bundle).manifest.graphs} == {"fp32"}
    assert not list(bundle.rglob("*fp16*"))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("transformer.h.0.ln_2.weight", 60_000.0, r"PyTorch itself overflows in float16 on this checkpoint"),
        ("transformer.h.0.mlp.c_fc.bias", 60_000.0, r"the largest activation is 60,\d{3}, float16 holds 65,504 "),
    ],
)
def test_activations_that_float16_does_not_hold_cost_the_bundle_fp16_alone(with_weight, tmp_path, name, value, reason):
    report = export_bundle(str(with_weight(name, value)), tmp_path / "bundle", precisions="fp16")
    (refusal,) = report.refused
    assert report.passed
    assert refusal.precision == "fp16"
    assert re.match(reason, refusal.reason)
    assert {graph.precision for graph in open_bundle(tmp_path / "bundle").manifest.graphs} == {"fp32"}
    assert not list((tmp_path / "bundle").rglob("*fp16*"))


def test_the_largest_weight_that_float16_holds_is_written(with_weight, tmp_path):
    checkpoint = find_checkpoint(str(with_weight("transformer.ln_f.bias", -65_504.0)))
    (tmp_path / "bundle" / "onnx").mkdir(parents=True)
    graph = write_half_graph(checkpoint, tmp_path / "bundle")
    path = tmp_path / "bundle" / graph.path
    _, biases = stored(path.parent, onnx.load(path, load_external_data=False))["transformer.ln_f.bias"]
    assert biases[5] == -65_504
