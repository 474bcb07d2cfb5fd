"""What a guide lets through, in how many runs, and with which reason a guided text ends."""

import numpy as np
import pytest
from fake_slots import FakeSlots, fed
from fakes import LetterTokenizer

import runtime
from runtime.engine.scheduler import Scheduler
from runtime.engine.texts import GeneratedText
from runtime.text.generation import Generation
from runtime.text.grammars import check_regex
from runtime.text.guide import Guides
from runtime.text.options import Settings
from runtime.text.sampling import Sampler
from runtime.text.tokenizer import Tokenizer

pytest.importorskip("llguidance")

PROMPT = "The old house stood"
SENTENCE = "The quick brown fox jumps over the lazy dog!"
FORM = {
    "type": "object",
    "properties": {"the name of the house": {"enum": ["Thornfield"]}, "is it old": {"type": "boolean"}},
    "required": ["the name of the house", "is it old"],
    "additionalProperties": False,
}


# runs


def test_forced_ids_take_one_run_with_the_prompt(model, runs, vocabulary):
    completion = model.complete(PROMPT, regex=SENTENCE)
    assert completion.text == SENTENCE
    assert list(completion.token_ids) == vocabulary.encode(SENTENCE).ids
    assert len(runs) == 1
    runs.clear()
    assert model.complete(PROMPT, regex=SENTENCE, draft=False) == completion
    assert len(runs) == len(completion.token_ids)


@pytest.mark.parametrize("options", [{}, {"seed": 3}, {"logprobs": 2}, {"draft": True}, {"repetition_penalty": 1.2}])
def test_they_save_runs_and_change_nothing(model, runs, options):
    """Of a form, only its answers are left to the model."""
    slow = model.complete(PROMPT, json_schema=FORM, **options | {"draft": False})
    many = len(runs)
    runs.clear()
    fast = model.complete(PROMPT, json_schema=FORM, **options)
    assert fast.token_ids == slow.token_ids
    assert fast.text == slow.text
    assert many == len(slow.token_ids) > 12
    assert len(runs) <= many // 3
    if slow.logprobs:
        pairs = zip(slow.logprobs, fast.logprobs, strict=True)
        assert all(one.logprob == pytest.approx(other.logprob, abs=1e-4) for one, other in pairs)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_they_end_where_the_text_does(model, runs, count, vocabulary):
    completion = model.complete(PROMPT, regex=SENTENCE, max_new_tokens=count)
    assert list(completion.token_ids) == vocabulary.encode(SENTENCE).ids[:count]
    assert completion.finish_reason == "incomplete"
    assert len(runs) == 1


def test_long_ones_take_several_runs(model, runs):
    told = " ".join(["the house by the sea"] * 20)
    completion = model.complete(PROMPT, regex=told, max_new_tokens=200)
    assert completion.text == told
    assert len(completion.token_ids) > 80
    assert len(runs) == -(-len(completion.token_ids) // 33)  # 32 forced ids, and the one that follows them


def test_the_log_probabilities_are_the_models_own(model):
    (first, *_) = model.complete(PROMPT, regex="[0-9]{3}", logprobs=3).logprobs
    (free,) = model.complete(PROMPT, max_new_tokens=1, logprobs=3).logprobs
    assert [token for token, _ in first.top] == [token for token, _ in free.top]
    assert [logprob for _, logprob in first.top] == pytest.approx([logprob for _, logprob in free.top], abs=1e-4)
    assert first.token_id not in [token for token, _ in free.top]


class TiedSlots(FakeSlots):
    """Every answer is so close that another order of its sum could change it."""

    def answer(self, work):
        answer = super().answer(work)
        return answer._replace(tied=np.ones_like(answer.tied))


class Spelled:
    """A guide that knows the whole text, and leaves a choice at every fourth id."""

    whole = True

    def __init__(self, ids):
        self.ids, self.taken = ids, 0

    @property
    def allowed(self):
        return np.array([self.ids[self.taken]])

    @property
    def over(self):
        return self.taken == len(self.ids)

    def forced(self, most):
        return self.ids[self.taken : min(self.taken + most, self.taken // 4 * 4 + 4)]

    def take(self, token):
        assert token == self.ids[self.taken]
        self.taken += 1


@pytest.mark.parametrize("draft", [None, False])
def test_a_tie_is_no_reason_to_read_forced_ids_again(draft):
    ids = [1, 2, 3, 0] * 3
    settings = Settings(max_new_tokens=20, draft=draft)
    generation = Generation([3, 1], settings, tokenizer=LetterTokenizer(), eos_ids=(), room=20, guide=Spelled(ids))
    slots, text = TiedSlots(1), GeneratedText(generation)
    scheduler = Scheduler(slots)
    scheduler.add(text)
    while not text.finished:
        scheduler.step()
    assert list(text.completion().token_ids) == ids
    expected = (
        [[3, 1, 1, 2, 3, 0], [1, 2, 3, 0], [1, 2, 3, 0]] if draft is None else [[3, 1], *([each] for each in ids[:-1])]
    )
    assert fed(slots) == expected


# masks


@pytest.fixture(scope="module")
def guides(bundle, vocabulary):
    """Guides of the bundle's tokenizer, for so many logits."""

    def make(vocab_size=None):
        return Guides(Tokenizer(bundle / "tokenizer.json"), vocab_size or vocabulary.get_vocab_size())

    return make


@pytest.mark.parametrize(
    "pattern",
    [
        "[a-f]{2,5}(x|yz)*",
        "(the|then|there) (he|her|hers)?",
        r"[0-9]+(\.[0-9]+)?",
        "([A-Z][a-z]+ )+end",
        "a(b|c(d|e)){2}",
    ],
)
def test_no_other_id_than_one_that_fits_is_allowed(guides, vocabulary, end_of_text, pattern):
    """Each id's text is tried with the package regex, which knows beginnings: all that fit may come, or one must."""
    regex = pytest.importorskip("regex")
    compiled, chance = regex.compile(pattern), np.random.default_rng(0)
    texts = {token: vocabulary.decode([token]) for token in range(vocabulary.get_vocab_size()) if token != end_of_text}
    guide, text = guides().begin(check_regex("regex", pattern), [end_of_text]), ""
    for _ in range(12):
        fits = {token for token, more in texts.items() if compiled.fullmatch(text + more, partial=True)}
        allowed = {*guide.allowed.tolist()}
        assert (end_of_text in allowed) == guide.whole == (regex.fullmatch(pattern, text) is not None)
        forced = guide.forced(99)
        assert allowed - {end_of_text} == ({forced[0]} if forced else fits)
        assert {*forced[:1]} <= fits
        if not allowed - {end_of_text}:
            assert guide.over
            break
        token = int(chance.choice([*allowed - {end_of_text}]))
        guide.take(token)
        text += texts[token]


def test_forced_ids_are_the_only_ones_in_their_turn(guides, end_of_text):
    guide = guides().begin(check_regex("regex", f"{SENTENCE} (Yes|No), {SENTENCE}"), [end_of_text])
    for _ in range(2):
        forced = guide.forced(99)
        assert len(forced) > 5
        assert guide.forced(3) == forced[:3]
        assert guide.forced(0) == guide.forced(-1) == []
        for token in forced:
            assert guide.allowed.tolist() == [token]
            guide.take(token)
        while not guide.forced(1) and not guide.over:
            guide.take(int(guide.allowed[-1]))


@pytest.mark.parametrize("size", [600, 8192, 9000])
def test_logits_may_be_fewer_or_more_than_the_tokenizers_ids(guides, vocabulary, size):
    guide = guides(size).begin(check_regex("regex", "[a-z ]+"), [0])
    known = vocabulary.get_vocab_size()
    assert known == 8192
    assert 20 < len(guide.allowed) <= min(size, known)
    assert guide.allowed.max() < min(size, known)
    guide.take(int(guide.allowed[-1]))
    assert 0 in guide.allowed
    assert guide.allowed.max() < min(size, known)


def test_the_vocabulary_may_lack_what_a_grammar_needs(guides, vocabulary, refusal):
    beyond = check_regex("regex", "z")
    assert vocabulary.token_to_id("z") > 60
    assert refusal(ValueError, guides(60).begin, beyond, [0]).startswith("regex must allow")
    guide = guides(vocabulary.token_to_id("z")).begin(check_regex("regex", "[ab]z"), [0])
    assert refusal(ValueError, guide.take, vocabulary.token_to_id("a")).startswith("regex leaves no id to go on with")
    guide = guides().begin(check_regex("regex", "b[#]|bß"), [vocabulary.token_to_id("#")])  # which may not come as text
    guide.take(vocabulary.token_to_id("b"))
    assert vocabulary.token_to_id("#") not in guide.allowed
    ends = guides().begin(check_regex("regex", "[bc]#"), [vocabulary.token_to_id("#")])
    assert refusal(ValueError, ends.take, vocabulary.token_to_id("b")).startswith("regex leaves no id to go on with")


def test_the_mask_comes_after_the_penalty_and_before_the_filters():
    logits = np.array([9, 8, 5, 4.9, 1], np.float32)
    allowed = np.array([2, 3, 4])
    assert Sampler(Settings(), []).choose(logits, allowed) == 2
    assert Sampler(Settings(repetition_penalty=2.0), [2]).choose(logits, allowed) == 3
    for options in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
        assert Sampler(Settings(seed=1, **options), []).choose(logits, allowed) == 2
    draws = [Sampler(Settings(seed=seed, top_k=2), []).choose(logits, allowed) for seed in range(200)]
    assert {*draws} == {2, 3}
    assert 70 < draws.count(2) < 140  # 1 / (1 + exp(-0.1)) is 0.525
    assert logits.tolist() == np.array([9, 8, 5, 4.9, 1], np.float32).tolist()


# ends


def test_what_is_not_whole_is_incomplete(model):
    assert model.complete(PROMPT, json_schema=FORM, max_new_tokens=6).finish_reason == "incomplete"
    assert model.complete(PROMPT, json_schema=FORM).finish_reason == "stop"
    assert model.complete(PROMPT, regex="[a-z ]+", max_new_tokens=5).finish_reason == "length"
    assert model.complete(PROMPT, regex="[a-z ]+!", max_new_tokens=5).finish_reason == "incomplete"


def test_so_is_what_the_context_cuts(model, context, exactly):
    completion = model.complete(exactly(context - 4), json_schema=FORM)
    assert completion.finish_reason == "incomplete"
    assert len(completion.token_ids) == 4


def test_the_last_token_of_a_whole_text_is_a_stop_even_at_the_limit(model, vocabulary):
    count = len(vocabulary.encode(SENTENCE).ids)
    assert model.complete(PROMPT, regex=SENTENCE, max_new_tokens=count).finish_reason == "stop"


def test_a_stop_string_may_leave_a_text_whole_or_not(model):
    whole = model.complete(PROMPT, regex=r" on the table[a-z ,]{9,}", stop="table")
    assert (whole.text, whole.finish_reason) == (" on the ", "incomplete")
    cut = model.complete(PROMPT, regex=r"[a-z ]+,[a-z ]*", stop=[","])
    assert cut.text.replace(" ", "").isalpha()
    assert cut.finish_reason == "incomplete"
    left = model.complete(PROMPT, regex=r"[a-z ]+(,[a-z ]*)?", stop=[","], max_new_tokens=30)
    assert left.text == cut.text
    assert left.finish_reason == "stop"


def test_a_model_without_an_end_stops_where_nothing_may_follow(endless):
    completion = endless.complete(PROMPT, regex="(yes|no) indeed")
    assert completion.text in ("yes indeed", "no indeed")
    assert completion.finish_reason == "stop"
    further = endless.complete(PROMPT, regex="[a-z ]+", max_new_tokens=40)
    assert further.finish_reason == "length"
    assert len(further.token_ids) == 40


def test_an_id_that_ends_a_text_comes_only_where_the_text_is_whole(stopping, vocabulary):
    letter = vocabulary.token_to_id("a")
    model = stopping([letter, 0])
    for seed in range(10):
        completion = model.complete(PROMPT, regex="[ab]{3}c", seed=seed, temperature=1e6)
        assert completion.finish_reason == "stop"
        assert letter not in completion.token_ids
        assert len(completion.text) == 4
    completion = model.complete(PROMPT, regex="b[ab]*", seed=1, temperature=1e6, max_new_tokens=900)
    assert completion.token_ids[-1] in (letter, 0)
    assert letter not in completion.token_ids[:-1]
    assert completion.finish_reason == "stop"


@pytest.mark.parametrize("count", range(1, 9))
def test_half_a_character_is_not_shown(model, count):
    completion = model.complete(PROMPT, regex="[一-龥]{4}", max_new_tokens=count, seed=1)
    assert "\N{REPLACEMENT CHARACTER}" not in completion.text
    assert all("一" <= character <= "龥" for character in completion.text)
    assert completion.finish_reason == ("stop" if len(completion.text) == 4 else "incomplete")


def test_a_session_goes_on_from_a_text_that_was_cut(model):
    with model.session() as session:
        session.complete(PROMPT, regex="[一-龥]{4}", max_new_tokens=2, seed=1)
        assert "\N{REPLACEMENT CHARACTER}" not in session.text
        assert session.complete(" or", regex=" yes| no").text in (" yes", " no")


def test_guided_and_other_texts_share_steps(model):
    loaded = runtime.load(model.bundle.folder, device="cpu", verify=False, slots=2)
    stream = loaded.stream(PROMPT, max_new_tokens=12)
    first = next(stream)
    guided = loaded.complete(PROMPT, json_schema=FORM)
    assert first + "".join(stream) == model.complete(PROMPT, max_new_tokens=12).text
    assert guided == model.complete(PROMPT, json_schema=FORM)
