"""The notebook runs on the shipped checkpoint, says what PyTorch computes, and shows in the repository what it says."""

import ast
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel, GPT2TokenizerFast

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "inside_gpt2.ipynb"
TEXT = "Recurrent Neural Network will change the"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def stored():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def ran(run_notebook, bundle):
    return run_notebook(bundle)


def outputs(book):
    """(source, text, pictures) of each cell of code."""
    for cell in book.cells:
        if cell.cell_type == "code":
            texts = [part.get("text") or part.get("data", {}).get("text/plain", "") for part in cell.outputs]
            pictures = [part.data["image/png"] for part in cell.outputs if "image/png" in part.get("data", {})]
            yield cell.source, "".join(texts), pictures


def printed_by(book, words):
    (text,) = [text for source, text, _ in outputs(book) if words in source]
    return text


@pytest.fixture(scope="module")
def pytorch(novelist):
    model = GPT2LMHeadModel.from_pretrained(novelist, attn_implementation="eager").eval()
    ids = GPT2TokenizerFast.from_pretrained(novelist)(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        return ids[0].tolist(), model(ids, output_hidden_states=True, output_attentions=True)


def test_the_ids_are_transformers(ran, pytorch):
    lines = printed_by(ran, "for token_id, piece in zip").splitlines()
    assert [int(line.split()[0]) for line in lines] == pytorch[0]
    assert "".join(ast.literal_eval(line.split(maxsplit=1)[1]) for line in lines) == TEXT


def test_the_shapes_are_pytorchs(ran, pytorch):
    result = pytorch[1]
    shapes = [ast.literal_eval(found) for found in re.findall(r"\(.*\)", printed_by(ran, "seen.logits.shape"))]
    stacks = [result.logits[0], torch.cat(result.hidden_states), torch.cat(result.attentions)]
    assert shapes == [tuple(stack.shape) for stack in stacks]


def test_the_matrix_is_pytorchs(ran, pytorch):
    truth = pytorch[1].attentions[0][0, -1].numpy()
    found = np.array(NUMBER.findall(printed_by(ran, "np.printoptions")), float).reshape(truth.shape)
    assert np.allclose(found, truth, rtol=0, atol=5.1e-5)  # printed with four places
    assert printed_by(ran, "rows sum to one") == "rows sum to one:      True\nnothing looks ahead:  True\n"


def test_the_counts_are_pytorchs(ran, novelist):
    model = GPT2LMHeadModel.from_pretrained(novelist)
    total = re.search(r"total +([\d,]+)", printed_by(ran, "print(summary)"))[1]
    assert int(total.replace(",", "")) == model.num_parameters()
    for line in printed_by(ran, "for module in").splitlines():
        name, count = line.split()
        assert int(count.replace(",", "")) == sum(each.numel() for each in model.get_submodule(name).parameters())


def test_the_next_tokens_are_pytorchs(ran, pytorch):
    likely = pytorch[1].logits[0, -1].double().softmax(-1)
    lines = printed_by(ran, "next_tokens(5)").splitlines()
    values, ids = likely.topk(5)
    assert [int(line.split()[1]) for line in lines] == ids.tolist()
    assert [float(line.split("%")[0]) for line in lines] == pytest.approx((100 * values).tolist(), abs=0.0051)


def test_there_are_three_pictures(ran):
    assert [len(pictures) for *_, pictures in outputs(ran) if pictures] == [1, 1, 1]


def test_torch_was_not_there(ran):
    assert ast.literal_eval(printed_by(ran, "sys.modules")) == dict.fromkeys(["torch", "transformers", "onnx"], False)


def test_what_the_repository_shows_is_what_it_says(ran):
    """But for the last digits, which another processor may round otherwise."""
    for (source, shown, pictures), (_, said, drawn) in zip(outputs(stored()), outputs(ran), strict=True):
        assert (NUMBER.sub("#", shown), len(pictures)) == (NUMBER.sub("#", said), len(drawn)), source
        numbers = [np.array(NUMBER.findall(text), float) for text in (shown, said)]
        assert np.allclose(*numbers, rtol=0, atol=0.011), source
