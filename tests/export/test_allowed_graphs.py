"""The runtime lets every graph through that export writes, by either tracer: test_export5.py runs this too."""

import onnx
import pytest
from transformers import GPT2Config

from export.architecture import ACTIVATIONS, describe
from export.graphs.decode import DecodeGraph
from export.graphs.device import Float32Graph
from export.graphs.linear import FloatLinear
from export.graphs.nodes import write_graph
from export.graphs.ragged import RaggedGraph
from export.graphs.reference import build_reference_graph
from export.weights import write_weights
from runtime.bundle.architecture import count_parameters
from runtime.bundle.bundle import open_bundle
from runtime.bundle.graph_check import check_graph
from runtime.bundle.onnx_model import read_model
from runtime.bundle.operators import RULES

KINDS = ("gelu_new", "gelu", "relu", "tanh", "silu")  # one for each node that computes an activation function


def operators(path):
    """The operators of a graph and their attributes, as the onnx package reads them."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return {(node.domain, node.op_type, name) for node in nodes for name in ("", *(a.name for a in node.attribute))}


def allowed():
    return {(domain, kind, name) for domain in RULES for kind in RULES[domain] for name in named(domain, kind)}


def named(domain, kind):
    return ("", *RULES[domain][kind].attributes)


def test_the_bundles_graphs_are_let_through(bundle):
    check_all(bundle, 6)


def test_graphs_of_every_precision_are_let_through(precise_bundle):
    check_all(precise_bundle, 12)


def check_all(folder, least):
    bundle = open_bundle(folder)
    paths = [bundle.graph_path(graph.kind, graph.precision) for graph in bundle.manifest.graphs]
    assert len(paths) > least
    for path in paths:
        assert operators(path) <= allowed(), path


def test_each_graph_is_read_as_the_onnx_package_reads_it(bundle):
    for path in sorted(bundle.glob("onnx/*.onnx")):
        theirs, ours = onnx.load(path, load_external_data=False), read_model(path.read_bytes())
        assert [(n.op_type, n.domain, list(n.input), list(n.output)) for n in theirs.graph.node] == [
            (n.operator, n.domain, n.inputs, n.outputs) for n in ours.nodes
        ]
        assert [(t.name, tuple(t.dims)) for t in theirs.graph.initializer] == [
            (t.name, t.shape) for t in ours.constants
        ]
        assert [value.name for value in theirs.graph.input] == list(ours.inputs)
        assert [value.name for value in theirs.graph.output] == list(ours.outputs)
        assert {o.domain: o.version for o in theirs.opset_import} == ours.opsets


def test_the_activation_functions_here_stand_for_all():
    assert {ACTIVATIONS[kind] for kind in KINDS} == {*ACTIVATIONS.values()}


@pytest.mark.parametrize("settings", [{"activation_function": kind} for kind in KINDS] + [
    {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    {"scale_attn_weights": False},
    {"tie_word_embeddings": False},
    {"n_inner": 24, "n_layer": 1},
], ids=str)  # fmt: skip
def test_graphs_of_every_kind_of_config_are_let_through(seeded_checkpoint, tmp_path, settings):
    import torch
    from transformers import GPT2LMHeadModel

    folder = seeded_checkpoint(tmp_path / "checkpoint", **{"n_layer": 2, **settings})
    config = GPT2Config.from_pretrained(folder, attn_implementation="eager")
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    tensors = dict(model.named_parameters())
    weights = write_weights({name: tensor.detach() for name, tensor in tensors.items()}, tmp_path / "model.onnx_data")
    architecture = describe(config, model.num_parameters())
    assert count_parameters(architecture) == architecture.parameters
    build_reference_graph(config, weights, tmp_path / "model.onnx")
    for kind in (DecodeGraph, RaggedGraph, Float32Graph):
        write_graph(kind(config, FloatLinear()), weights, tmp_path / f"{kind.name}{kind.opset}.onnx")
    size = (tmp_path / "model.onnx_data").stat().st_size
    for path in tmp_path.glob("*.onnx"):
        assert operators(path) <= allowed(), path
        check_graph(path, architecture, {"model.onnx_data": size})
