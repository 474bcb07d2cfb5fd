"""What `inspect` gives is what PyTorch computes."""

import numpy as np
import pytest

import runtime
from runtime.graphs.reference import ReferenceGraph

TEXTS = ["He opened the letter slowly and", "It", "In the year 1897 the city of London was asleep; nobody heard him."]


def split(length, rows):
    return [slice(start, min(start + rows, length)) for start in range(0, length, rows)]


@pytest.mark.parametrize("rows", [None, 4], ids=["at once", "four rows at a time"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu"}, {"tie_word_embeddings": False}],
    ids=str,
)
def test_every_array_is_pytorchs(make_pair, pytorch, names, monkeypatch, changes, rows):
    pair = make_pair(**changes)
    if rows:
        monkeypatch.setattr(ReferenceGraph, "_parts", lambda _, length: split(length, rows))
    model = runtime.load(pair.bundle, device="cpu", threads=1, verify=False)
    for text, seen in zip(TEXTS, model.inspect(TEXTS), strict=True):
        truth = names(pytorch(pair.truth, np.array([pair.tokenizer(text)["input_ids"]])))
        truth = {name: array for name, array in truth.items() if not name.startswith("present.")}
        found = {"logits": seen.logits[None]}
        found |= {f"hidden_states.{n}": state[None] for n, state in enumerate(seen.hidden_states)}
        found |= {f"attentions.{n}": maps[None] for n, maps in enumerate(seen.attentions)}
        pair.assert_close(found, truth, text)


def test_a_step_behind_a_past_is_the_last_row_of_the_whole(make_pair):
    tiny = make_pair()
    seen = runtime.load(tiny.bundle, device="cpu", threads=1, verify=False).inspect(TEXTS[2])
    ids = np.array([seen.token_ids])
    step = tiny.reference.run(ids[:, -1:], past=tiny.reference.run(ids[:, :-1]))
    assert np.allclose(step["logits"][0, -1], seen.logits[-1], rtol=1e-4, atol=1e-5)
    for layer, maps in enumerate(seen.attentions):
        assert np.allclose(step[f"attentions.{layer}"][0, :, -1], maps[:, -1], rtol=1e-4, atol=1e-6)
