"""The lens is PyTorch's `ln_f` and `lm_head` over PyTorch's hidden states."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import runtime
from export.checkpoint import find_checkpoint
from export.parity import lens as parity
from export.parity.cases import make_cases
from export.parity.outputs import pytorch_outputs
from runtime.bundle.bundle import open_bundle
from runtime.bundle.place import Place

TEXT = "In the year 1897 the city of London was asleep; nobody heard him."
CHANGES = [{}, {"layer_norm_epsilon": 0.5}, {"tie_word_embeddings": False}]


def layers_in_pytorch(pair, ids):
    """Log-probabilities [L, S, V] in float64 of every layer but the last."""
    with torch.no_grad():
        states = pair.truth(torch.tensor([ids]), output_hidden_states=True).hidden_states[:-1]
        head = torch.nn.Sequential(pair.truth.transformer.ln_f, pair.truth.lm_head)
        return torch.stack([head(state[0]).log_softmax(-1) for state in states]).numpy()


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_every_layer_is_pytorchs(make_pair, changes):
    pair = make_pair(**changes)
    lens = runtime.load(pair.bundle, device="cpu", threads=1, verify=False).lens(TEXT, k=5)
    truth = layers_in_pytorch(pair, list(lens.token_ids))
    best = -np.sort(-truth, axis=-1)[..., :5]  # by value, as ids that are nearly as likely may change places
    assert np.allclose(np.log(lens.probabilities[:-1]), best, rtol=0, atol=2e-5)
    assert np.allclose(
        np.log(lens.probabilities[:-1]), np.take_along_axis(truth, lens.top_ids[:-1], -1), rtol=0, atol=2e-5
    )
    answered = np.take_along_axis(truth, np.broadcast_to(lens.answers[:, None], (*truth.shape[:2], 1)), -1)
    assert np.allclose(np.log(lens.answer_probabilities[:-1]), answered[..., 0], rtol=0, atol=2e-5)
    least, most = ((truth > answered + edge).sum(-1) + 1 for edge in (2e-5, -2e-5))
    assert (lens.ranks[:-1] >= least).all()
    assert (lens.ranks[:-1] <= most).all()


def judged(pair, bundle):
    architecture = bundle.manifest.architecture
    ids = pair.tokenizer(TEXT)["input_ids"]
    cases = make_cases(ids, architecture.vocab_size, architecture.n_positions)
    truths = [pytorch_outputs(pair.truth, case) for case in cases]
    return parity.judge_lens(bundle, find_checkpoint(str(pair.checkpoint)), cases, truths)


def test_the_verification_passes_what_is_right(make_pair):
    pair = make_pair()
    rows = judged(pair, open_bundle(pair.bundle, verify=False))
    assert {row.tensor for row in rows} == {"logits.0", "logits.1", "logits.2"}
    assert all(row.passed for row in rows)


def test_the_verification_fails_a_lens_with_another_norm(make_pair, tmp_path):
    """The graph of a checkpoint with another epsilon, over the weights of this one."""
    pair, other = make_pair(), make_pair(layer_norm_epsilon=0.5)
    shutil.copytree(pair.bundle / "onnx", tmp_path / "onnx")
    shutil.copy(other.bundle / "onnx" / "lens.onnx", tmp_path / "onnx")
    bundle = replace(open_bundle(pair.bundle, verify=False), place=Place(tmp_path))
    assert not any(row.passed for row in judged(pair, bundle))
