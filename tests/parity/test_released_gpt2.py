"""Known facts of the released gpt2, where its weights are cached or can be reached."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime.bundle.bundle import open_bundle
from runtime.graphs.reference import ReferenceGraph

pytestmark = [pytest.mark.hub]

PROMPT = "Recurrent Neural Network will change the"
IDS = [6690, 6657, 47986, 7311, 481, 1487, 262]
HEAD = """
    1.0000
    0.6984 0.3016
    0.4638 0.2843 0.2520
    0.3511 0.2360 0.2186 0.1943
    0.3529 0.1802 0.1466 0.1212 0.1992
    0.3420 0.1347 0.1247 0.1247 0.1232 0.1506
    0.2430 0.1132 0.1216 0.1333 0.1036 0.1298 0.1555
"""  # layer 0, head 11


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """A bundle of the released gpt2; the rest of the suite forbids the network, this one asks for it."""
    folder = tmp_path_factory.mktemp("released") / "gpt2"
    environment = {**os.environ, "HF_HUB_OFFLINE": os.environ.get("GPT2_ONNX_TEST_OFFLINE", "0")}
    environment |= {"HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "30"}
    command = [sys.executable, "-m", "export", "gpt2", "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800, check=False)
    if "the Hub cannot be reached" in done.stderr or "no such model on the Hub" in done.stderr:
        pytest.skip("the released gpt2 is neither cached nor reachable")
    assert done.returncode == 0, done.stderr
    return folder


def test_prompt_ids_and_next_token(gpt2):
    completion = runtime.load(gpt2).complete(PROMPT, max_new_tokens=1)
    assert (completion.text, completion.prompt_tokens) == (" way", len(IDS))


def test_shapes_and_the_attention_of_layer_0_head_11(gpt2):
    bundle = open_bundle(gpt2)
    architecture = bundle.manifest.architecture
    assert architecture.parameters == 124_439_808
    session = ReferenceGraph(bundle.graph_path("reference"), architecture)
    outputs = session.run(np.array([IDS]))
    assert outputs["logits"].shape == (1, 7, 50257)
    assert [outputs[f"hidden_states.{n}"].shape for n in range(13)] == [(1, 7, 768)] * 13
    assert [outputs[f"attentions.{n}"].shape for n in range(12)] == [(1, 12, 7, 7)] * 12
    expected = np.zeros((7, 7))
    expected[np.tril_indices(7)] = [float(number) for number in HEAD.split()]
    np.testing.assert_allclose(outputs["attentions.0"][0, 11], expected, atol=5.1e-5)  # printed with four places


def test_the_notebook_says_what_is_known(gpt2, run_notebook):
    cells = [cell for cell in run_notebook(gpt2).cells if cell.cell_type == "code"]
    said = "".join(part.get("text", "") for cell in cells for part in cell.outputs)
    assert [line.split()[0] for line in said.splitlines()[: len(IDS)]] == list(map(str, IDS))
    shapes = ["(7, 50257)", "(13, 7, 768)", "(12, 12, 7, 7)"]
    counts = ["38,597,376", "786,432", "2,362,368", "1,771,776", "590,592", "4,722,432", "124,439,808", "' way'"]
    assert [fact for fact in (*shapes, *counts) if fact not in said] == []
    rows = [list(map(float, row.split())) for row in re.findall(r"\[+([\d. ]+)\]", said)]
    known = [list(map(float, row.split())) for row in HEAD.split("\n") if row.strip()]
    assert len(rows) == len(known)
    for row, expected in zip(rows, known, strict=True):
        assert np.allclose(row, [*expected, *[0.0] * (7 - len(expected))], rtol=0, atol=1.1e-4)


def test_parameters_by_module(gpt2):
    """Counted in the weights of the reference graph."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(gpt2 / "onnx" / "model.onnx", load_external_data=False).graph
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    assert sizes["transformer.wte.weight"] == 38_597_376
    assert sizes["transformer.wpe.weight"] == 786_432
    parts = {"attn.": 2_362_368, "attn.c_attn": 1_771_776, "attn.c_proj": 590_592, "mlp.": 4_722_432}
    for layer in range(12):
        for part, expected in parts.items():
            assert sum(size for name, size in sizes.items() if f"h.{layer}.{part}" in name) == expected
