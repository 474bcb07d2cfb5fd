"""A text that grows turn by turn, as transformers continues the whole of it, tokenized anew."""

from random import Random

import numpy as np
import pytest

import runtime
from runtime.bundle.bundle import open_bundle
from runtime.engine.drafting import Drafting
from runtime.engine.loop import Loop
from runtime.engine.scheduler import Scheduler
from runtime.graphs.kinds import runs
from runtime.graphs.state import DecodeState
from runtime.session import Session
from runtime.text.prompts import Prompting

TURNS = [
    "It was a bright cold day",
    " Then the rain came,",
    "\n\n“Who is there?” said",
    "ly, and",
    " The end.\n\nCHAPTER II\n\n",
]
STOPS = [",", ".", " the", "\n", "”", "and s"]


@pytest.fixture
def check_turn(shipped):
    """Complete more text in a session, as transformers' greedy decoding of the whole text does.

    The whole text is tokenized anew where there is more of it, and else goes on from its own ids, which the turn before
    has checked.
    """

    def check(session, more_text, count=10, **options):
        before, own_ids = session.text, list(session.token_ids)
        prompt_ids = own_ids if own_ids and not more_text else shipped.ids(before + more_text)
        completion = session.complete(more_text, max_new_tokens=count, ignore_eos=True, **options)
        assert completion.prompt_tokens == len(prompt_ids)
        expected = shipped.generate(prompt_ids, count)
        if completion.finish_reason == "stop":
            expected = expected[: len(completion.token_ids)]
        shipped.assert_same(completion.token_ids, expected, prompt_ids)
        assert session.text == (before + more_text or "<|endoftext|>") + completion.text
        if completion.finish_reason == "length":
            assert session.token_ids == (*prompt_ids, *completion.token_ids)
        else:
            assert list(session.token_ids) == shipped.ids(session.text)
        return completion

    return check


class Watched:
    """One slot, and how many ids each run of it read."""

    def __init__(self, slots):
        self.slots, self.runs = slots, []

    def __getattr__(self, name):
        return getattr(self.slots, name)

    def run(self, works):
        self.runs += [len(work.token_ids) for work in works]
        return self.slots.run(works)

    def holding(self, length):
        """The slot as one text of so many tokens."""
        state = DecodeState(self.slots)
        state.length = length
        return state


@pytest.fixture(params=["ragged", "decode"])
def watched(request, shipped):
    """A session, and the slot in which it keeps what it has read, of either decode graph."""
    if not runs(request.param):
        pytest.skip("this ONNX Runtime has no query_seqlens")
    graph = shipped.ragged if request.param == "ragged" else shipped.decode
    slots = Watched(graph.slots(1))
    return Session(Loop(Scheduler(slots)), Prompting(open_bundle(shipped.bundle)), Drafting(exact=False)), slots


def assert_slot_is_true(pair, slots, ids, pytorch, names):
    """Every key and value it holds, and the logits after the last id, are those of one run over these ids."""
    truth = names(pytorch(pair.truth, np.array([ids])))
    outputs = copied(slots, ids)
    kept = {name: array for name, array in truth.items() if name.startswith("present.")}
    pair.assert_close(outputs, {"logits": truth["logits"][:, -1:], **kept}, f"a session of {len(ids)} tokens")


def test_turn_after_turn(model, check_turn):
    with model.session() as session:
        for turn in TURNS:
            check_turn(session, turn, 16)
        assert session.text.startswith("It was a bright cold day")
        assert "CHAPTER II" in session.text


def test_without_more_text_it_goes_on_where_it_stopped(model, shipped):
    prompt_ids = shipped.ids("The captain looked at")
    with model.session() as session:
        completions = [session.complete("The captain looked at", max_new_tokens=8, ignore_eos=True)]
        completions += [session.complete(max_new_tokens=count, ignore_eos=True) for count in (1, 7, 16)]
        tokens = [token for completion in completions for token in completion.token_ids]
        shipped.assert_same(tokens, shipped.generate(prompt_ids, 32), prompt_ids)
        assert session.token_ids == (*prompt_ids, *tokens)
        assert session.text == "The captain looked at" + shipped.decoded(tokens)


def test_an_empty_session_starts_from_the_end_of_text(model, shipped, check_turn):
    with model.session() as session:
        assert (session.text, session.token_ids) == ("", ())
        check_turn(session, "")
        assert session.token_ids[0] == shipped.tokenizer.eos_token_id
        check_turn(session, " And then")
        session.rewind(len(session.token_ids))
        assert (session.text, session.token_ids) == ("", ())
        check_turn(session, "")


def test_what_is_added_may_join_the_last_token(model, shipped, check_turn):
    with model.session() as session:
        check_turn(session, "He walked slow")
        session.rewind(10)
        assert session.text == "He walked slow"
        apart = [*session.token_ids, *shipped.ids("ly")]
        assert shipped.ids("He walked slowly") != apart
        check_turn(session, "ly")


@pytest.mark.parametrize("tokens", [0, 1, 2, 5, 10, 12])
def test_a_rewound_text_is_continued_with_and_without_more(model, shipped, check_turn, tokens):
    for more_text in ("", " but"):
        with model.session() as session:
            check_turn(session, "My dear sir, I have")
            kept = list(session.token_ids)[: len(session.token_ids) - tokens]
            session.rewind(tokens)
            assert list(session.token_ids) == kept
            assert session.text == shipped.decoded(kept)
            check_turn(session, more_text)


def test_a_rewound_turn_can_be_taken_again(model, check_turn):
    with model.session() as session:
        first = check_turn(session, "She opened the")
        second = check_turn(session, " door")
        session.rewind(len(second.token_ids))
        session.rewind(0)
        assert check_turn(session, "") == second
        session.rewind(len(session.token_ids))
        assert check_turn(session, "She opened the") == first


@pytest.mark.parametrize("stop", STOPS, ids=repr)
def test_a_text_ends_before_its_stop_and_is_continued_from_there(model, shipped, check_turn, stop):
    with model.session() as session:
        completion = check_turn(session, "When the clock struck twelve, the", 40, stop=stop)
        continuation = shipped.decoded(shipped.generate(shipped.ids("When the clock struck twelve, the"), 40))
        if stop in continuation:
            assert completion.finish_reason == "stop"
            assert completion.text == continuation[: continuation.index(stop)]
        check_turn(session, " again", 8)
        check_turn(session, "", 8)


def test_an_end_of_text_is_not_part_of_it(short_sentences):
    pair, model = short_sentences, runtime.load(short_sentences.bundle, device="cpu")
    ends = pair.float32.generation_config.eos_token_id
    with model.session() as session:
        whole = ""
        for turn in ("He opened the letter slowly and", "; but nobody", " (or so it seems)"):
            prompt_ids = pair.ids(whole + turn)
            expected = pair.generate(prompt_ids, 64, eos_token_id=ends)
            completion = session.complete(turn, max_new_tokens=64)
            pair.assert_same(completion.token_ids, expected, prompt_ids)
            assert completion.finish_reason == "stop"
            whole += turn + pair.decoded(completion.token_ids[:-1])
            assert session.text == whole
            assert list(session.token_ids) == pair.ids(whole)


def test_a_penalty_covers_the_whole_text(model, shipped):
    with model.session() as session:
        first = session.complete("Once upon a time there was a", max_new_tokens=16, ignore_eos=True)
        whole = f"Once upon a time there was a{first} Once"
        second = session.complete(" Once", max_new_tokens=16, repetition_penalty=1.5, ignore_eos=True)
    prompt_ids = shipped.ids(whole)
    expected = shipped.generate(prompt_ids, 16, repetition_penalty=1.5)
    shipped.assert_same(second.token_ids, expected, prompt_ids, penalty=1.5)


def test_a_stream_closed_early_keeps_what_was_seen(model, shipped, check_turn):
    with model.session() as session:
        with session.stream("The sea was calm, and", max_new_tokens=40, ignore_eos=True) as stream:
            seen = [next(stream) for _ in range(5)]
        assert session.text == "The sea was calm, and" + "".join(seen)
        assert list(session.token_ids) == shipped.ids(session.text)
        check_turn(session, " the ship")


def test_a_session_grows_to_the_end_of_the_context(model, shipped, check_turn):
    text = shipped.decoded((shipped.tokenizer("The rain fell, and nobody came. ")["input_ids"] * 80)[:480])
    with model.session() as session:
        check_turn(session, text, 8)
        prompt_ids = shipped.ids(session.text + " At last")
        last = session.complete(" At last", max_new_tokens=100, ignore_eos=True)
        assert len(session.token_ids) == 512
        shipped.assert_same(last.token_ids, shipped.generate(prompt_ids, 512 - len(prompt_ids)), prompt_ids)
        with pytest.raises(ValueError, match="the session's text must be at most 511 tokens"):
            session.complete(" more")
        session.rewind(30)
        check_turn(session, "")


def test_keys_values_and_logits_are_those_of_one_run(watched, shipped, pytorch, names, check_turn):
    session, slots = watched
    for turn, stop in zip(TURNS, (None, ",", None, ".", None), strict=True):
        prompt_ids = shipped.ids(session.text + turn)
        completion = check_turn(session, turn, 12, stop=stop)
        read = [*prompt_ids, *completion.token_ids][:-1]  # nobody needed the logits after the last
        assert_slot_is_true(shipped, slots, read, pytorch, names)


def test_a_turn_reads_only_what_is_new(watched, shipped, check_turn):
    session, slots = watched
    check_turn(session, "The doctor looked at the patient and", 4)
    first = shipped.ids("The doctor looked at the patient and")
    assert slots.runs == [len(first), 1, 1, 1]
    slots.runs.clear()
    before = len(session.token_ids)
    check_turn(session, " shook his head", 4)
    added = len(shipped.ids(session.text)) - before - 4
    assert slots.runs == [added + 1, 1, 1, 1]  # the last token of the turn before was not read yet


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_turns_stops_and_rewinds(watched, shipped, pytorch, names, check_turn, seed):
    session, slots = watched
    random, states = Random(seed), []
    for _ in range(10):
        if session.token_ids and random.random() < 0.3:
            session.rewind(random.randrange(len(session.token_ids) + 1))
            continue
        more_text, stop = random.choice([*TURNS, "", "", "s", "."]), random.sample(STOPS, random.randrange(3))
        prompt_ids = session.token_ids if session.token_ids and not more_text else shipped.ids(session.text + more_text)
        completion = check_turn(session, more_text, random.randrange(1, 12), stop=stop)
        read = [*prompt_ids, *completion.token_ids][:-1]
        states.append((read, copied(slots, read)))
    assert_as_near_as_pytorch(shipped, states, pytorch, names)


def copied(slots, ids):
    """The keys and values of these ids, which the slot has read, and the logits after the last one."""
    state = slots.holding(len(ids))
    cache = {name: array.copy() for name, array in state.cache().items()}
    state.rewind(len(ids) - 1)
    return {"logits": state.step(ids[-1:])[1][None, None].copy(), **cache}


def assert_as_near_as_pytorch(pair, states, pytorch, names):
    """Each tensor, over all turns, is at most twice as far from the truth as PyTorch's float32 on the same ids.

    All turns together: after a few tokens a single tensor's error scatters, and PyTorch's own as much.
    """
    errors = {}
    for ids, outputs in states:
        truth, float32 = (names(pytorch(model, np.array([ids]))) for model in (pair.truth, pair.float32))
        for name, ours in outputs.items():
            true, theirs = (
                tensors[name][:, -1:] if name == "logits" else tensors[name] for tensors in (truth, float32)
            )
            norms = [np.linalg.norm(array) ** 2 for array in (ours - true, theirs - true, true)]
            errors[name] = errors.get(name, 0) + np.array(norms)
    for name, squares in errors.items():
        error, noise, size = np.sqrt(squares)
        assert error <= max(2 * noise, 1e-6 * size), name


def test_a_character_whose_second_half_comes_in_the_next_turn_is_whole(model, shipped):
    with model.session() as session:
        session.complete("the café", max_new_tokens=1)
        session.rewind(2)  # the new token, and the second byte of é
        session.complete(max_new_tokens=1)
        character = shipped.decoded(session.token_ids)[-1]
        assert character != "\N{REPLACEMENT CHARACTER}"  # the model does add a second byte
        assert session.text == f"the caf{character}"
