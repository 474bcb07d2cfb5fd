"""What a bundle holds, and that other people's software loads it unchanged."""

import hashlib
import json
import sys

import numpy as np
import onnx
import pytest
from transformers import AutoTokenizer, GPT2LMHeadModel

import runtime
from export.pipeline import export_bundle

FILES = {
    "README.md",
    "config.json",
    "genai_config.json",
    "generation_config.json",
    "manifest.json",
    "onnx/decode.onnx",
    "onnx/ragged.onnx",
    "onnx/decode.onnx_data",
    "onnx/decode_cuda.onnx",
    "onnx/decode_fp16.onnx",
    "onnx/decode_fp16.onnx_data",
    "onnx/int8_cache.onnx",
    "onnx/lens.onnx",
    "onnx/model.onnx",
    "onnx/model.onnx_data",
    "tokenizer.json",
    "tokenizer_config.json",
}
PROMPT = "The old house stood at the end of the lane"
COUNT = 24


@pytest.fixture(scope="module")
def expected(novelist):
    """(prompt ids, greedy ids) by transformers."""
    model, tokenizer = GPT2LMHeadModel.from_pretrained(novelist), AutoTokenizer.from_pretrained(novelist)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    output = model.generate(**inputs, do_sample=False, max_new_tokens=COUNT, pad_token_id=0)
    length = inputs.input_ids.shape[1]
    return output[0, :length].tolist(), output[0, length:].tolist()


def test_it_holds_these_files_and_the_manifest_lists_them(bundle):
    paths = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if path.is_file()}
    assert paths.keys() == FILES
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["schema_version"] == 1
    assert manifest["files"] == {
        name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in paths.items()
        if name != "manifest.json"
    }


def test_the_card_names_every_file_of_the_graphs(bundle):
    card = (bundle / "README.md").read_text()
    assert all(f"`{name}`" in card for name in FILES if name.startswith("onnx/"))


def test_a_model_whose_lm_head_is_small_has_no_shortlist(seeded_checkpoint, tmp_path):
    folder = seeded_checkpoint(tmp_path / "small", n_embd=240, n_layer=1, n_head=5, n_inner=64)  # 7.5 MiB
    export_bundle(str(folder), tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "onnx" / "decode.onnx_data").exists()
    assert "decode.onnx_data" not in (tmp_path / "bundle" / "README.md").read_text()
    assert len(runtime.complete("It was", model=tmp_path / "bundle", max_new_tokens=4).token_ids) == 4


def test_the_manifest_says_what_was_exported(bundle, novelist):
    manifest = json.loads((bundle / "manifest.json").read_text())
    weights = hashlib.sha256((novelist / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["source"] == {"id": "novelist", "revision": "", "weights_sha256": weights}
    config = json.loads((novelist / "config.json").read_text())
    architecture = manifest["architecture"]
    assert {name: architecture[name] for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")} == {
        name: config[name] for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
    }
    assert architecture["parameters"] == GPT2LMHeadModel.from_pretrained(novelist).num_parameters()
    assert manifest["parity"]["passed"] is True
    assert manifest["made_with"].keys() >= {"gpt2-onnx", "torch", "transformers", "onnx", "onnxruntime", "tracer"}
    assert manifest["made_with"]["tracer"] in ("optimum-onnx", "transformers")
    assert manifest["made_with"][manifest["made_with"]["tracer"]]


def test_config_json_is_the_checkpoints_and_points_transformers_js_to_the_weights(bundle, novelist):
    written, given = (json.loads((folder / "config.json").read_text()) for folder in (bundle, novelist))
    assert written["transformers.js_config"] == {"use_external_data_format": True}
    assert {name: written[name] for name in given if name not in ("transformers_version", "dtype")} == {
        name: given[name] for name in given if name not in ("transformers_version", "dtype")
    }


def test_the_reference_graph_has_the_documented_inputs_and_outputs(bundle):
    graph = onnx.load(bundle / "onnx" / "model.onnx", load_external_data=False)
    assert graph.opset_import[0].version == 18
    layers, cache = range(6), [f"{n}.{part}" for n in range(6) for part in ("key", "value")]
    assert {value.name for value in graph.graph.input} == {
        "input_ids",
        "attention_mask",
        "position_ids",
        *(f"past_key_values.{name}" for name in cache),
    }
    assert [value.name for value in graph.graph.output] == [
        "logits",
        *(f"present.{name}" for name in cache),
        *(f"hidden_states.{n}" for n in range(7)),
        *(f"attentions.{n}" for n in layers),
    ]


def test_the_lens_graph_has_the_documented_inputs_and_outputs_on_the_shared_weights(bundle):
    graph = onnx.load(bundle / "onnx" / "lens.onnx", load_external_data=False).graph
    assert [value.name for value in graph.input] == ["hidden_states", "final_logits", "answers", "k"]
    names = ["logits", "top_ids", "top_logprobs", "answer_logprobs", "ranks"]
    assert [value.name for value in graph.output] == names
    weights = {tensor.name: tensor.external_data[0].value for tensor in graph.initializer if tensor.external_data}
    names = ("transformer.ln_f.weight", "transformer.ln_f.bias", "transformer.wte.weight")
    assert weights == dict.fromkeys(names, "model.onnx_data")


def test_the_decode_graph_has_the_documented_inputs_and_outputs(bundle):
    graph = onnx.load(bundle / "onnx" / "decode.onnx", load_external_data=False).graph
    cache = [f"{n}.{part}" for n in range(6) for part in ("key", "value")]
    integers = ["input_ids", "position_ids", "seqlens_k", "total_sequence_length", "logits_indices", "token_indices"]
    assert [value.name for value in graph.input] == [*integers, *(f"past_key_values.{name}" for name in cache)]
    assert [value.name for value in graph.output] == [
        "next_token",
        "logits",
        "tied",
        *(f"present.{name}" for name in cache),
    ]
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
    assert {types[name] for name in ("input_ids", "position_ids", "logits_indices", "token_indices", "next_token")} == {
        onnx.TensorProto.INT64
    }
    assert types["seqlens_k"] == types["total_sequence_length"] == onnx.TensorProto.INT32


def test_the_ragged_graph_packs_ids_and_reads_the_decode_graphs_weights(bundle):
    graphs = {
        name: onnx.load(bundle / "onnx" / f"{name}.onnx", load_external_data=False).graph
        for name in ("decode", "ragged")
    }
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in graphs["ragged"].input
    }
    assert shapes["input_ids"] == shapes["position_ids"] == ["token_count"]
    assert shapes["packed_indices"] == ["batch_size", "sequence_length"]
    assert shapes["row_indices"] == ["token_count", 2]
    assert shapes["query_seqlens"] == shapes["seqlens_k"] == ["batch_size"]
    attentions = [node for node in graphs["ragged"].node if node.op_type == "GroupQueryAttention"]
    assert len(attentions) == 6
    assert all(node.input[16] == "query_seqlens" for node in attentions)
    stored = [
        {
            (tensor.name, *((entry.key, entry.value) for entry in tensor.external_data))
            for tensor in graph.initializer
            if tensor.external_data
        }
        for graph in graphs.values()
    ]
    assert stored[0] == stored[1]


def test_the_runtime_says_what_transformers_says(bundle, expected):
    completion = runtime.load(bundle).complete(PROMPT, max_new_tokens=COUNT)
    assert list(completion.token_ids) == expected[1]


def test_optimum_loads_it(bundle, expected):
    optimum = pytest.importorskip("optimum.onnxruntime", reason="not beside transformers 5")
    model = optimum.ORTModelForCausalLM.from_pretrained(bundle, subfolder="onnx", file_name="model.onnx")
    inputs = AutoTokenizer.from_pretrained(bundle)(PROMPT, return_tensors="pt")
    output = model.generate(**inputs, do_sample=False, max_new_tokens=COUNT, pad_token_id=0)[0].tolist()
    assert output == expected[0] + expected[1]


@pytest.mark.skipif(sys.platform != "linux", reason="onnxruntime-genai is tested on Linux alone")
def test_onnxruntime_genai_loads_it(bundle, expected):
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(bundle))
    prompt_ids = genai.Tokenizer(model).encode(PROMPT)
    assert np.array(prompt_ids).tolist() == expected[0]
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt_ids) + COUNT)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt_ids)
    tokens = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    assert tokens == expected[1]
