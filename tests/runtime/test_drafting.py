"""Drafting: the same tokens out of fewer runs, whoever drafts and however wrongly."""

import random

import numpy as np
import pytest
from fake_slots import FakeSlots, continued, fed
from fakes import LetterTokenizer
from hypothesis import given
from hypothesis import strategies as st

import runtime
from runtime.engine.drafts import LONGEST, MOST_DRAFTED, PATIENCE, PromptLookup
from runtime.engine.scheduler import Scheduler
from runtime.engine.texts import GeneratedText
from runtime.graphs.work import Answer, Work
from runtime.text.generation import Generation
from runtime.text.options import Settings

VOCABULARY = 7
TIE = 1e-4


class RuledSlots(FakeSlots):
    """A slot of a language of one rule, the next id being decided by the last two, and notes of what was run."""

    def __init__(self, *, seed: int = 0, noise: float = 0.0, ties: bool = False) -> None:
        super().__init__(1)
        self.table = np.random.default_rng(seed).permuted(
            np.tile(np.arange(VOCABULARY, dtype=np.float32), (VOCABULARY, VOCABULARY, 1)), axis=2
        )
        if ties:  # the two likeliest are apart by less than a run over several ids changes
            for row in self.table.reshape(-1, VOCABULARY):
                row[row == VOCABULARY - 2] = VOCABULARY - 1 - 1e-6
        self.noise = noise
        self.in_a_run = []  # how many ids were read along with each, if not as the prompt

    def rule(self, ids) -> int:
        return int(self.table[ids[-2] if len(ids) > 1 else 0, ids[-1]].argmax())

    def row(self, position: int) -> np.ndarray:
        (ids,) = self.held
        row = self.table[ids[position - 1] if position else 0, ids[position]].copy()
        if max(self.in_a_run[: position + 1]) > 1:  # sums in another order, in keys and values before, too
            row[row.argsort()[-2]] += self.noise  # and the second likeliest may come first
        return row

    def answer(self, work):
        count = len(work.token_ids)
        assert work.past_length <= len(self.held[0])
        self.held[0][work.past_length :] = work.token_ids
        self.in_a_run[work.past_length :] = [count if len(self.steps_run) > 1 else 0] * count
        end = len(self.held[0])
        rows = np.array([self.row(position) for position in range(end - work.answers, end)]).reshape(-1, VOCABULARY)
        second, best = np.sort(rows, axis=1)[:, -2:].T
        return Answer(rows.argmax(axis=1), rows if work.logits else rows[:, :0], best - second < TIE)


class Guesses:
    """Drafts that are right now and then."""

    def __init__(self, slots: RuledSlots, seed: int) -> None:
        self.slots, self.random, self.judged = slots, random.Random(seed), []

    def draft(self, ids, most):
        drafted, ids = [], list(ids)
        for _ in range(self.random.randrange(0, most + 1)):
            right = self.slots.rule(ids)
            drafted.append(right if self.random.random() < 0.7 else self.random.randrange(VOCABULARY))
            ids.append(drafted[-1])
        return drafted

    def judge(self, drafted, accepted):
        assert 0 <= accepted <= drafted
        self.judged.append((drafted, accepted))


def drafted(slots, drafter, prompt, count):
    """The text after it has run to its end."""
    generation = Generation(prompt, Settings(max_new_tokens=count), tokenizer=LetterTokenizer(), eos_ids=(), room=count)
    scheduler, text = Scheduler(slots), GeneratedText(generation, [drafter])
    scheduler.add(text)
    while not text.finished:
        scheduler.step()
    return text


@given(seed=st.integers(0, 10_000), prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9))
def test_drafts_right_or_wrong_change_no_token_and_save_runs(seed, prompt):
    slots = RuledSlots(seed=seed)
    expected = continued(prompt, 40, slots.rule)
    guesses = Guesses(slots, seed)
    text = drafted(slots, guesses, prompt, 40)
    assert list(text.completion().token_ids) == expected
    assert len(slots.steps_run) == 40 - sum(accepted for _, accepted in guesses.judged)
    assert slots.held[0][: text.read] == [*prompt, *expected[:-1]]


@given(seed=st.integers(0, 10_000))
def test_where_sums_in_another_order_would_decide_the_plain_run_does(seed):
    slots = RuledSlots(seed=seed, ties=True, noise=2e-5)
    text = drafted(slots, Guesses(slots, seed), [1, 2], 30)
    assert list(text.completion().token_ids) == continued([1, 2], 30, slots.rule)


def test_the_noise_of_that_test_is_enough_to_change_tokens():
    """Without the second look it would fail."""
    said = []
    for runs in (([0], [1], [2]), ([0], [1, 2])):
        slots, length = RuledSlots(seed=1, ties=True, noise=2e-5), 0
        for ids in runs:
            (answer,) = slots.run([Work(0, ids, length)])
            length += len(ids)
        said.append(int(answer.next_ids[-1]))
    assert said[0] != said[1]


def test_no_draft_goes_beyond_the_end_of_the_text():
    slots = RuledSlots()
    asked = []

    class Greedy:
        def draft(self, ids, most):
            asked.append((len(ids), most))
            return [0] * most

        def judge(self, drafted, accepted): ...

    drafted(slots, Greedy(), [1, 2, 3], 9)
    assert asked
    assert all(length + most < 12 for length, most in asked)
    assert max(map(len, fed(slots))) <= 9


def test_drafters_are_asked_in_turn_and_judged_only_by_their_own_drafts():
    slots = RuledSlots()

    class Silent:
        def draft(self, *_):
            return []

        def judge(self, *_):
            raise AssertionError("it has drafted nothing")

    class Right(Guesses):
        def draft(self, ids, most):
            return [self.slots.rule(ids)][:most]

    generation = Generation([1], Settings(max_new_tokens=9), tokenizer=LetterTokenizer(), eos_ids=(), room=9)
    scheduler, right = Scheduler(slots), Right(slots, 0)
    scheduler.add(text := GeneratedText(generation, [Silent(), right]))
    while not text.finished:
        scheduler.step()
    assert fed(slots)[0] == [1]
    assert [len(ids) for ids in fed(slots)] == [1, 2, 2, 2, 2]
    assert right.judged == [(1, 1)] * 4


def after_a_right_one():
    """From then on two ids are enough to go by."""
    lookup = PromptLookup()
    lookup.judge(2, 2)
    return lookup


def test_lookup_finds_what_came_after_the_last_ids_before():
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


def test_they_are_drafted_in_fewer_runs(model, runs):
    """Greedy continuations of this model repeat themselves: a third of the runs and more is saved."""
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

    monkeypatch.setattr(drafting, "PromptLookup", None)
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
