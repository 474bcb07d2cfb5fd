"""How likely a model finds a text: windows, log-probabilities and perplexity, against their definitions."""

import math

import numpy as np
import pytest
from fake_slots import FakeSlots, fed
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.loop import Loop
from runtime.engine.scheduler import Scheduler
from runtime.engine.scoring import Score, score_ids, windows

VOCAB = 11
every_case = settings(deadline=None, database=None, max_examples=300)


def log_softmax(logits):
    """In float64, by the definition."""
    row = np.asarray(logits, np.float64)
    return row - row.max() - math.log(np.exp(row - row.max()).sum())


def scored_in(place, length, context, stride):
    """The beginning of the first window that has something before this place, or None.

    A window begins every `stride` tokens and has `context` of them; the first to reach the end is the last.
    """
    reaching = next(start for start in range(0, length, stride) if start + context >= length)
    starts = [start for start in range(0, reaching + 1, stride) if start < place < start + context]
    return starts[0] if starts else None


def slots():
    return FakeSlots(2, logits_after=lambda ids: np.array(fake_logits(ids), np.float32))


def fake_logits(history):
    return [
        math.sin(sum((n + 1) * (token + 2) * (each + 1) for n, token in enumerate(history))) for each in range(VOCAB)
    ]


# windows


@given(length=st.integers(1, 60), context=st.integers(1, 20), data=st.data())
@every_case
def test_every_token_is_scored_once_in_the_first_window_that_has_something_before_it(length, context, data):
    stride = data.draw(st.integers(1, context))
    found = {}
    for start, first, end in windows(length, context, stride):
        assert start % stride == 0
        assert start < first
        assert end == min(start + context, length)
        for place in range(first, end):
            assert place not in found
            found[place] = start
    expected = {place: scored_in(place, length, context, stride) for place in range(length)}
    assert found == {place: start for place, start in expected.items() if start is not None}


@pytest.mark.parametrize(
    ("length", "context", "stride", "expected"),
    [
        (3, 8, 4, [(0, 1, 3)]),
        (8, 8, 4, [(0, 1, 8)]),
        (9, 8, 4, [(0, 1, 8), (4, 8, 9)]),
        (13, 8, 4, [(0, 1, 8), (4, 8, 12), (8, 12, 13)]),
        (16, 8, 8, [(0, 1, 8), (8, 9, 16)]),
        (10, 4, 1, [(0, 1, 4), (1, 4, 5), (2, 5, 6), (3, 6, 7), (4, 7, 8), (5, 8, 9), (6, 9, 10)]),
    ],
)
def test_windows_by_hand(length, context, stride, expected):
    assert list(windows(length, context, stride)) == expected


@given(length=st.integers(2, 150), context=st.integers(2, 90), data=st.data())
@settings(deadline=None, database=None, max_examples=60)
def test_each_log_probability_is_given_what_stands_before_in_its_window(length, context, data):
    stride = data.draw(st.integers(1, context))
    token_ids = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=length, max_size=length))
    told = []
    loop = Loop(Scheduler(slots()))
    found = score_ids(loop, token_ids, context=context, stride=stride, progress=told.append)
    assert len(found) == length
    for place, logprob in enumerate(found):
        start = scored_in(place, length, context, stride)
        if start is None:
            assert logprob is None
        else:
            row = log_softmax(np.float32(fake_logits(token_ids[start:place])))
            assert logprob == pytest.approx(row[token_ids[place]], abs=1e-5)
    assert sum(told) == sum(logprob is not None for logprob in found)


def test_a_text_of_one_window_is_read_once():
    used = slots()
    score_ids(Loop(Scheduler(used)), [1, 2, 3] * 50, context=200, stride=100, progress=lambda _: None)
    assert sum(map(len, fed(used))) == 149  # nothing follows the last one


# a score


def test_a_score_has_the_texts_ids_and_none_first(model, vocabulary, context):
    text = "It was a bright cold day in April."
    score = model.score(text)
    assert score.token_ids == tuple(vocabulary.encode(text).ids)
    assert len(score.logprobs) == len(score.token_ids)
    assert score.logprobs[0] is None
    assert all(type(logprob) is float and logprob < 0 for logprob in score.logprobs[1:])
    assert score.scored_tokens == len(score.token_ids) - 1
    assert (score.context, score.stride) == (context, context // 2)


def test_perplexity_is_the_exponential_of_the_mean(model):
    score = model.score("It was a bright cold day in April.")
    known = [-logprob for logprob in score.logprobs[1:]]
    assert score.perplexity == pytest.approx(math.exp(sum(known) / len(known)), rel=1e-12)
    assert score.perplexity > 1


@pytest.mark.parametrize(
    ("logprobs", "perplexity"),
    [
        ((None, 0.0), 1.0),
        ((None, math.log(0.5)), 2.0),
        ((None, math.log(0.5), math.log(0.125)), 4.0),
        ((None, math.log(0.1), None, math.log(0.1)), 10.0),
    ],
)
def test_perplexity_by_hand(logprobs, perplexity):
    score = Score(tuple(range(len(logprobs))), logprobs, 512, 256)
    assert score.perplexity == pytest.approx(perplexity, rel=1e-12)
    assert score.scored_tokens == sum(logprob is not None for logprob in logprobs)


def test_the_greedy_continuation_is_scored_as_it_was_when_it_was_made(model, probes, vocabulary):
    for probe in probes:
        text = probe.prompt + probe.text
        assert tuple(vocabulary.encode(text).ids) == probe.prompt_ids + probe.token_ids
        made = model.complete(probe.prompt, max_new_tokens=len(probe.token_ids), logprobs=0).logprobs
        scored = model.score(text).logprobs[len(probe.prompt_ids) :]
        assert scored == pytest.approx([each.logprob for each in made], abs=1e-4)


def test_a_sampled_continuation_is_scored_as_the_model_alone_finds_it(model, probe):
    options = {"temperature": 2.0, "seed": 8, "top_k": 50, "repetition_penalty": 1.5, "max_new_tokens": 30}
    completion = model.complete(probe.prompt, logprobs=0, ignore_eos=True, **options)
    scored = model.score(probe.prompt + completion.text)
    same = scored.token_ids == probe.prompt_ids + completion.token_ids
    assert same, "this text has other ids than were drawn; choose another seed"
    expected = [each.logprob for each in completion.logprobs]
    assert scored.logprobs[len(probe.prompt_ids) :] == pytest.approx(expected, abs=1e-4)


def test_a_likely_text_has_a_lower_perplexity_than_its_words_the_other_way_round(model, probe):
    backwards = " ".join(reversed(probe.text.split()))
    assert model.score(probe.text).perplexity < model.score(backwards).perplexity


# texts longer than the context


@pytest.fixture(scope="module")
def novel(context):
    """A text of some contexts."""
    text = "It was a bright cold day. " + "The door opened, and the old man came in. " * (context // 4)
    return text[: text.rfind(" ")]


def one_by_one(model, token_ids, start, end):
    """The log-probability of the last of these ids, each read by a run of its own but the first ones."""
    with model.decode_graph.sequence() as state:
        _, logits = state.step(token_ids[start : end - 1])
        return float(log_softmax(logits)[token_ids[end - 1]])


@pytest.mark.parametrize("share", [1, 2, 3, 8])
def test_a_long_text_is_scored_window_by_window(model, novel, vocabulary, context, share):
    ids = vocabulary.encode(novel).ids
    assert len(ids) > 2 * context
    stride = context // share
    score = model.score(novel, stride=stride)
    assert score.token_ids == tuple(ids)
    assert score.stride == stride
    nones = [place for place, logprob in enumerate(score.logprobs) if logprob is None]
    assert nones == [place for place in range(len(ids)) if scored_in(place, len(ids), context, stride) is None]
    for place in (1, 63, 64, 65, context - 1, context, context + 1, context + stride, 2 * context, len(ids) - 1):
        start = scored_in(place, len(ids), context, stride)
        if start is not None:
            expected = one_by_one(model, ids, start, place + 1)
            assert score.logprobs[place] == pytest.approx(expected, abs=1e-3), place


def test_a_stride_of_the_whole_context_leaves_out_the_first_of_each_window(model, novel, context):
    score = model.score(novel, stride=context)
    nones = [place for place, logprob in enumerate(score.logprobs) if logprob is None]
    assert nones == list(range(0, len(score.token_ids), context))
    assert score.scored_tokens == len(score.token_ids) - len(nones)


def test_where_a_text_fits_the_context_the_stride_does_not_matter(model, probe, context):
    scores = [model.score(probe.prompt + probe.text, stride=stride).logprobs for stride in (1, 7, context, None)]
    assert all(logprobs == scores[0] for logprobs in scores)


def test_the_default_stride_is_half_the_context(model, novel, context):
    assert model.score(novel) == model.score(novel, stride=context // 2)


@pytest.mark.parametrize("stride", [None, 100])
def test_progress_adds_up_to_what_is_scored(model, novel, stride):
    told = []
    score = model.score(novel, stride=stride, progress=told.append)
    assert sum(told) == score.scored_tokens
    assert len(told) > 2
    assert all(type(count) is int and count > 0 for count in told)


def test_an_error_of_the_callers_progress_frees_the_cache(fresh, probe):
    with pytest.raises(KeyError):
        fresh.score("It was a bright cold day", progress={}.__getitem__)
    assert not fresh.loop.busy
    assert fresh.complete(probe.prompt, max_new_tokens=9).token_ids == probe.token_ids[:9]


# what is refused


@pytest.mark.parametrize("stride", [0, -1, 10**20])
def test_a_stride_out_of_its_range_is_refused(model, refusal, context, stride):
    message = refusal(ValueError, model.score, "It was", stride=stride)
    assert message.startswith("stride")
    assert "at least 1" in message
    assert f"{context:,}" in message
    assert str(stride) in message


def test_a_stride_over_the_context_is_refused_and_one_of_it_is_not(model, refusal, context):
    refusal(ValueError, model.score, "It was", stride=context + 1)
    assert model.score("It was", stride=context).scored_tokens == 1


@pytest.mark.parametrize("stride", [1.0, True, "1", [1]], ids=repr)
def test_a_stride_of_another_type_is_refused(model, refusal, stride):
    assert "stride" in refusal(TypeError, model.score, "It was", stride=stride)


@pytest.mark.parametrize(("text", "count"), [("", 0), ("a", 1), ("<|endoftext|>", 1)])
def test_a_text_of_less_than_two_tokens_is_refused(model, refusal, text, count):
    message = refusal(ValueError, model.score, text)
    assert "text" in message
    assert "2 tokens" in message
    assert f"got {count}" in message


@pytest.mark.parametrize(("kind", "text"), [(TypeError, None), (TypeError, ["It was"]), (ValueError, "a\ud800")])
def test_a_text_that_is_none_is_refused(model, refusal, kind, text):
    assert "text" in refusal(kind, model.score, text)


def test_two_tokens_are_enough(model, vocabulary):
    assert len(vocabulary.encode("It was").ids) == 2
    score = model.score("It was")
    assert score.scored_tokens == 1
    assert score.perplexity == pytest.approx(math.exp(-score.logprobs[1]))


# ids and text


def test_ids_and_text_are_the_librarys(model, vocabulary, novel):
    for text in ("", "It was", "😀", "<|endoftext|>", novel):
        ids = vocabulary.encode(text).ids
        assert model.encode(text) == ids
        assert model.decode(ids) == text
    assert model.decode(np.array(vocabulary.encode("It was").ids)) == "It was"


@pytest.mark.parametrize(("kind", "ids"), [(ValueError, [1, -1]), (ValueError, [1, 10**9]), (TypeError, [1, "a"])])
def test_what_is_no_id_is_not_decoded(model, refusal, kind, ids):
    assert refusal(kind, model.decode, ids).startswith("token_ids[1] must be ")


@pytest.mark.parametrize(("kind", "text"), [(TypeError, None), (ValueError, "a\ud800")])
def test_what_is_no_text_is_not_encoded(model, refusal, kind, text):
    assert "text" in refusal(kind, model.encode, text)
