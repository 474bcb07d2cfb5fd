"""Log-probabilities of a prompt's tokens against PyTorch's, alone, in batches and after a beginning read before."""

import asyncio

import numpy as np
import pytest
import torch

import runtime

SHORT = "It was a bright cold day"
LONG = " ".join(f"{word} and the old house stood {n} miles off;" for n, word in enumerate(["She", "He", "They"] * 5))


@pytest.fixture(scope="module")
def assert_as_pytorch(shipped, pytorch):
    """Within twice what PyTorch's own float32 is off, as those of generated tokens are."""
    bound = 2 * shipped.logprob_noise

    def check(found, text, count):
        ids = shipped.ids(text)
        assert len(found) == len(ids)
        assert found[0] is None
        truth = torch.log_softmax(pytorch(shipped.truth, np.array([ids])).logits[0], -1).numpy()
        for entry, token, row in zip(found[1:], ids[1:], truth, strict=False):
            assert entry.token_id == token
            assert entry.logprob == pytest.approx(row[token], rel=0, abs=bound)
            values = np.array([value for _, value in entry.top])
            np.testing.assert_allclose(values, np.sort(row)[::-1][:count], rtol=0, atol=bound)
            np.testing.assert_allclose(values, row[[token for token, _ in entry.top]], rtol=0, atol=bound)
            assert (entry.logprob == values[0]) == (entry.top[0][0] == token)  # is it the most likely, by equality

    return check


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("text", [SHORT, LONG, "", "It"])
def test_they_are_pytorchs(model, assert_as_pytorch, text, count):
    completion = model.complete(text, max_new_tokens=3, prompt_logprobs=count)
    assert_as_pytorch(completion.prompt_logprobs, text, count)
    assert completion.token_ids == model.complete(text, max_new_tokens=3).token_ids


def test_none_of_the_best_are_asked_for(model):
    found = model.complete(LONG, max_new_tokens=1, prompt_logprobs=0).prompt_logprobs
    assert {entry.top for entry in found[1:]} == {()}
    assert [one.logprob for one in found[1:]] == list(model.score(LONG).logprobs[1:])


def test_they_are_the_same_in_batches(model, assert_as_pytorch):
    texts = [SHORT, LONG, "", LONG + " Then", "She"]
    completions = model.complete(texts, batch_size=3, max_new_tokens=4, prompt_logprobs=2)
    for text, completion in zip(texts, completions, strict=True):
        assert_as_pytorch(completion.prompt_logprobs, text, 2)


def test_a_beginning_that_was_read_before_has_them_too(bundle, assert_as_pytorch):
    model = runtime.load(bundle, device="cpu")
    model.complete(LONG, max_new_tokens=8)
    completion = model.complete(LONG + " Then the rain", max_new_tokens=4, prompt_logprobs=3)
    assert_as_pytorch(completion.prompt_logprobs, LONG + " Then the rain", 3)
    assert completion.token_ids == model.complete(LONG + " Then the rain", max_new_tokens=4).token_ids


def test_a_session_has_those_of_its_whole_text(model, assert_as_pytorch):
    with model.session() as session:
        session.complete(SHORT, max_new_tokens=6, ignore_eos=True)
        text = session.text + " and the rain came"
        completion = session.complete(" and the rain came", max_new_tokens=2, prompt_logprobs=2)
    assert_as_pytorch(completion.prompt_logprobs, text, 2)


def test_a_stream_has_them_with_its_first_piece(model, assert_as_pytorch):
    with model.stream(LONG, max_new_tokens=20, prompt_logprobs=2) as stream:
        assert stream.prompt_logprobs is None
        next(stream)
        assert_as_pytorch(stream.prompt_logprobs, LONG, 2)

    async def read():
        async with model.astream(LONG, max_new_tokens=20, prompt_logprobs=2) as pieces:
            await anext(pieces)
            return pieces.prompt_logprobs

    assert_as_pytorch(asyncio.run(read()), LONG, 2)


def test_those_not_asked_for_are_not_there(model):
    completion = model.complete(SHORT, max_new_tokens=2)
    assert completion.prompt_logprobs is None
    assert "prompt_logprobs" not in completion.as_dict()


def test_they_go_with_sampling_and_several_completions(model, assert_as_pytorch):
    for completion in model.complete(SHORT, n=3, seed=4, max_new_tokens=3, prompt_logprobs=1):
        assert_as_pytorch(completion.prompt_logprobs, SHORT, 1)
