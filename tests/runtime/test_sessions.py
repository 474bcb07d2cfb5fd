"""A text that grows turn by turn is the text that it would be from scratch, and costs only what is new."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from fake_slots import scripted_slots

from runtime.engine.drafting import Drafting
from runtime.engine.loop import Loop
from runtime.engine.scheduler import Scheduler
from runtime.graphs.slots import HostSlots
from runtime.session import Session


@pytest.fixture
def session(model):
    with model.session() as opened:
        yield opened


@pytest.fixture
def scripted(model):
    """A session that is given these ids, whatever it asks."""

    def open_session(token_ids):
        return Session(Loop(Scheduler(scripted_slots(token_ids))), model.prompting, Drafting(exact=False))

    return open_session


def ids_of(vocabulary, text):
    return tuple(vocabulary.encode(text).ids)


def library_text(vocabulary, ids):
    return vocabulary.decode(list(ids), skip_special_tokens=False)


# the same as from scratch


def test_the_first_turn_is_a_completion(session, probe):
    completion = session.complete(probe.prompt, max_new_tokens=20)
    assert completion.token_ids == probe.token_ids[:20]
    assert completion.prompt_tokens == len(probe.prompt_ids)
    assert session.text == probe.prompt + completion.text
    assert session.token_ids == probe.prompt_ids + probe.token_ids[:20]


def test_each_turn_is_the_completion_of_the_whole_text(model, session):
    text = ""
    for more in (
        "It was a bright cold day",
        " Then the rain came,",
        " and she said: “",
        "”\n\nHe",
        " 😀é",
        "<|endoftext|>",
    ):
        completion = session.complete(more, max_new_tokens=7)
        assert completion == model.complete(text + more, max_new_tokens=7)
        text += more + completion.text
        assert session.text == text


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 3},
        {"temperature": 1.5, "seed": 4, "top_k": 200},
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 1.3, "seed": 1, "top_p": 0.9},
        {"stop": [",", "."]},
        {"ignore_eos": True, "temperature": 3.0, "seed": 9},
    ],
    ids=str,
)
def test_each_turn_with_options_is_too(model, session, options):
    text = ""
    for more in ("It was a bright cold day", " Then the rain came", " and she said", " at last"):
        completion = session.complete(more, max_new_tokens=12, **options)
        assert completion == model.complete(text + more, max_new_tokens=12, **options)
        text += more + completion.text


def test_log_probabilities_are_those_from_scratch(model, session):
    first = session.complete("It was a bright cold day", max_new_tokens=5)
    second = session.complete(" Then", max_new_tokens=5, logprobs=2)
    expected = model.complete(f"It was a bright cold day{first} Then", max_new_tokens=5, logprobs=2)
    assert second.token_ids == expected.token_ids
    for one, other in zip(second.logprobs, expected.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


@pytest.mark.parametrize(
    ("before", "more"), [("I saw the cat", "s"), ("He was not", "hing"), ("It was a bri", "ght day")]
)
def test_what_is_added_may_join_the_last_token(model, session, vocabulary, before, more):
    joined = ids_of(vocabulary, before + more)
    assert joined != ids_of(vocabulary, before) + ids_of(vocabulary, more)
    session.complete(before, max_new_tokens=1)
    session.rewind(1)
    assert session.text == before
    completion = session.complete(more, max_new_tokens=8)
    assert completion == model.complete(before + more, max_new_tokens=8)
    assert completion.prompt_tokens == len(joined)
    assert session.token_ids == joined + completion.token_ids


def test_what_is_added_may_join_the_last_generated_token(scripted, vocabulary):
    cat, cats = ids_of(vocabulary, " cat"), ids_of(vocabulary, " cats")
    assert cats[0] != cat[0]
    with scripted([*cat, *ids_of(vocabulary, ".")]) as session:
        session.complete("I saw the", max_new_tokens=len(cat))
        assert session.text == "I saw the cat"
        assert session.complete("s", max_new_tokens=1).prompt_tokens == len(ids_of(vocabulary, "I saw the cats"))
        assert session.token_ids == ids_of(vocabulary, "I saw the cats") + ids_of(vocabulary, ".")


def test_nothing_added_goes_on(session, probe):
    session.complete(probe.prompt, max_new_tokens=20)
    for start, count in ((20, 1), (21, 13), (34, 30)):
        completion = session.complete(max_new_tokens=count)
        assert completion.token_ids == probe.token_ids[start : start + count]
    assert session.token_ids == probe.prompt_ids + probe.token_ids[:64]
    assert session.text == probe.prompt + probe.text


def test_an_empty_beginning_starts_from_the_end_of_text(model, session, end_of_text):
    completion = session.complete("", max_new_tokens=8)
    assert completion == model.complete("", max_new_tokens=8)
    assert session.token_ids == (end_of_text, *completion.token_ids)
    assert session.text == "<|endoftext|>" + completion.text
    more = session.complete(" Then", max_new_tokens=8)
    assert more == model.complete(f"<|endoftext|>{completion} Then", max_new_tokens=8)


def test_a_new_session_has_no_text(model):
    with model.session() as session:
        assert session.text == ""
        assert session.token_ids == ()


# after an end, and after a stop


def test_what_ended_a_text_is_not_in_it_and_the_next_turn_goes_on_without(stopping, probe, turn, vocabulary):
    model = stopping(probe.token_ids[turn])
    with model.session() as session:
        first = session.complete(probe.prompt, max_new_tokens=60)
        assert first.finish_reason == "stop"
        before = probe.prompt + library_text(vocabulary, probe.token_ids[:turn])
        assert session.text == before
        assert session.token_ids == probe.prompt_ids + probe.token_ids[:turn]
        second = session.complete(" And then", max_new_tokens=9)
        assert second == model.complete(before + " And then", max_new_tokens=9)


def test_going_on_after_an_end_ends_again_unless_it_is_ignored(stopping, probe, turn):
    with stopping(probe.token_ids[turn]).session() as session:
        session.complete(probe.prompt, max_new_tokens=60)
        assert session.complete().token_ids == probe.token_ids[turn : turn + 1]
        assert session.complete(ignore_eos=True, max_new_tokens=9).token_ids == probe.token_ids[turn : turn + 9]


def test_a_text_that_ends_at_once_adds_nothing(stopping, probe):
    with stopping(probe.token_ids[0]).session() as session:
        assert session.complete(probe.prompt).text == ""
        assert session.text == probe.prompt
        assert session.token_ids == probe.prompt_ids


@pytest.mark.parametrize("stop", [".", "oul", " you, sir", "\n"])
def test_after_a_stop_the_text_ends_before_it(model, session, probes, stop, vocabulary):
    probe = next(probe for probe in probes if stop in probe.text)
    first = session.complete(probe.prompt, stop=stop, max_new_tokens=64)
    before = probe.prompt + probe.text[: probe.text.find(stop)]
    assert first.finish_reason == "stop"
    assert session.text == before
    assert session.token_ids == ids_of(vocabulary, before)
    assert session.complete(" And then", max_new_tokens=9) == model.complete(before + " And then", max_new_tokens=9)


def test_after_a_stop_nothing_added_goes_on_from_before_it(model, session, probe):
    stop = probe.text[20:23]
    before = probe.prompt + probe.text[: probe.text.find(stop)]
    session.complete(probe.prompt, stop=stop)
    assert session.complete(max_new_tokens=9) == model.complete(before, max_new_tokens=9)


# streams


def test_a_stream_is_a_turn_too(model, session, probe):
    stream = session.stream(probe.prompt, max_new_tokens=20)
    assert "".join(stream) == stream.completion.text
    assert stream.completion.token_ids == probe.token_ids[:20]
    assert session.text == probe.prompt + stream.completion.text
    expected = model.complete(f"{probe.prompt}{stream.completion} Then", max_new_tokens=9)
    assert session.complete(" Then", max_new_tokens=9) == expected


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_a_stream_closed_early_leaves_what_was_seen(model, session, probe, pieces, vocabulary):
    with session.stream(probe.prompt, max_new_tokens=40) as stream:
        seen = "".join(next(stream) for _ in range(pieces))
    assert session.text == probe.prompt + seen
    assert library_text(vocabulary, session.token_ids) == session.text
    assert session.complete(" Then", max_new_tokens=9) == model.complete(f"{probe.prompt}{seen} Then", max_new_tokens=9)


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_a_stream_closed_early_can_be_gone_on_with(session, probe, pieces):
    with session.stream(probe.prompt, max_new_tokens=40) as stream:
        for _ in range(pieces):
            next(stream)
    count = len(session.token_ids) - len(probe.prompt_ids)
    assert session.token_ids == probe.prompt_ids + probe.token_ids[:count]
    assert session.complete(max_new_tokens=9).token_ids == probe.token_ids[count : count + 9]


def test_a_stream_closed_early_leaves_nothing_that_was_held_back(session, probe, vocabulary):
    never = probe.text[2:30] + "\0"
    with session.stream(probe.prompt, stop=never, max_new_tokens=40) as stream:
        seen = next(stream) + next(stream)
        assert len(seen) < 30
    assert session.text == probe.prompt + seen
    assert library_text(vocabulary, session.token_ids) == session.text


def test_a_stream_that_nobody_holds_leaves_what_was_seen(model, session, probe):
    stream = session.stream(probe.prompt, max_new_tokens=40)
    seen = next(stream) + next(stream)
    del stream
    gc.collect()
    assert session.text == probe.prompt + seen
    expected = model.complete(f"{probe.prompt}{seen} Then", max_new_tokens=9)
    assert session.complete(" Then", max_new_tokens=9) == expected


def test_a_stream_never_begun_adds_nothing(session, probe, runs):
    session.stream(probe.prompt).close()
    assert session.text == ""
    assert runs == []
    assert session.complete(probe.prompt, max_new_tokens=5).token_ids == probe.token_ids[:5]


def test_a_stream_made_before_another_turn_is_stale(session, probe, refusal):
    stale = session.stream(probe.prompt, max_new_tokens=5)
    session.complete("It was", max_new_tokens=3)
    text = session.text
    assert "stream" in refusal(RuntimeError, lambda: next(stale))
    assert stale.completion is None
    assert session.text == text
    assert list(stale) == []


def test_of_two_streams_the_one_begun_first_is_the_turn(session, probe, refusal):
    one, two = (session.stream(probe.prompt, max_new_tokens=5) for _ in range(2))
    assert list(two)
    refusal(RuntimeError, lambda: next(one))
    assert one.completion is None
    assert session.token_ids == probe.prompt_ids + probe.token_ids[:5]


def test_a_stream_made_before_a_rewind_is_stale(session, probe, refusal):
    session.complete(probe.prompt, max_new_tokens=5)
    stale = session.stream(" Then")
    session.rewind(0)
    refusal(RuntimeError, lambda: next(stale))


def test_a_stream_made_before_the_session_closed_cannot_begin(model, probe, refusal):
    session = model.session()
    stream = session.stream(probe.prompt)
    session.close()
    assert "closed" in refusal(RuntimeError, lambda: next(stream))


def test_an_error_in_the_middle_leaves_the_text_seen_and_a_session_that_works(model, session, probe, monkeypatch):
    run, calls = HostSlots.run, []

    def failing(slots, works):
        calls.append(works)
        if len(calls) == 9:
            raise MemoryError("no room")
        return run(slots, works)

    monkeypatch.setattr(HostSlots, "run", failing)
    stream, seen = session.stream(probe.prompt, max_new_tokens=40), []
    with pytest.raises(MemoryError, match="no room"):
        seen += stream
    monkeypatch.undo()
    text = session.text
    assert text == probe.prompt + "".join(seen)
    assert seen
    assert session.complete(" Then", max_new_tokens=9) == model.complete(text + " Then", max_new_tokens=9)


# rewinding


def test_a_rewind_by_nothing_changes_nothing(session, probe):
    session.complete(probe.prompt, max_new_tokens=20)
    before = session.text, session.token_ids
    session.rewind(0)
    assert (session.text, session.token_ids) == before
    assert session.complete(max_new_tokens=5).token_ids == probe.token_ids[20:25]


@pytest.mark.parametrize("count", [1, 7, 20, 22])
def test_a_rewind_forgets_the_last_tokens(model, session, probe, count, vocabulary):
    session.complete(probe.prompt, max_new_tokens=20)
    session.rewind(count)
    kept = (probe.prompt_ids + probe.token_ids[:20])[:-count]
    assert session.token_ids == kept
    assert session.text == library_text(vocabulary, kept)
    assert session.complete(" Then", max_new_tokens=9) == model.complete(
        library_text(vocabulary, kept) + " Then", max_new_tokens=9
    )


def test_the_same_tokens_come_again_after_a_rewind(session, probe):
    for _ in range(3):
        assert (
            session.complete(probe.prompt if not session.text else "", max_new_tokens=20).token_ids
            == probe.token_ids[:20]
        )
        session.rewind(20)
        assert session.token_ids == probe.prompt_ids


def test_a_rewind_of_everything_is_a_new_beginning(model, session, probe):
    session.complete("Something else altogether", max_new_tokens=20)
    session.rewind(len(session.token_ids))
    assert session.text == ""
    assert session.token_ids == ()
    assert session.complete(probe.prompt, max_new_tokens=20).token_ids == probe.token_ids[:20]
    session.rewind(len(session.token_ids))
    assert session.complete("", max_new_tokens=5) == model.complete("", max_new_tokens=5)


@pytest.mark.parametrize("over", [1, 100])
def test_a_rewind_by_more_than_there_is_is_refused(session, probe, refusal, over):
    session.complete(probe.prompt, max_new_tokens=4)
    there = len(probe.prompt_ids) + 4
    message = refusal(ValueError, session.rewind, there + over)
    assert "tokens" in message
    assert str(there) in message
    assert str(there + over) in message
    assert session.token_ids == probe.prompt_ids + probe.token_ids[:4]


@pytest.mark.parametrize(("kind", "tokens"), [(ValueError, -1), (TypeError, None), (TypeError, 1.0), (TypeError, True)])
def test_a_rewind_by_what_is_no_count_is_refused(session, refusal, kind, tokens):
    assert "tokens" in refusal(kind, session.rewind, tokens)


# half a character


def test_a_character_cut_between_two_turns_is_whole_in_the_text(scripted, vocabulary):
    emoji = ids_of(vocabulary, "😀")
    with scripted([*emoji, *ids_of(vocabulary, "!")]) as session:
        session.complete("a", max_new_tokens=len(emoji) - 1)
        assert session.text == "a\ufffd"
        session.complete(max_new_tokens=2)
        assert session.token_ids == (*ids_of(vocabulary, "a"), *emoji, *ids_of(vocabulary, "!"))
        assert session.text == "a😀!"


def test_a_character_cut_by_a_rewind_may_become_another(scripted, vocabulary):
    cut, whole = ids_of(vocabulary, "é"), ids_of(vocabulary, "è")
    assert cut[:-1] == whole[:-1]
    with scripted([7, whole[-1]]) as session:
        session.complete("caf\u00e9", max_new_tokens=1)
        session.rewind(2)
        assert session.text == "caf\ufffd"
        session.complete(max_new_tokens=1)
        assert session.text == library_text(vocabulary, session.token_ids) == "cafè"


def test_text_behind_half_a_character_is_behind_a_replacement(scripted, vocabulary):
    with scripted([*ids_of(vocabulary, "😀")[:2], 7]) as session:
        session.complete("a", max_new_tokens=2)
        assert session.complete("b", max_new_tokens=1).prompt_tokens == len(ids_of(vocabulary, "a\ufffdb"))
        assert session.text.startswith("a\ufffdb")


# the context


def test_a_text_grows_to_the_end_of_the_context_and_no_further(endless, context, refusal, exactly):
    with endless.session() as session:
        completion = session.complete(exactly(context - 5), max_new_tokens=100)
        assert len(completion.token_ids) == 5
        assert completion.finish_reason == "length"
        before = session.text, session.token_ids
        for more in ("", " more"):
            message = refusal(ValueError, session.complete, more)
            assert f"{context - 1:,}" in message
            refusal(ValueError, session.stream, more)
        assert (session.text, session.token_ids) == before
        session.rewind(3)
        assert len(session.complete(max_new_tokens=100).token_ids) == 3
        assert session.token_ids == before[1]


def test_a_turn_that_leaves_no_place_changes_nothing(session, probe, context, refusal, exactly):
    session.complete(probe.prompt, max_new_tokens=20)
    before = session.text, session.token_ids
    message = refusal(ValueError, session.complete, exactly(context))
    assert f"{context - 1:,}" in message
    assert (session.text, session.token_ids) == before
    assert session.complete(max_new_tokens=20).token_ids == probe.token_ids[20:40]


@pytest.mark.parametrize(
    ("kind", "more"), [(TypeError, 3), (TypeError, ["x"]), (TypeError, None), (ValueError, "\ud800")]
)
def test_a_turn_that_is_no_text_is_refused_and_changes_nothing(session, probe, refusal, kind, more):
    session.complete(probe.prompt, max_new_tokens=20)
    for call in (session.complete, session.stream):
        assert "more_text" in refusal(kind, call, more)
    refusal(ValueError, session.complete, " more", max_new_tokens=0)
    assert session.complete(max_new_tokens=20).token_ids == probe.token_ids[20:40]


# one user at a time


def test_a_session_with_a_stream_under_way_is_in_use(session, probe, refusal):
    stream = session.stream(probe.prompt, max_new_tokens=30)
    pieces = [next(stream)]
    for call in (session.complete, session.stream, lambda: session.rewind(0)):
        assert "in use" in refusal(RuntimeError, call)
    pieces += list(stream)
    assert stream.completion.token_ids == probe.token_ids[:30]
    assert "".join(pieces) == stream.completion.text
    assert session.complete(max_new_tokens=9).token_ids == probe.token_ids[30:39]


def test_a_session_in_another_thread_is_in_use(session, probe, refusal, monkeypatch):
    run, under_way, go_on = HostSlots.run, threading.Event(), threading.Event()

    def waiting(slots, works):
        under_way.set()
        assert go_on.wait(timeout=60)
        return run(slots, works)

    monkeypatch.setattr(HostSlots, "run", waiting)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(session.complete, probe.prompt, max_new_tokens=9)
        assert under_way.wait(timeout=60)
        message = refusal(RuntimeError, session.complete, "It was")
        refusal(RuntimeError, session.rewind, 0)
        go_on.set()
        assert other.result(timeout=60).token_ids == probe.token_ids[:9]
    assert "in use" in message
    assert session.complete(max_new_tokens=9).token_ids == probe.token_ids[9:18]


def test_sessions_at_once_do_not_share_a_text(model, probes):
    sessions = [model.session() for _ in probes]
    for session, probe in zip(sessions, probes, strict=True):
        session.complete(probe.prompt, max_new_tokens=9)
    for session, probe in zip(sessions, probes, strict=True):
        assert session.complete(max_new_tokens=9).token_ids == probe.token_ids[9:18]
        session.close()


# closing


def test_a_closed_session_is_refused_and_its_text_can_be_read(model, probe, refusal):
    session = model.session()
    session.complete(probe.prompt, max_new_tokens=5)
    session.close()
    session.close()
    for call in (session.complete, session.stream, lambda: session.rewind(0)):
        assert "closed" in refusal(RuntimeError, call)
    assert session.token_ids == probe.prompt_ids + probe.token_ids[:5]
    assert session.text.startswith(probe.prompt)


def test_a_with_block_gives_the_session_and_closes_it(model, refusal):
    session = model.session()
    with session as entered:
        assert entered is session
    refusal(RuntimeError, session.complete, "It was")


@pytest.mark.parametrize("end", ["closed", "dropped"])
def test_a_session_that_ends_leaves_no_text_in_a_slot(fresh, probe, end):
    session = fresh.session()
    stream = session.stream(probe.prompt, max_new_tokens=40)
    next(stream)
    assert fresh.loop.busy
    if end == "closed":
        stream.close()
        session.close()
    del session, stream
    gc.collect()
    assert fresh.complete("It was", max_new_tokens=1).token_ids
    assert not fresh.loop.busy


def test_nobody_gets_the_cache_of_a_stream_that_is_still_under_way(fresh, probes):
    """Whatever closing the session in its middle does to the stream, all that anybody sees is true."""
    one, two = probes[0], probes[-1]
    session = fresh.session()
    stream = session.stream(one.prompt, max_new_tokens=40)
    pieces = [next(stream)]
    with suppress(RuntimeError):  # it may be refused, as any other use would be
        session.close()
    other = fresh.stream(two.prompt, max_new_tokens=40)
    others = [next(other)]
    with suppress(RuntimeError):
        pieces += stream
    others += list(other)
    assert "".join(others) == fresh.complete(two.prompt, max_new_tokens=40).text
    assert other.completion.token_ids == two.token_ids[:40]
    assert fresh.complete(one.prompt, max_new_tokens=40).text.startswith("".join(pieces))
    assert stream.completion is None or stream.completion.token_ids == one.token_ids[:40]
    session.close()


# what it costs


def test_a_turn_reads_only_what_is_new(fresh, probe, runs, vocabulary):
    session = fresh.session()
    session.complete(probe.prompt, max_new_tokens=10)
    assert runs == [len(probe.prompt_ids), *[1] * 9]
    runs.clear()
    session.complete(max_new_tokens=4)  # the last token was not read yet
    assert runs == [1] * 4
    runs.clear()
    more = " Then the rain came"
    completion = session.complete(more, max_new_tokens=3)
    assert runs == [1 + len(ids_of(vocabulary, more)), 1, 1]
    assert completion.prompt_tokens == len(probe.prompt_ids) + 14 + len(ids_of(vocabulary, more))


def test_a_turn_after_a_rewind_reads_only_what_is_new(session, probe, runs):
    session.complete(probe.prompt, max_new_tokens=10)
    session.rewind(6)
    runs.clear()
    session.complete(max_new_tokens=3)
    assert runs == [1, 1, 1]


def test_a_turn_after_a_stop_reads_only_what_is_new(session, probe, runs, vocabulary):
    session.complete(probe.prompt, stop=probe.text[20:23])
    known = session.token_ids
    runs.clear()
    session.complete(" Then", max_new_tokens=1)
    new = len(ids_of(vocabulary, session.text)) - len(known)
    assert runs[0] <= new + 1
    assert sum(runs) < len(known)


def test_a_turn_that_joins_the_last_token_reads_from_there(session, runs, vocabulary):
    session.complete("I saw the cat", max_new_tokens=1)
    session.rewind(1)
    runs.clear()
    session.complete("s", max_new_tokens=1)
    one, other = ids_of(vocabulary, "I saw the cat"), ids_of(vocabulary, "I saw the cats")
    same = next(n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert runs == [len(other) - same]
