"""Stop strings: the first one that is complete ends a text, however the text came in pieces."""

from itertools import accumulate, pairwise

import pytest
from fake_slots import scripted_slots
from hypothesis import example, given, settings
from hypothesis import strategies as st

import runtime.engine.pieces
from runtime.engine.loop import Loop
from runtime.engine.scheduler import Scheduler
from runtime.engine.texts import GeneratedText
from runtime.text.generation import Generation, StopFilter
from runtime.text.options import Settings
from runtime.text.tokenizer import Tokenizer

LETTERS = st.text("aab", max_size=24)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)
CUTS = st.lists(st.integers(0, 24), max_size=8)
every_case = settings(deadline=None, database=None, max_examples=1000)


def before_first_stop(text, stops):
    """(the text before the stop whose end comes first, of several the longest; whether there is one)."""
    for end in range(len(text) + 1):
        ending_here = [stop for stop in stops if text[:end].endswith(stop)]
        if ending_here:
            return text[: end - max(map(len, ending_here))], True
    return text, False


def cut(text, places):
    borders = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(borders)]


def filtered(stops, pieces):
    """(what came out for each piece and at the end, whether a stop was found)."""
    stop_filter, shown = StopFilter(stops), []
    for piece in pieces:
        shown.append(stop_filter.push(piece))
        if stop_filter.found:
            return shown, True
    return [*shown, stop_filter.flush()], False


# the filter alone


@given(text=LETTERS, stops=STOPS, places=CUTS)
@example(text="aaab", stops=["aab"], places=[1, 2, 3])
@example(text="abcde".replace("c", "a"), stops=["abade", "ad"], places=[3])
@every_case
def test_the_stop_whose_end_comes_first_ends_the_text_however_it_is_cut(text, stops, places):
    shown, found = filtered(stops, cut(text, places))
    assert ("".join(shown), found) == before_first_stop(text, stops)


@given(text=LETTERS, stops=STOPS, places=CUTS)
@every_case
def test_nothing_is_let_through_that_is_taken_back_and_no_more_is_held_than_may_be_a_stop(text, stops, places):
    pieces = cut(text, places)
    shown, found = filtered(stops, pieces)
    final, _ = before_first_stop(text, stops)
    beginnings = {stop[:length] for stop in stops for length in range(len(stop))}
    undecided = len(shown) - 1  # the last of them is the end, which holds nothing
    for let_through, come in zip(accumulate(shown[:undecided]), accumulate(pieces), strict=False):
        assert final.startswith(let_through)
        assert come.startswith(let_through)
        assert len(come) - len(let_through) == max(len(each) for each in beginnings if come.endswith(each))
    assert found or "".join(shown) == text


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""]),
        (["aab"], ["aaab", "never seen"], ["a"]),
        (["ab", "abc"], ["xab", "c"], ["x"]),  # a stop that begins another: it is complete first
        (["bc", "abc"], ["xabc"], ["x"]),  # one that ends another: the longest goes
        (["bc", "abcd"], ["xab", "cd"], ["x", "a"]),  # one inside another: its end comes first
        (["abcd", "bx"], ["ab", "x"], ["", "a"]),
        (["ab", "ab"], ["ab"], [""]),
        (["."], ["one. Two."], ["one"]),
        (["xyz"], ["xy", "xy", "!"], ["", "xy", "xy!", ""]),
        (["xyz"], ["xy"], ["", "xy"]),
        (["é😀"], ["é", "😀"], ["", ""]),
        ([], ["a", "", "b"], ["a", "", "b", ""]),
        (["a"], [], [""]),
        (["a"], ["", ""], ["", "", ""]),
    ],
)
def test_pieces_by_hand(stops, pieces, shown):
    assert filtered(stops, pieces)[0] == shown


def test_a_long_stop_that_nearly_comes_again_and_again_is_found_at_last():
    stop = "ab" * 500 + "c"
    shown, found = filtered([stop], ["ab"] * 3000 + ["c"])
    assert found
    assert "".join(shown) == "ab" * 2500


# stops in a known continuation


@pytest.fixture(scope="module")
def tokenizer(bundle):
    return Tokenizer(bundle / "tokenizer.json")


@pytest.fixture(scope="module")
def texts(vocabulary):
    """The text after each of these ids."""

    def after_each(token_ids):
        return [vocabulary.decode(list(token_ids[:n]), skip_special_tokens=False) for n in range(1, len(token_ids) + 1)]

    return after_each


@pytest.fixture(scope="module")
def ends_in(texts):
    """Where a continuation is ended by any of these stops: (its text, its ids)."""

    def end(probe, *stops):
        shown, found = before_first_stop(probe.text, stops)
        assert found, f"none of {stops} is in {probe.text!r}"
        needed = next(n for n, text in enumerate(texts(probe.token_ids), 1) if any(stop in text for stop in stops))
        return shown, probe.token_ids[:needed]

    return end


@pytest.fixture(scope="module")
def pieces(texts):
    """The text that each of a probe's ids adds."""
    return lambda probe: [after[len(before) :] for before, after in pairwise(["", *texts(probe.token_ids)])]


@pytest.fixture(params=["complete", "stream", "batch", "session"])
def completed(request, model):
    """What any of the calls makes of a prompt."""

    def by_stream(prompt, **options):
        stream = model.stream(prompt, **options)
        text = "".join(stream)
        assert text == stream.completion.text
        return stream.completion

    def by_session(prompt, **options):
        with model.session() as session:
            return session.complete(prompt, **options)

    calls = {
        "complete": model.complete,
        "stream": by_stream,
        "batch": lambda prompt, **options: model.complete(["It", prompt], **options)[1],
        "session": by_session,
    }
    return calls[request.param]


def scripted(token_ids, generation):
    """The pieces of a generation that is given these ids one after the other."""
    return runtime.engine.pieces.pieces(
        Loop(Scheduler(scripted_slots(token_ids))), GeneratedText(generation, streamed=True)
    )


def check(completion, text, token_ids, reason="stop"):
    assert completion.text == text
    assert completion.token_ids == token_ids
    assert completion.finish_reason == reason


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_a_stop_anywhere_in_a_known_text_ends_it_there(tokenizer, probes, ends_in, length):
    """PyTorch's ids one after the other, without the graph: so every place can be tried."""
    for probe in probes:
        for start in range(len(probe.text) - length + 1):
            stop = probe.text[start : start + length]
            settings = Settings(max_new_tokens=len(probe.token_ids), stop=(stop,))
            generation = Generation([0], settings, tokenizer=tokenizer, eos_ids=(), room=1000)
            shown = "".join(scripted(probe.token_ids, generation))
            assert shown == generation.completion().text
            check(generation.completion(), *ends_in(probe, stop))


@pytest.mark.parametrize("token", [0, 2, 5, 20])
def test_a_stop_that_is_a_token(completed, probe, pieces, ends_in, token):
    stop = pieces(probe)[token]
    check(completed(probe.prompt, stop=stop), *ends_in(probe, stop))


def test_a_stop_across_the_border_of_two_tokens(completed, probes, pieces, ends_in):
    for probe in probes:
        parts = pieces(probe)
        stop = parts[4][-1] + parts[5][0]
        check(completed(probe.prompt, stop=stop), *ends_in(probe, stop))


def test_a_stop_across_three_tokens(completed, probe, pieces, ends_in):
    parts = pieces(probe)
    stop = parts[6][-1] + parts[7] + parts[8][:2]
    check(completed(probe.prompt, stop=stop), *ends_in(probe, stop))


def test_a_stop_in_the_middle_of_a_token_takes_the_rest_of_it_too(completed, probe, pieces, ends_in):
    stop = next(part for part in pieces(probe) if len(part) > 3)[1:-1]
    text, token_ids = ends_in(probe, stop)
    check(completed(probe.prompt, stop=stop), text, token_ids)


def test_a_stop_at_the_very_first_token_leaves_nothing(completed, probes, pieces):
    for probe in probes:
        stop = pieces(probe)[0]
        check(completed(probe.prompt, stop=stop), "", probe.token_ids[:1])


def test_a_stop_with_the_last_allowed_token_is_a_stop(completed, probe, pieces, ends_in):
    stop = pieces(probe)[7] + pieces(probe)[8]
    text, token_ids = ends_in(probe, stop)
    check(completed(probe.prompt, stop=stop, max_new_tokens=len(token_ids)), text, token_ids)


def test_a_text_cut_in_the_middle_of_a_stop_has_its_length_and_all_of_its_text(
    completed, probe, pieces, ends_in, texts
):
    stop = pieces(probe)[7] + pieces(probe)[8]
    _, token_ids = ends_in(probe, stop)
    count = len(token_ids) - 1
    expected = texts(probe.token_ids)[count - 1]
    check(completed(probe.prompt, stop=stop, max_new_tokens=count), expected, probe.token_ids[:count], "length")


def test_a_stop_that_never_comes_changes_nothing(completed, probe):
    assert "\0" not in probe.text
    completion = completed(probe.prompt, stop=["\0", probe.text + "\0"], max_new_tokens=len(probe.token_ids))
    check(completion, probe.text, probe.token_ids, "length")


@pytest.mark.parametrize("kind", [list, tuple])
def test_of_several_stops_the_first_in_the_text_ends_it(completed, probe, pieces, ends_in, kind):
    stops = kind([pieces(probe)[20], pieces(probe)[9] + pieces(probe)[10], "\0"])
    check(completed(probe.prompt, stop=stops), *ends_in(probe, *stops))


def test_the_prompt_is_not_looked_at(completed, probe):
    begins_in_it = probe.prompt[-1] + probe.text[0]
    assert begins_in_it not in probe.text
    stops = [probe.prompt, begins_in_it]
    check(
        completed(probe.prompt, stop=stops, max_new_tokens=len(probe.token_ids)), probe.text, probe.token_ids, "length"
    )


def test_each_token_of_a_stopped_text_has_its_log_probability(completed, probe, pieces, ends_in):
    stop = pieces(probe)[7] + pieces(probe)[8]
    text, token_ids = ends_in(probe, stop)
    completion = completed(probe.prompt, stop=stop, logprobs=2)
    check(completion, text, token_ids)
    assert tuple(each.token_id for each in completion.logprobs) == token_ids
    assert all(each.top[0] == (each.token_id, each.logprob) for each in completion.logprobs)


def test_a_stream_holds_back_only_what_may_be_a_stop(model, probe):
    word = probe.text.split()[3]
    never = word + "\0"
    shown = "".join(model.stream(probe.prompt, stop=never, max_new_tokens=len(probe.token_ids)))
    assert shown == probe.text
    for piece in model.stream(probe.prompt, stop=never, max_new_tokens=len(probe.token_ids)):
        assert piece


# stops and the end of a text


def test_the_end_of_a_text_comes_before_its_stop(stopping, probe, turn, texts):
    later = probe.text[len(texts(probe.token_ids)[turn]) :][:12]
    text, ids = texts(probe.token_ids)[turn - 1], probe.token_ids[: turn + 1]
    assert later not in text
    check(stopping(probe.token_ids[turn]).complete(probe.prompt, stop=later), text, ids)


def test_a_stop_comes_before_the_end_of_a_text(stopping, probe, turn, ends_in, texts):
    stop = texts(probe.token_ids)[turn - 1][-2:]
    check(stopping(probe.token_ids[turn]).complete(probe.prompt, stop=stop), *ends_in(probe, stop))


def test_what_was_held_back_is_given_when_the_text_ends(stopping, probe, turn, texts):
    text = texts(probe.token_ids)[turn - 1]
    completion = stopping(probe.token_ids[turn]).complete(probe.prompt, stop=text[-2:] + "\0")
    check(completion, text, probe.token_ids[: turn + 1])


def test_an_end_that_is_ignored_is_text_like_any_other(stopping, probe, turn):
    count = len(probe.token_ids)
    model = stopping(probe.token_ids[turn])
    check(model.complete(probe.prompt, ignore_eos=True, max_new_tokens=count), probe.text, probe.token_ids, "length")
    assert "".join(model.stream(probe.prompt, ignore_eos=True, max_new_tokens=count)) == probe.text


def test_an_end_that_is_ignored_may_be_a_stop(stopping, probe, turn, pieces, ends_in):
    stop = pieces(probe)[turn]
    check(stopping(probe.token_ids[turn]).complete(probe.prompt, ignore_eos=True, stop=stop), *ends_in(probe, stop))


def test_the_end_of_text_that_is_ignored_shows_its_name(tokenizer, end_of_text, vocabulary):
    name = vocabulary.id_to_token(end_of_text)
    ids = [*vocabulary.encode("a").ids, end_of_text, *vocabulary.encode("b").ids]
    for stop, shown in (((), f"a{name}b"), ((name,), "a"), (("|>b",), f"a{name[:-2]}")):
        options = Settings(max_new_tokens=3, ignore_eos=True, stop=stop)
        generation = Generation([0], options, tokenizer=tokenizer, eos_ids=[end_of_text], room=100)
        assert "".join(scripted(ids, generation)) == shown
