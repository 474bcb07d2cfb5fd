"""The scheduler with a made-up language instead of a graph: each text is what it would be alone, in few steps."""

import signal

import pytest
from fake_slots import FakeSlots, LaunchingSlots, continued, erratic, fed, repetitive
from fakes import LetterTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.drafts import PromptLookup
from runtime.engine.loop import Loop
from runtime.engine.scheduler import PREFILL_TOKENS, Scheduler, prompt_tokens
from runtime.engine.slots import LEAST_SHARED, MOST_KEPT
from runtime.engine.texts import AHEAD, GeneratedText, ScoredText
from runtime.text.generation import Generation
from runtime.text.options import Settings


def text_of(prompt, count=8, *, drafted=False, streamed=False, **options):
    chosen = Settings(max_new_tokens=count, **options)
    generation = Generation(prompt, chosen, tokenizer=LetterTokenizer(), eos_ids=(), room=count)
    return GeneratedText(generation, [PromptLookup()] if drafted else [], streamed=streamed)


def run(scheduler, *texts):
    """Add texts, and step until all of them are finished; how many steps that took."""
    for text in texts:
        scheduler.add(text)
    return finish(scheduler, *texts)


def finish(scheduler, *texts):
    for steps in range(10_000):
        if all(text.finished for text in texts):
            return steps
        scheduler.step()
    raise AssertionError("it does not end")


def token_ids(text):
    return list(text.completion().token_ids)


def words(seed, count):
    """A prompt that shares nothing with one of another seed."""
    return continued([seed % 4, seed // 4 % 4, seed // 16 % 4], count)[:count]


@pytest.fixture
def slots():
    return FakeSlots(8)


@pytest.fixture
def scheduler(slots):
    return Scheduler(slots)


# steps


def test_a_text_alone_is_read_in_one_step_and_then_grows_by_one_id_a_step(scheduler, slots):
    text = text_of([1, 2, 3], count=4)
    assert run(scheduler, text) == 4
    assert token_ids(text) == continued([1, 2, 3], 4)
    assert [len(ids) for step in slots.steps_run for ids in step.values()] == [3, 1, 1, 1]


def test_texts_that_decode_are_all_in_every_step(scheduler, slots):
    texts = [text_of([n], count=6) for n in range(4)]
    assert run(scheduler, *texts) == 6
    assert all(len(step) == 4 for step in slots.steps_run)
    assert [token_ids(text) for text in texts] == [continued([n], 6) for n in range(4)]


def test_a_text_may_join_and_leave_at_any_step(scheduler):
    long, short = text_of([1], count=20), text_of([2, 2], count=3)
    scheduler.add(long)
    for _ in range(5):
        scheduler.step()
    run(scheduler, short)
    finish(scheduler, long)
    assert token_ids(short) == continued([2, 2], 3)
    assert token_ids(long) == continued([1], 20)


def test_a_long_prompt_is_read_in_chunks_beside_texts_that_decode(scheduler, slots):
    decoding = [text_of([n], count=60) for n in range(3)]
    for text in decoding:
        scheduler.add(text)
    scheduler.step()
    slots.steps_run.clear()
    prompt = words(7, 300)
    run(scheduler, long := text_of(prompt, count=1))
    assert token_ids(long) == continued(prompt, 1)
    assert len(slots.steps_run) == -(-300 // prompt_tokens(3))
    for step in slots.steps_run:
        assert sum(len(ids) == 1 for ids in step.values()) >= 3  # nobody waited
        assert sum(map(len, step.values())) <= 3 + prompt_tokens(3)


def test_prompts_are_read_oldest_first(scheduler):
    scheduler.add(text_of([1], count=100))
    scheduler.step()
    first, second = text_of(words(1, 200), count=1), text_of(words(2, 200), count=1)
    scheduler.add(first)
    scheduler.add(second)
    while not first.finished:
        assert second.read == 0 or first.read + prompt_tokens(1) > len(first.ids)
        scheduler.step()
    assert not second.finished
    finish(scheduler, second)


def test_prompts_alone_are_read_in_as_few_steps_as_there_is_room_for(scheduler, slots):
    texts = [text_of(words(n, PREFILL_TOKENS // 4), count=1) for n in range(6)]
    assert run(scheduler, *texts) == 2
    assert sum(map(len, slots.steps_run[0].values())) == PREFILL_TOKENS


def test_prompts_of_one_caller_are_read_first_as_nobody_waits_for_one_of_them(scheduler, slots):
    texts = [text_of(words(n, 200), count=9) for n in range(6)]
    for text in texts:
        text.owner = texts
    run(scheduler, *texts)
    assert [sum(map(len, step.values())) for step in slots.steps_run[:3]] == [512, 514, 5 + 176]


def test_texts_wait_for_a_slot_in_their_order():
    scheduler = Scheduler(FakeSlots(2))
    texts = [text_of([n % 4, n // 4], count=5) for n in range(7)]
    ends = []
    for text in texts:
        scheduler.add(text)
    while len(ends) < len(texts):
        ends += [text for text in scheduler.step() if text.finished]
    assert ends == texts
    assert [token_ids(text) for text in texts] == [continued(text.generation.prompt_ids, 5) for text in texts]


# leaving


def test_a_cancelled_text_frees_its_slot_within_a_step():
    scheduler = Scheduler(FakeSlots(1))
    long, other = text_of([1], count=1000), text_of([2], count=1)
    scheduler.add(long)
    scheduler.step()
    scheduler.cancel(long)
    assert run(scheduler, other) == 1
    assert token_ids(other) == continued([2], 1)


def test_a_text_that_is_cancelled_while_it_waits_never_runs():
    slots = FakeSlots(1)
    scheduler = Scheduler(slots)
    first, waiting = text_of([1], count=3), text_of([2], count=3)
    scheduler.add(first)
    scheduler.add(waiting)
    scheduler.step()
    scheduler.cancel(waiting)
    finish(scheduler, first)
    scheduler.step()
    assert len(slots.steps_run) == 3
    assert waiting.slot is None


def test_a_text_fails_for_itself_only(scheduler, slots, monkeypatch):
    good, bad = text_of([1], count=9), text_of([3, 3], count=9)
    answer = slots.answer

    def failing(work):
        if bad.slot == work.slot and work.past_length > 4:
            raise MemoryError("no room")
        return answer(work)

    monkeypatch.setattr(slots, "answer", failing)
    run(scheduler, good, bad)
    assert token_ids(good) == continued([1], 9)
    with pytest.raises(MemoryError, match="no room"):
        bad.completion()
    run(scheduler, after := text_of([3], count=2))
    assert token_ids(after) == continued([3], 2)


def test_a_text_for_which_there_is_no_memory_fails_for_itself_only(scheduler, slots, monkeypatch):
    def reserve(_, tokens):
        if tokens > 100:
            raise MemoryError("no room")

    monkeypatch.setattr(slots, "reserve", reserve)
    good, bad = text_of([1], count=9), text_of([2], count=900)
    run(scheduler, good, bad)
    assert token_ids(good) == continued([1], 9)
    with pytest.raises(MemoryError, match="no room"):
        bad.completion()


def test_an_interrupted_run_costs_nobody_anything(scheduler, slots, monkeypatch):
    texts = [text_of([n], count=6) for n in range(3)]
    for text in texts:
        scheduler.add(text)
    scheduler.step()
    with monkeypatch.context() as patch:
        patch.setattr(slots, "run", lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            scheduler.step()
    finish(scheduler, *texts)
    assert [token_ids(text) for text in texts] == [continued([n], 6) for n in range(3)]


def test_an_interrupt_in_the_midst_of_a_step_waits_until_all_have_its_answers(scheduler, monkeypatch):
    texts = [text_of([n], count=6) for n in range(3)]
    take = GeneratedText.take

    def interrupted(text, *given):
        if text is texts[1] and len(text.ids) == 3:
            signal.raise_signal(signal.SIGINT)
        take(text, *given)

    monkeypatch.setattr(GeneratedText, "take", interrupted)
    for text in texts:
        scheduler.add(text)
    with pytest.raises(KeyboardInterrupt):
        Loop(scheduler).wait(lambda: texts[0].finished)
    assert [len(text.ids) for text in texts] == [4, 4, 4]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finish(scheduler, *texts)
    assert [token_ids(text) for text in texts] == [continued([n], 6) for n in range(3)]


# what slots keep


def test_a_prompt_that_continues_an_ended_text_reads_only_what_is_new(scheduler, slots):
    prompt = words(3, 100)
    run(scheduler, first := text_of(prompt, count=5))
    slots.steps_run.clear()
    longer = [*first.ids, 1, 2]
    run(scheduler, second := text_of(longer, count=2))
    assert token_ids(second) == continued(longer, 2)
    assert [ids for step in slots.steps_run for ids in step.values()] == [longer[104:], token_ids(second)[:1]]
    assert slots.copies == []


def test_the_same_prompt_again_runs_its_last_id(scheduler, slots):
    prompt = words(3, 100)
    run(scheduler, text_of(prompt, count=5))
    slots.steps_run.clear()
    run(scheduler, again := text_of(prompt, count=1))
    assert slots.steps_run == [dict.fromkeys(slots.steps_run[0], prompt[-1:])]
    assert token_ids(again) == continued(prompt, 1)


def test_a_prompt_with_a_beginning_of_a_busy_slot_copies_it(scheduler, slots):
    prompt = words(5, 64)
    scheduler.add(busy := text_of(prompt, count=50))
    scheduler.step()
    other = [*prompt[:40], *(3 - token for token in prompt[40:])]
    run(scheduler, text := text_of(other, count=3))
    assert [length for _, _, length in slots.copies] == [40]
    assert token_ids(text) == continued(other, 3)
    finish(scheduler, busy)
    assert token_ids(busy) == continued(prompt, 50)


def test_several_samples_of_a_prompt_read_it_once(scheduler, slots):
    prompt = words(9, 200)
    texts = [text_of(prompt, count=4, temperature=1.0, seed=seed) for seed in range(5)]
    run(scheduler, *texts)
    assert sum(len(ids) for step in slots.steps_run for ids in step.values()) == 200 + 4 + 5 * 3
    assert len(slots.copies) == 4


def test_few_ids_in_common_are_not_copied(scheduler, slots):
    prompt = words(5, LEAST_SHARED - 1)
    scheduler.add(text_of([*prompt, 1], count=50))
    scheduler.step()
    run(scheduler, text := text_of([*prompt, 2], count=2))
    assert slots.copies == []
    assert token_ids(text) == continued([*prompt, 2], 2)


def test_as_many_ended_texts_are_kept_as_memory_is_meant_for(scheduler, slots):
    for n in range(MOST_KEPT + 3):
        run(scheduler, text_of(words(n, 20), count=1))
    scheduler.step()
    assert sum(map(bool, slots.held)) <= MOST_KEPT


def test_the_slot_that_was_used_last_is_kept_longest():
    slots = FakeSlots(3)
    scheduler = Scheduler(slots)
    prompts = [words(n, 50) for n in range(4)]
    for n in (0, 1, 2, 0, 3):  # 3 takes the slot of 1
        run(scheduler, text_of(prompts[n], count=1))
    slots.steps_run.clear()
    for n, tokens in ((0, 1), (2, 1), (3, 1), (1, 50)):
        run(scheduler, text_of(prompts[n], count=1))
        assert sum(map(len, slots.steps_run.pop().values())) == tokens


# readers


def test_a_stream_that_nobody_reads_stops_ahead_of_its_reader(scheduler):
    stream, other = text_of([1], count=100, streamed=True), text_of([2], count=60)
    scheduler.add(stream)
    run(scheduler, other)
    assert len(stream.generation.token_ids) == AHEAD
    seen = stream.piece()
    while not stream.seen:
        scheduler.step()
        seen += stream.piece()
    assert seen == LetterTokenizer().decode(continued([1], 100))


def test_a_stream_that_nobody_reads_lends_its_slot_and_reads_its_ids_again():
    scheduler = Scheduler(FakeSlots(1))
    stream, other = text_of([1, 2], count=60, streamed=True), text_of([2], count=30)
    scheduler.add(stream)
    for _ in range(AHEAD):
        scheduler.step()
    run(scheduler, other)
    assert token_ids(other) == continued([2], 30)
    seen = stream.piece()
    while not stream.seen:
        scheduler.step()
        seen += stream.piece()
    assert seen == LetterTokenizer().decode(continued([1, 2], 60))


def test_a_stream_whose_text_is_held_back_goes_on():
    scheduler = Scheduler(FakeSlots(2, language=lambda _: 0))
    stop = "a" * 50 + "b"
    stream = text_of([1], count=80, streamed=True, stop=(stop,))
    scheduler.add(stream)
    for _ in range(60):
        scheduler.step()
    assert len(stream.generation.token_ids) > 50


# drafts


@pytest.mark.parametrize("count", [1, 2, 50, 200])
def test_drafted_texts_say_the_same_in_fewer_steps(count):
    prompts = [[0, 1, 2, 3, 1], [2, 2, 0], [3, 1, 1, 1, 2, 0, 0]]
    steps = {}
    for drafted in (False, True):
        texts = [text_of(prompt, count, drafted=drafted) for prompt in prompts]
        steps[drafted] = run(Scheduler(FakeSlots(8, repetitive)), *texts)
        assert [token_ids(text) for text in texts] == [continued(prompt, count, repetitive) for prompt in prompts]
    assert steps[True] <= steps[False]
    assert count < 50 or steps[True] < 0.6 * steps[False]


def test_a_draft_never_runs_past_the_end_of_a_text():
    slots = FakeSlots(1, repetitive)
    run(Scheduler(slots), text := text_of([1, 0, 1, 0, 1], 30, drafted=True))
    assert len(slots.held[0]) < len(text.ids) == 35


def test_a_tie_after_a_draft_is_settled_by_single_runs(monkeypatch):
    slots = FakeSlots(1, repetitive)
    answer = slots.answer

    def tied(work):
        """After 20 ids a run over several of them would choose another one."""
        found = answer(work)
        ends = [work.past_length + len(work.token_ids) - work.answers + 1 + n for n in range(work.answers)]
        for n, end in enumerate(ends):
            if end == 20:
                found.tied[n] = True
                if len(work.token_ids) > 1:
                    found.next_ids[n] = (found.next_ids[n] + 1) % 4
        return found

    monkeypatch.setattr(slots, "answer", tied)
    prompt = [0, 1, 2, 3, 1]
    run(Scheduler(slots), text := text_of(prompt, 40, drafted=True))
    assert any(len(ids) > 1 for step in slots.steps_run[1:] for ids in step.values())
    assert token_ids(text) == continued(prompt, 40, repetitive)


# scores


def test_a_scored_text_has_the_log_probabilities_of_its_ids(scheduler):
    ids = words(1, 300)
    for first in (1, 7, 299):
        run(scheduler, text := ScoredText(ids, first))
        right = [1.0 if erratic(ids[:n]) == ids[n] else 0.0 for n in range(first, 300)]
        assert len(text.result()) == 300 - first
        assert [logprob > -1 for logprob in text.result()] == [bool(one) for one in right]


# without the cache of beginnings


def test_without_the_cache_of_beginnings_each_text_reads_all_its_ids():
    slots, prompt = FakeSlots(4), words(3, 100)
    scheduler = Scheduler(slots, prefix_cache=False)
    for texts in ([text_of(prompt, count=2)], [text_of(prompt, count=2), text_of(prompt, count=2)]):
        slots.steps_run.clear()
        run(scheduler, *texts)
        assert sum(map(len, fed(slots))) == len(texts) * 101
    assert slots.copies == []


# a device that feeds itself


def test_a_device_feeds_itself_and_takes_longer_runs_as_it_goes():
    slots = LaunchingSlots(4)
    texts = [text_of([n], count=60) for n in range(3)]
    run(Scheduler(slots), *texts)
    assert [token_ids(text) for text in texts] == [continued([n], 60) for n in range(3)]
    assert slots.launched[:5] == [1, 2, 4, 8, 16]
    assert slots.under_way is None


def test_a_text_that_joins_waits_for_the_steps_under_way():
    slots = LaunchingSlots(4)
    scheduler = Scheduler(slots)
    first, second = text_of([1], count=80), text_of([2, 3], count=10)
    scheduler.add(first)
    for _ in range(6):
        scheduler.step()
    run(scheduler, second)
    finish(scheduler, first)
    assert token_ids(first) == continued([1], 80)
    assert token_ids(second) == continued([2, 3], 10)


def test_a_cancelled_text_leaves_a_device_that_feeds_itself():
    slots = LaunchingSlots(1)
    scheduler = Scheduler(slots)
    scheduler.add(first := text_of([1], count=1000))
    for _ in range(6):
        scheduler.step()
    scheduler.cancel(first)
    run(scheduler, second := text_of([2, 3], count=10))
    assert token_ids(second) == continued([2, 3], 10)


def test_a_text_that_ends_is_told_so_at_once_although_another_goes_on():
    slots = LaunchingSlots(4)
    scheduler = Scheduler(slots)
    long, short = text_of([1], count=1000), text_of([2], count=40, stop=(LetterTokenizer().decode(continued([2], 3)),))
    scheduler.add(long)
    scheduler.add(short)
    while not short.finished:
        scheduler.step()
    assert len(long.ids) < 40
    finish(scheduler, long)
    assert token_ids(short) == continued([2], 3)
    assert token_ids(long) == continued([1], 1000)


@pytest.mark.parametrize("name", ["launch", "collect"])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_error_on_a_device_ends_the_text_and_the_next_one_is_right(monkeypatch, name, at):
    slots, error = LaunchingSlots(4), RuntimeError("CUDA failure 700")
    scheduler, calls, call = Scheduler(slots), [], getattr(slots, name)

    def failing(*given):
        calls.append(1)
        if len(calls) == at:
            slots.under_way = None
            raise error
        return call(*given)

    monkeypatch.setattr(slots, name, failing)
    run(scheduler, text := text_of([1], count=60))
    with pytest.raises(RuntimeError) as caught:
        text.completion()
    assert caught.value is error
    run(scheduler, *(texts := [text_of([n], count=60) for n in range(3)]))
    assert [token_ids(text) for text in texts] == [continued([n], 60) for n in range(3)]


def test_texts_whose_steps_cannot_be_launched_together_run_side_by_side(monkeypatch):
    slots = LaunchingSlots(4)
    launch = slots.launch

    def failing(works, steps):
        if len(works) > 1:
            raise MemoryError("no room")
        launch(works, steps)

    monkeypatch.setattr(slots, "launch", failing)
    run(Scheduler(slots), *(texts := [text_of([n], count=20 + n) for n in range(3)]))
    assert [token_ids(text) for text in texts] == [continued([n], 20 + n) for n in range(3)]


def test_an_interrupt_while_a_device_steps_costs_nobody_anything(monkeypatch):
    slots = LaunchingSlots(4)
    scheduler, collect = Scheduler(slots), slots.collect

    def interrupted():
        slots.under_way = None
        monkeypatch.setattr(slots, "collect", collect)
        signal.raise_signal(signal.SIGINT)

    texts = [text_of([n], count=60) for n in range(3)]
    for text in texts:
        scheduler.add(text)
    for _ in range(4):
        scheduler.step()
    monkeypatch.setattr(slots, "collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scheduler.step()
    finish(scheduler, *texts)
    assert [token_ids(text) for text in texts] == [continued([n], 60) for n in range(3)]


# a device without memory


def test_texts_that_have_ended_make_room_for_one_that_begins(scheduler, slots, monkeypatch):
    def reserve(slot, _tokens):
        if sum(map(bool, slots.held)) >= 2 and not slots.held[slot]:
            raise MemoryError("no room")

    monkeypatch.setattr(slots, "reserve", reserve)
    for n in range(6):
        run(scheduler, text := text_of(words(n, 20), count=3))
        assert token_ids(text) == continued(words(n, 20), 3)


def test_a_text_that_ran_out_of_memory_gives_back_what_nobody_uses(scheduler, slots, monkeypatch):
    run(scheduler, text_of(words(1, 20), count=3))

    def fail(_works):
        raise MemoryError("no room")

    monkeypatch.setattr(slots, "run", fail)
    run(scheduler, failed := text_of(words(2, 20), count=3))
    with pytest.raises(MemoryError, match="no room"):
        failed.completion()
    monkeypatch.undo()
    scheduler.step()
    assert not any(slots.held)
    run(scheduler, after := text_of(words(2, 20), count=3))
    assert token_ids(after) == continued(words(2, 20), 3)


# all of it at once


PROMPTS = st.lists(st.integers(0, 3), min_size=1, max_size=12).flatmap(
    lambda end: st.sampled_from([0, 20, 90, 700]).map(lambda size: [*words(size, size), *end])
)
TEXTS = st.fixed_dictionaries(
    {"prompt": PROMPTS, "count": st.integers(1, 40), "drafted": st.booleans(), "streamed": st.booleans()}
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), TEXTS),
        st.tuples(st.just("step"), st.integers(1, 12)),
        st.tuples(st.sampled_from(["cancel", "read"]), st.integers(0, 30)),
        st.tuples(st.just("interrupt"), st.just(0)),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=1000, deadline=None)
@given(events=EVENTS, size=st.integers(1, 5), kind=st.sampled_from([FakeSlots, LaunchingSlots]))
def test_whatever_joins_leaves_and_is_interrupted_each_text_is_what_it_would_be_alone(events, size, kind):
    slots = kind(size)
    scheduler, texts, cancelled = Scheduler(slots), [], set()
    for name, value in events:
        if name == "add":
            value = {**value, "drafted": value["drafted"] and kind is FakeSlots}
            texts.append(text_of(**value))
            scheduler.add(texts[-1])
        elif name == "step":
            for _ in range(value):
                scheduler.step()
        elif name == "interrupt":
            interrupted(scheduler, slots)
        elif texts and name == "cancel":
            scheduler.cancel(texts[value % len(texts)])
            cancelled.add(value % len(texts))
        elif texts:
            texts[value % len(texts)].piece()
    for _ in range(5000):
        if all(text.finished for n, text in enumerate(texts) if n not in cancelled):
            break
        scheduler.step()
        for text in texts:
            text.piece()
    for n, text in enumerate(texts):
        prompt, count = text.generation.prompt_ids, text.most_ids - len(text.generation.prompt_ids)
        found = text.generation.token_ids
        assert found == continued(prompt, count)[: len(found)]
        assert len(found) == count or n in cancelled
    scheduler.step()
    scheduler.step()
    assert not scheduler.busy


def interrupted(scheduler, slots):
    """A step whose run is interrupted."""
    run = slots.run
    slots.run = lambda _: signal.raise_signal(signal.SIGINT)
    try:
        scheduler.step()
    except KeyboardInterrupt:
        pass
    finally:
        slots.run = run
