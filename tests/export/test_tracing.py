"""The reference graph's contract, which both tracers keep; and what is said where neither can be had."""

import io
import json
from contextlib import redirect_stdout

import onnx
import pytest
import transformers
from transformers import GPT2Config

from export.errors import ExportError
from export.graphs.tracing import choice
from export.graphs.tracing.choice import find_tracer
from export.pipeline import export_bundle

INT64, FLOAT = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
BOTH = r'pip install "gpt2-onnx\[export5,cpu\]" .* or pip install "gpt2-onnx\[export,cpu\]" \(optimum\)'


@pytest.fixture(scope="module")
def reference(bundle):
    return onnx.load(bundle / "onnx" / "model.onnx", load_external_data=False)


def described(values):
    """(name, element type, shape) of each."""
    types = {value.name: value.type.tensor_type for value in values}
    return [
        (name, found.elem_type, tuple(dim.dim_param or dim.dim_value for dim in found.shape.dim))
        for name, found in types.items()
    ]


def test_inputs_and_outputs_have_these_names_types_and_shapes_in_this_order(reference):
    """Of the shipped checkpoint: 6 layers, 4 heads of 64, 8,192 tokens."""
    new, whole = "sequence_length", "past_sequence_length + sequence_length"
    cached = [f"{n}.{part}" for n in range(6) for part in ("key", "value")]
    assert described(reference.graph.input) == [
        ("input_ids", INT64, ("batch_size", new)),
        *((f"past_key_values.{name}", FLOAT, ("batch_size", 4, "past_sequence_length", 64)) for name in cached),
        ("attention_mask", INT64, ("batch_size", whole)),
        ("position_ids", INT64, ("batch_size", new)),
    ]
    assert described(reference.graph.output) == [
        ("logits", FLOAT, ("batch_size", new, 8192)),
        *((f"present.{name}", FLOAT, ("batch_size", 4, whole, 64)) for name in cached),
        *((f"hidden_states.{n}", FLOAT, ("batch_size", new, 256)) for n in range(7)),
        *((f"attentions.{n}", FLOAT, ("batch_size", 4, new, whole)) for n in range(6)),
    ]
    assert [(opset.domain, opset.version) for opset in reference.opset_import] == [("", 18)]
    assert reference.ir_version == 8


def test_a_tied_lm_head_is_wte_and_stored_once(reference):
    stored = {tensor.name: tensor for tensor in reference.graph.initializer if tensor.external_data}
    assert len(stored) == 2 + 12 * 6 + 2  # wte and wpe, 12 of each layer, ln_f
    assert "lm_head.weight" not in stored
    used = [node.op_type for node in reference.graph.node if "transformer.wte.weight" in node.input]
    assert len(used) == 2  # looked up, and multiplied by


def test_nothing_of_the_machine_that_traced_is_in_the_graph(reference):
    assert not any(node.doc_string or node.metadata_props for node in reference.graph.node)
    assert not reference.graph.value_info
    assert not reference.metadata_props
    assert not reference.doc_string


def test_the_tracer_is_the_one_that_the_manifest_names(bundle):
    made_with = json.loads((bundle / "manifest.json").read_text())["made_with"]
    expected = "optimum-onnx" if transformers.__version__.startswith("4.") else "transformers"
    assert made_with["tracer"] == find_tracer().package == expected


def test_tracing_says_nothing_on_standard_output(tmp_path):
    with redirect_stdout(io.StringIO()) as printed:
        find_tracer().trace(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32), tmp_path / "model.onnx")
    assert printed.getvalue() == ""


@pytest.mark.parametrize("release", ["4.56.2", "4.58.0", "5.0.0", "5.12.1"])
def test_a_release_that_cannot_trace_is_one_line_with_both_commands(monkeypatch, original, tmp_path, release):
    monkeypatch.setattr(transformers, "__version__", release)
    monkeypatch.setattr(choice, "MAJOR", int(release[0]))
    with pytest.raises(
        ExportError, match=rf"transformers {release} is installed, .*4\.57 or from 5\.13 on.*{BOTH}$"
    ) as told:
        export_bundle(str(original), tmp_path / "bundle")
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_a_tracer_that_lacks_its_library_names_it_and_both_commands(monkeypatch):
    monkeypatch.setattr(choice, "installed", lambda _: False)
    lacks = "optimum" if transformers.__version__.startswith("4.") else "onnxscript"
    with pytest.raises(ExportError, match=rf"needs {lacks} too; .*{BOTH}$"):
        find_tracer()


class TestTransformers5:
    """What its experimental exporter may do one day."""

    @pytest.fixture
    def tracing(self):
        pytest.importorskip("transformers.exporters", reason="transformers 5 is in an environment of its own")
        from export.graphs.tracing import transformers5

        return transformers5

    @pytest.fixture
    def refused(self, tracing, tmp_path):
        def trace():
            with pytest.raises(ExportError, match=r"constraints-export5\.txt.*gpt2-onnx\[export,cpu\]") as told:
                tracing.trace(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32), tmp_path / "model.onnx")
            assert "\n" not in str(told.value)
            return str(told.value)

        return trace

    def test_an_exporter_that_fails_is_one_line(self, tracing, refused, monkeypatch):
        def fail(*_):
            raise RuntimeError("no such operator\nand a long trace")

        monkeypatch.setattr(tracing.OnnxExporter, "export", fail)
        assert "cannot trace the reference graph (no such operator)" in refused()

    def test_an_output_of_another_name_is_named(self, tracing, refused, monkeypatch):
        monkeypatch.setattr(tracing, "FLAGS", {**tracing.FLAGS, "output_attentions": False})
        assert "(attentions.0 is not among logits, present.0.key, " in refused()
