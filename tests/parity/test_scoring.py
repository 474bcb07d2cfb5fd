"""Log-probabilities and perplexity of texts against Hugging Face's sliding window over PyTorch."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import runtime

NOVELS = Path(__file__).parents[3] / "shared" / "corpus"
CHARACTERS = 20_000
NAMES = ["Mr. Hale", "Eleanor", "the captain", "old Mrs. Pym", "Thomas", "the doctor", "my aunt", "a stranger in grey"]
SENTENCES = [
    "In the spring of 18{0} {1} came down to the harbour, where {2} had been waiting since the morning.",
    "“You are late,” said {1}; “we had almost given you up.”",
    "Nobody answered. The rain ran down the {0} panes of the long window, and {2} looked at the fire.",
    "It was {1} who spoke first: a letter, dated the {0}th of the month, had come from {2}!",
    "What could they do? {1} would not hear of it, and the coach -- the last one -- had gone at {0}.",
    "\n\nCHAPTER {0}\n\nThe next day was as fine as the one before had been wet, and {1} went out with {2}.",
    "There were {0} steps to the door; {1} counted them, as one does who is afraid to knock.",
]


def long_text():
    """Some thirty thousand characters, in which no two sentences are the same."""
    return " ".join(
        sentence.format(11 + (7 * n + 3 * m) % 83, NAMES[(n + m) % 8], NAMES[(3 * n + m + 1) % 8])
        for n in range(50)
        for m, sentence in enumerate(SENTENCES)
    )


def text_of(pair, count):
    """The beginning of a long text that has just so many tokens."""
    text = long_text()
    ends = [end for _, end in pair.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]
    cuts = (text[:end] for end in range(ends[max(0, count - 4)], ends[count + 4]))
    return next(cut for cut in cuts if len(pair.tokenizer(cut)["input_ids"]) == count)


def slide(model, token_ids, stride):
    """As Hugging Face's guide to the perplexity of fixed-length models has it, but that each token counts once.

    Returns each token's log-probability, and the perplexity from the losses that the model itself works out.
    """
    ids, context = torch.tensor([token_ids]), model.config.n_positions
    logprobs, total_loss, previous_end = [None] * len(token_ids), 0.0, 0
    for begin in range(0, len(token_ids), stride):
        end = min(begin + context, len(token_ids))
        window = ids[:, begin:end]
        labels = window.clone()
        labels[:, : -(end - previous_end)] = -100
        with torch.no_grad():
            result = model(window, labels=labels)
        counted = (labels[0, 1:] != -100).nonzero()[:, 0]  # labels are shifted: there is none for the first
        if len(counted):
            total_loss += result.loss.item() * len(counted)
        following = torch.log_softmax(result.logits[0, :-1], -1).gather(1, window[0, 1:, None])[:, 0]
        for place in counted.tolist():
            assert logprobs[begin + place + 1] is None
            logprobs[begin + place + 1] = following[place].item()
        previous_end = end
        if end == len(token_ids):
            break
    return logprobs, math.exp(total_loss / sum(logprob is not None for logprob in logprobs))


def assert_as_pytorch(pair, score, text, stride):
    """Ids, windows, log-probabilities and perplexity; gives the places of the tokens that have none."""
    ids = pair.tokenizer(text)["input_ids"]
    expected, perplexity = slide(pair.float32, ids, stride)
    assert (list(score.token_ids), score.context, score.stride) == (ids, pair.architecture.n_positions, stride)
    unscored = [n for n, logprob in enumerate(expected) if logprob is None]
    assert [n for n, logprob in enumerate(score.logprobs) if logprob is None] == unscored
    assert score.scored_tokens == len(ids) - len(unscored)
    bound = 3 * pair.logprob_noise  # PyTorch's float32 is one such noise off the truth at most, we may be two
    assert bound < 1e-4
    np.testing.assert_allclose(scored(score.logprobs), scored(expected), rtol=0, atol=bound)
    assert score.perplexity == pytest.approx(perplexity, rel=1e-4)
    return unscored


def scored(logprobs):
    return np.array([logprob for logprob in logprobs if logprob is not None])


@pytest.fixture(scope="module")
def tiny(make_pair):
    return make_pair()


@pytest.fixture(scope="module")
def tiny_model(tiny):
    return runtime.load(tiny.bundle, device="cpu")


@pytest.mark.parametrize("length", [2, 3, 64, 65, 66, 511, 512, 513, 1300])
def test_a_text_of_any_length(model, shipped, length):
    text = text_of(shipped, length)
    assert assert_as_pytorch(shipped, model.score(text), text, 256) == [0]


@pytest.mark.parametrize(("length", "stride"), [(518, 1), (560, 7), (1300, 300), (1300, 511)])
def test_strides_of_the_shipped_checkpoint(model, shipped, length, stride):
    text = text_of(shipped, length)
    assert assert_as_pytorch(shipped, model.score(text, stride=stride), text, stride) == [0]


def test_with_a_stride_of_the_whole_context_the_first_token_of_each_window_is_given(model, shipped):
    text = text_of(shipped, 1300)
    assert assert_as_pytorch(shipped, model.score(text, stride=512), text, 512) == [0, 512, 1024]


def test_a_window_of_one_token_scores_none(model, shipped):
    text = text_of(shipped, 513)
    assert assert_as_pytorch(shipped, model.score(text, stride=512), text, 512) == [0, 512]


@pytest.mark.parametrize("stride", [1, 7, 47, 94, 95, None, 96])
@pytest.mark.parametrize("length", [2, 95, 96, 97, 145, 400])
def test_strides_and_lengths_of_a_tiny_one(tiny, tiny_model, length, stride):
    text = text_of(tiny, length)
    unscored = assert_as_pytorch(tiny, tiny_model.score(text, stride=stride), text, stride or 48)
    assert unscored == (list(range(0, length, 96)) if stride == 96 else [0])


def test_an_end_of_text_within_the_text_is_a_token_like_any_other(model, shipped):
    text = "The end.<|endoftext|>It was the first day of May, and"
    assert shipped.tokenizer.eos_token_id in shipped.tokenizer(text)["input_ids"]
    assert_as_pytorch(shipped, model.score(text), text, 256)


def test_progress_is_told_of_each_scored_token_once(model, shipped):
    told = []
    score = model.score(text_of(shipped, 1300), stride=100, progress=told.append)
    assert sum(told) == score.scored_tokens == 1299


def test_a_part_of_a_novel(model, shipped):
    novels = sorted(NOVELS.glob("Emma*.txt"))
    if not novels:
        pytest.skip("no novel to score: there is no shared/corpus/Emma*.txt beside the checkout")
    text = novels[0].read_text(encoding="utf-8")[CHARACTERS : 2 * CHARACTERS]
    ids, score = shipped.tokenizer(text)["input_ids"], model.score(text)
    float32, perplexity = slide(shipped.float32, ids, 256)
    truth = scored(slide(shipped.truth, ids, 256)[0])
    ours, theirs = (np.linalg.norm(scored(logprobs) - truth) for logprobs in (score.logprobs, float32))
    assert len(truth) == len(ids) - 1 > 3000
    assert ours <= 2 * theirs  # over thousands of tokens there is a worst one: both are judged by the whole
    assert score.perplexity == pytest.approx(perplexity, rel=1e-4)
