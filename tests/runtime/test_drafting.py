"""Drafting: the same tokens out of fewer runs, whoever drafts and however wrongly."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import runtime
from runtime.engine.drafts import LONGEST, MOST_DRAFTED, PATIENCE, PromptLookup
from runtime.engine.steps import DraftedStep
from runtime.graphs.forward import Answer

VOCABULARY = 7
TIE = 1e-4


class RuledState:
    """A text model of one rule, and what has been run: the next id is decided by the last two."""

    def __init__(self, *, seed: int = 0, noise: float = 0.0, ties: bool = False) -> None:
        self.table = np.random.default_rng(seed).permuted(
            np.tile(np.arange(VOCABULARY, dtype=np.float32), (VOCABULARY, VOCABULARY, 1)), axis=2
        )
        if ties:  # the two likeliest are apart by less than a run over several ids changes
            for row in self.table.reshape(-1, VOCABULARY):
                row[row == VOCABULARY - 2] = VOCABULARY - 1 - 1e-6
        self.noise, self.ids, self.runs = noise, [], []
        self.in_a_run = []  # how many ids were read along with each, if not as the prompt

    def row(self, position: int) -> np.ndarray:
        before = self.ids[position - 1] if position else 0
        row = self.table[before, self.ids[position]].copy()
        if max(self.in_a_run[: position + 1]) > 1:  # sums in another order, in keys and values before, too
            row[row.argsort()[-2]] += self.noise  # and the second likeliest may come first
        return row

    def step(self, token_ids, *, logits=True):
        answer = self.read(token_ids, last=1, logits=logits)
        return int(answer.next_ids[0]), answer.logits[0]

    def read(self, token_ids, *, last, logits=True):
        self.in_a_run += [len(token_ids) if self.runs else 0] * len(token_ids)
        self.runs.append(len(token_ids))
        self.ids += token_ids
        rows = np.array([self.row(place) for place in range(len(self.ids) - last, len(self.ids))])
        second, best = np.sort(rows, axis=1)[:, -2:].T
        return Answer(rows.argmax(axis=1), rows if logits else rows[:, :0], best - second < TIE)

    def rewind(self, length):
        del self.ids[length:], self.in_a_run[length:]


class Guesses:
    """Drafts that are right now and then."""

    def __init__(self, state: RuledState, seed: int) -> None:
        self.state, self.random, self.judged = state, random.Random(seed), []

    def draft(self, ids, most):
        drafted, ids = [], list(ids)
        for _ in range(self.random.randrange(0, most + 1)):
            right = int(self.state.table[ids[-2] if len(ids) > 1 else 0, ids[-1]].argmax())
            drafted.append(right if self.random.random() < 0.7 else self.random.randrange(VOCABULARY))
            ids.append(drafted[-1])
        return drafted

    def judge(self, drafted, accepted):
        assert 0 <= accepted <= drafted
        self.judged.append((drafted, accepted))


def decode(step, prompt, count):
    tokens = [step(prompt)[0]]
    while len(tokens) < count:
        tokens.append(step(tokens[-1:])[0])
    return tokens


@given(seed=st.integers(0, 10_000), prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9))
def test_drafts_right_or_wrong_change_no_token_and_save_runs(seed, prompt):
    plain, state = RuledState(seed=seed), RuledState(seed=seed)
    expected = decode(plain.step, prompt, 40)
    guesses = Guesses(state, seed)
    step = DraftedStep(state, [guesses], (), len(prompt) + 40)
    assert decode(step, prompt, 40) == expected
    assert len(state.runs) == 40 - sum(accepted for _, accepted in guesses.judged) - unjudged(step)
    step.settle()
    assert state.ids == [*prompt, *expected[:-1]] == plain.ids


def unjudged(step):
    """Ids of the last draft that were right, of which nobody has been told yet."""
    return step._accepted if step._drafter else 0


@given(seed=st.integers(0, 10_000))
def test_where_sums_in_another_order_would_decide_the_plain_run_does(seed):
    plain, state = RuledState(seed=seed, ties=True), RuledState(seed=seed, ties=True, noise=2e-5)
    expected = decode(plain.step, [1, 2], 30)
    assert decode(DraftedStep(state, [Guesses(state, seed)], (), 32), [1, 2], 30) == expected


def test_the_noise_of_that_test_is_enough_to_change_tokens():
    """Without the second look it would fail."""
    alone, several = (RuledState(seed=1, ties=True, noise=2e-5) for _ in range(2))
    for state, runs in ((alone, ([0], [1], [2])), (several, ([0], [1, 2]))):
        *_, (most_likely, _) = [state.step(run) for run in runs]
        state.most_likely = most_likely
    assert alone.most_likely != several.most_likely


def test_no_draft_goes_beyond_the_end_of_the_text():
    state = RuledState()
    asked = []

    class Greedy:
        def draft(self, ids, most):
            asked.append((len(ids), most))
            return [0] * most

        def judge(self, drafted, accepted): ...

    decode(DraftedStep(state, [Greedy()], (), 12), [1, 2, 3], 9)
    assert asked
    assert all(length + most < 12 for length, most in asked)
    assert max(state.runs) <= 9


def after_a_right_one():
    """From then on two ids are enough to go by."""
    lookup = PromptLookup()
    lookup.judge(2, 2)
    return lookup


def test_lookup_finds_what_came_behind_the_last_ids_before():
    lookup = PromptLookup()
    assert lookup.draft([1, 2, 3, 4], 8) == []
    assert lookup.draft([1, 2, 3, 4, 1, 2], 8) == []
    assert lookup.draft([1, 2, 3, 4, 5, 1, 2, 3, 4], 8) == [5, 1]
    lookup.judge(2, 2)
    lookup = after_a_right_one()
    assert lookup.draft([1, 2, 3, 4, 1, 2], 8) == [3, 4, 1, 2]
    assert lookup.draft([1, 2, 3, 4, 1, 2, 3, 4, 5, 9, 9, 3, 4], 8) == [5, 9, 9, 3]  # where they stood last
    assert lookup.draft([1, 2, 3, 4, 1, 2, 3, 4, 5, 9, 9, 3, 4], 1) == [5]


def test_lookup_goes_on_with_what_repeats_itself():
    lookup = PromptLookup()
    for _ in range(4):
        lookup.judge(8, 8)
    assert lookup.draft([5, 6, 7, 6, 7], 8) == [6, 7] * 4
    assert len(lookup.draft([5, 6, 7, 6, 7], 99)) == MOST_DRAFTED


def test_lookup_wants_more_to_go_by_after_drafts_that_were_wrong():
    lookup, ids = after_a_right_one(), [1, 2, 3, 4, 5, 6, 8, 1, 2]
    for _ in range(PATIENCE):
        assert lookup.draft(ids, 8)
        lookup.judge(2, 0)
    assert lookup.draft(ids, 8) == []
    longer = [1, 2, 3, 4, 5, 6, 8, 1, 2, 3, 4]
    assert len({*longer[-LONGEST:]}) == LONGEST
    assert lookup.draft(longer, 8)[0] == 5
    lookup.judge(2, 1)
    assert lookup.draft([*ids, 9, 1, 2], 8)


PROMPTS = 240


def prompts(model) -> list[str]:
    """Of ids at random, which repeat nothing, and of ids that do repeat themselves."""
    chance = random.Random(0)
    size = model.bundle.manifest.architecture.vocab_size
    texts = []
    for number in range(PROMPTS):
        ids = [chance.randrange(1, size) for _ in range(chance.randrange(1, 12))]
        texts.append(model.decode(ids * (1 + number % 3)))
    return texts


@pytest.fixture(scope="module")
def model(bundle):
    return runtime.load(bundle, device="cpu", verify=False)


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.wide)])
def test_greedy_texts_are_the_same_over_dozens_and_hundreds_of_prompts(model, every):
    for prompt in prompts(model)[::every]:
        plain = model.complete(prompt, max_new_tokens=48, ignore_eos=True, draft=False)
        assert model.complete(prompt, max_new_tokens=48, ignore_eos=True) == plain, prompt


def test_they_are_drafted_in_fewer_runs(model, monkeypatch):
    """Greedy continuations of this model repeat themselves: a third of the runs and more is saved."""
    from runtime.graphs.state import DecodeState

    runs, read = [], DecodeState.read
    monkeypatch.setattr(
        DecodeState, "read", lambda self, ids, **asked: runs.append(len(ids)) or read(self, ids, **asked)
    )
    counts = {}
    for draft in (False, None):
        runs.clear()
        model.complete("It was the best of times, it was the worst of times,", max_new_tokens=96, draft=draft)
        counts[draft] = len(runs)
    assert counts[False] == 96
    assert counts[None] < 64


@pytest.mark.parametrize("options", [{"stop": [" and"]}, {"max_new_tokens": 1}, {"max_new_tokens": 2}, {}])
def test_stops_and_ends_are_the_same(model, options):
    for prompt in ("The old house stood", "", "He said that he said that he said"):
        assert model.complete(prompt, draft=False, **options) == model.complete(prompt, draft=True, **options)


def test_a_text_to_the_end_of_the_context_is_the_same(model):
    context = model.prompting.context
    prompt = model.decode(model.encode("the house and the ") * context)[: 3 * context]
    ids = model.encode(prompt)[: context - 60]
    settings = {"max_new_tokens": 500, "ignore_eos": True}
    plain = model.complete(model.decode(ids), draft=False, **settings)
    assert plain.finish_reason == "length"
    assert model.complete(model.decode(ids), **settings) == plain


def test_a_session_turns_out_the_same(model):
    texts = ("It was a bright cold day and it was", " Then he said that he", "", " and the")
    told = []
    for draft in (False, None):
        with model.session() as session:
            told.append([session.complete(text, max_new_tokens=24, draft=draft) for text in texts])
    assert told[0] == told[1]


def test_a_stream_left_early_leaves_the_cache_as_it_was(model):
    for stop_after in range(1, 8):
        with model.session() as session:
            stream = session.stream("the sea and the sea and the sea and", max_new_tokens=32)
            for _ in range(stop_after):
                next(stream, None)
            stream.close()
            after = session.complete(" the sea", max_new_tokens=24)
            assert after == model.complete(session.text.removesuffix(after.text), max_new_tokens=24, draft=False)


@pytest.mark.parametrize("options", [{"temperature": 0.8, "seed": 3}, {"repetition_penalty": 1.3}, {"logprobs": 2}])
def test_only_plain_greedy_texts_are_drafted_unasked(model, options, monkeypatch):
    from runtime.engine import drafting

    monkeypatch.setattr(drafting, "DraftedStep", None)
    model.complete("It was the best of times, it was", max_new_tokens=8, **options)
    with pytest.raises(TypeError):
        model.complete("It was the best of times, it was", max_new_tokens=8, draft=True, **options)


@pytest.mark.parametrize("value", ["yes", 1, 0.5])
def test_draft_is_yes_or_no(model, value):
    with pytest.raises((TypeError, ValueError), match="draft"):
        model.complete("x", draft=value)


@pytest.mark.parametrize(
    ("precision", "draft"), [("fp32", "fp32"), ("fp32", "int3"), ("int4", "int8"), ("int4", "int4")]
)
def test_only_a_lower_precision_drafts(bundle, precision, draft):
    with pytest.raises(ValueError, match=f"draft must be .* got '{draft}'"):
        runtime.load(bundle, precision=precision, draft=draft)
