"""How a differing token is judged, on logits that PyTorch really gives."""

import numpy as np
import pytest
import torch

from export.parity.greedy import Suspect, find_suspects, judge_suspect
from runtime.bundle.manifest import Continuation


@pytest.fixture
def continuation(shipped):
    """A prompt and what PyTorch says after it."""
    prompt_ids = shipped.tokenizer("It was a dark night")["input_ids"]
    output = shipped.float32.generate(torch.tensor([prompt_ids]), do_sample=False, max_new_tokens=12, pad_token_id=0)
    return Continuation(prompt_ids, output[0, len(prompt_ids) :].tolist())


def test_pytorchs_own_tokens_raise_no_suspicion(shipped, continuation):
    assert list(find_suspects(shipped.float32, [continuation])) == []


def test_another_token_is_found_and_fails_where_pytorch_is_sure(shipped, continuation):
    tokens = list(continuation.token_ids)
    tokens[5] = (tokens[5] + 1) % 8192
    wrong = Continuation(continuation.prompt_ids, tokens)
    [suspect] = find_suspects(shipped.float32, [continuation, wrong])
    assert (suspect.prompt, suspect.position) == (1, 5)
    difference = judge_suspect(shipped.truth, wrong, suspect)
    with torch.no_grad():
        ids = torch.tensor([wrong.prompt_ids + wrong.token_ids[:5]])
        second, best = np.sort(shipped.truth(ids).logits[0, -1].numpy())[-2:]
    assert difference.margin == pytest.approx(best - second, rel=1e-9)
    assert not difference.passed


def test_a_margin_under_the_noise_passes(shipped, continuation):
    """Float32 logits so far from the truth that the two best could have changed places."""
    with torch.no_grad():
        ids = torch.tensor([continuation.prompt_ids])
        truth = shipped.truth(ids).logits[0, -1].numpy()
    margin = float(np.subtract(*np.sort(truth)[[-1, -2]]))
    for off, passed in ((0.4 * margin, False), (0.6 * margin, True)):  # the noise is twice the largest error
        suspect = Suspect(0, 0, (truth + off).astype(np.float32))
        assert judge_suspect(shipped.truth, continuation, suspect).passed is passed
