"""Text while it is generated: whole characters, as soon as they are certain, and nothing held longer than needed."""

import gc
import threading
import time
from collections import Counter
from itertools import accumulate, chain

import pytest
import tokenizers
from fake_slots import scripted_slots
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.loop import Loop
from runtime.engine.pieces import pieces
from runtime.engine.scheduler import Scheduler
from runtime.engine.texts import GeneratedText
from runtime.graphs.slots import HostSlots
from runtime.text.generation import Generation
from runtime.text.options import Settings
from runtime.text.tokenizer import IncrementalDecoder, Tokenizer

CHARACTERS = st.characters(exclude_categories=["Cs"])
HARD = st.sampled_from(["é", "€", "😀", "\ufffd", "👩\u200d🚀", "e\u0301", "“", " ", "<|endoftext|>", "\0", "'s"])
TEXT = st.lists(st.one_of(CHARACTERS, HARD), max_size=10).map("".join)
WILD = {"temperature": 3.0, "seed": 5}  # seldom a word, often half a character
every_case = settings(deadline=None, database=None, max_examples=300)


@pytest.fixture(scope="module")
def tokenizer(bundle):
    return Tokenizer(bundle / "tokenizer.json")


@pytest.fixture(scope="module")
def byte_of():
    """GPT-2's letters for bytes: printable ones stand for themselves, the others come in order from U+0100 on."""
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in themselves]
    return {chr(byte): byte for byte in themselves} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


@pytest.fixture(scope="module")
def id_of(vocabulary, byte_of):
    """The id of each byte."""
    return {byte: vocabulary.token_to_id(letter) for letter, byte in byte_of.items()}


@pytest.fixture(scope="module")
def some_ids(vocabulary, id_of):
    """Any ids at all, and those of texts that lose some on the way."""
    single_bytes = st.sampled_from(list(id_of.values()))
    anything = st.lists(st.one_of(st.integers(0, vocabulary.get_vocab_size() - 1), single_bytes), max_size=20)
    texts = TEXT.map(lambda text: vocabulary.encode(text).ids)
    bytewise = TEXT.map(lambda text: [id_of[byte] for byte in text.encode()])
    lossy = st.tuples(st.one_of(texts, bytewise), st.integers(0, 20), st.integers(0, 3)).map(
        lambda drawn: drawn[0][: drawn[1]] + drawn[0][drawn[1] + drawn[2] :]
    )
    return st.lists(st.one_of(anything, texts, bytewise, lossy), max_size=3).map(
        lambda lists: list(chain.from_iterable(lists))
    )


def pieces_of(tokenizer, ids):
    decoder = IncrementalDecoder(tokenizer)
    return [*(decoder.push(token) for token in ids), decoder.flush()]


def scripted(token_ids, generation):
    """The pieces of a generation that is given these ids one after the other."""
    return pieces(Loop(Scheduler(scripted_slots(token_ids))), GeneratedText(generation, streamed=True))


def library_text(vocabulary, ids):
    return vocabulary.decode(list(ids), skip_special_tokens=False)


# ids one at a time


@given(data=st.data())
@every_case
def test_joined_pieces_are_the_librarys_text_of_all_ids(tokenizer, vocabulary, some_ids, data):
    ids = data.draw(some_ids)
    assert "".join(pieces_of(tokenizer, ids)) == library_text(vocabulary, ids)


@given(data=st.data())
@every_case
def test_what_was_given_stays_whatever_comes_next(tokenizer, vocabulary, some_ids, data):
    ids = data.draw(some_ids)
    whole = library_text(vocabulary, ids)
    for given_so_far in accumulate(pieces_of(tokenizer, ids)):
        assert whole.startswith(given_so_far)


@given(data=st.data())
@every_case
def test_no_piece_ends_in_the_middle_of_a_character(tokenizer, vocabulary, byte_of, some_ids, data):
    ids = data.draw(some_ids)
    sent, shown = b"", ""
    for token, piece in zip(ids, pieces_of(tokenizer, ids), strict=False):
        sent += bytes(byte_of[letter] for letter in vocabulary.id_to_token(token))
        shown += piece
        assert not piece.endswith("\ufffd")
        assert sent.startswith(shown.encode()) or "\ufffd" in shown


@given(text=st.lists(CHARACTERS.filter(lambda c: c != "\ufffd"), max_size=20).map("".join), data=st.data())
@every_case
def test_a_character_is_given_with_its_last_byte(tokenizer, id_of, text, data):
    sent = text.encode()
    pieces = pieces_of(tokenizer, [id_of[byte] for byte in sent])
    count = data.draw(st.integers(0, len(sent)))
    assert "".join(pieces[:count]) == sent[:count].decode(errors="ignore")


@pytest.mark.parametrize(
    ("sent", "pieces"),
    [
        (b"a", ["a", ""]),
        ("é".encode(), ["", "é", ""]),
        ("€".encode(), ["", "", "€", ""]),
        ("😀".encode(), ["", "", "", "😀", ""]),
        (b"\xf0\x9f\x98", ["", "", "", "\ufffd"]),
        (b"a\xc3", ["a", "", "\ufffd"]),
        (b"\xc3a", ["", "\ufffda", ""]),
        (b"\x80\x80a", ["", "", "\ufffd\ufffda", ""]),
        ("\ufffda".encode(), ["", "", "", "\ufffda", ""]),
        ("\ufffd".encode(), ["", "", "", "\ufffd"]),
        (b"\xe2\x82\xc3\xa9", ["", "", "", "\ufffdé", ""]),
        (b"", [""]),
    ],
)
def test_pieces_by_hand(tokenizer, id_of, sent, pieces):
    assert pieces_of(tokenizer, [id_of[byte] for byte in sent]) == pieces


def test_a_flushed_decoder_begins_again(tokenizer, id_of):
    decoder = IncrementalDecoder(tokenizer)
    for _ in range(2):
        assert decoder.push(id_of[0xC3]) == ""
        assert decoder.flush() == "\ufffd"
    assert decoder.push(id_of[0xA9]) == ""


# tokenizers of other kinds


def word_piece():
    words = ["[UNK]", "hello", "world", ".", ",", "do", "n", "'", "##t", "##s", "##ing", "a", "##\ufffd"]
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece({word: n for n, word in enumerate(words)}))
    made.decoder = tokenizers.decoders.WordPiece()
    return made


def metaspace():
    words = ["<unk>", "▁", "▁It", "▁was", "▁a", "s", ".", "é", "\ufffd", "▁▁", "it▁", "😀"]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram([(word, -float(n)) for n, word in enumerate(words)], 0))
    made.decoder = tokenizers.decoders.Metaspace()
    return made


def end_of_word():
    words = ["a", "b</w>", "c</w>", "d", ".</w>"]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({word: n for n, word in enumerate(words)}, []))
    made.decoder = tokenizers.decoders.BPEDecoder()
    return made


def byte_fallback():
    words = ["<unk>", "a", "▁b", *(f"<0x{byte:02X}>" for byte in "é€".encode())]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({word: n for n, word in enumerate(words)}, []))
    d = tokenizers.decoders
    made.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    return made


@pytest.fixture(scope="module", params=[word_piece, metaspace, end_of_word, byte_fallback])
def other(request, tmp_path_factory):
    """(The library's tokenizer, ours of the same file)."""
    path = tmp_path_factory.mktemp("tokenizers") / "tokenizer.json"
    made = request.param()
    made.save(str(path))
    return made, Tokenizer(path)


@given(data=st.data())
@every_case
def test_a_tokenizer_of_another_kind_gives_the_librarys_text_too(other, data):
    library, ours = other
    ids = data.draw(st.lists(st.integers(0, library.get_vocab_size() - 1), max_size=12))
    whole = library_text(library, ids)
    pieces = pieces_of(ours, ids)
    assert "".join(pieces) == whole
    assert all(whole.startswith(given_so_far) for given_so_far in accumulate(pieces))


# a model's streams


def test_joined_pieces_are_the_text_of_the_completion(model, probes):
    for probe in probes:
        pieces = list(model.stream(probe.prompt, max_new_tokens=len(probe.token_ids)))
        assert "".join(pieces) == probe.text
        assert all(pieces)


@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_a_short_stream_ends_where_its_completion_does(model, probe, vocabulary, count):
    stream = model.stream(probe.prompt, max_new_tokens=count)
    assert "".join(stream) == library_text(vocabulary, probe.token_ids[:count])
    assert stream.completion == model.complete(probe.prompt, max_new_tokens=count)
    assert stream.completion.token_ids == probe.token_ids[:count]


@pytest.mark.parametrize("prompt", ["", "It was", "😀"])
def test_a_stream_of_improbable_ids_is_the_librarys_text_of_them(model, vocabulary, prompt):
    completion = model.complete(prompt, max_new_tokens=200, ignore_eos=True, **WILD)
    assert len(completion.token_ids) == 200
    text = library_text(vocabulary, completion.token_ids)
    assert "\ufffd" in text or prompt  # or there was nothing hard in it
    assert completion.text == text
    assert "".join(model.stream(prompt, max_new_tokens=200, ignore_eos=True, **WILD)) == text


def test_a_character_of_several_tokens_is_one_piece(tokenizer, vocabulary):
    generation = Generation([0], Settings(max_new_tokens=6), tokenizer=tokenizer, eos_ids=(), room=100)
    assert list(scripted(vocabulary.encode("a😀b").ids, generation)) == ["a", "😀", "b"]


def test_a_text_cut_in_half_a_character_ends_with_a_replacement(tokenizer, vocabulary):
    generation = Generation([0], Settings(max_new_tokens=3), tokenizer=tokenizer, eos_ids=(), room=100)
    assert list(scripted(vocabulary.encode("a😀").ids, generation)) == ["a", "\ufffd"]
    assert generation.completion().text == "a\ufffd"


def test_streams_taking_turns_do_not_disturb_each_other(model, probes):
    streams = [model.stream(probe.prompt, max_new_tokens=20) for probe in probes]
    texts = [""] * len(streams)
    for _ in range(20):
        for n, stream in enumerate(streams):
            texts[n] += next(stream, "")
    assert texts == [model.complete(probe.prompt, max_new_tokens=20).text for probe in probes]
    assert [stream.completion.token_ids for stream in streams] == [probe.token_ids[:20] for probe in probes]


def test_a_stream_is_an_iterator(model, probe):
    stream = model.stream(probe.prompt, max_new_tokens=3)
    assert iter(stream) is stream


# what it costs


def test_nothing_is_computed_before_it_is_asked_for(fresh, probe, runs):
    stream = fresh.stream(probe.prompt, max_new_tokens=40)
    assert runs == []
    assert not fresh.loop.busy
    next(stream)
    assert runs == [len(probe.prompt_ids), *[1] * (len(runs) - 1)]
    assert len(runs) < 10


def test_a_piece_costs_the_runs_of_its_own_tokens(model, probe, runs, vocabulary):
    stream = model.stream(probe.prompt, max_new_tokens=40, draft=False)
    shown = ""
    for piece in stream:
        shown += piece
        assert library_text(vocabulary, probe.token_ids[: len(runs)]) == shown


def test_a_closed_stream_computes_no_more(model, probe, runs):
    stream = model.stream(probe.prompt, max_new_tokens=40)
    next(stream)
    stream.close()
    done = list(runs)
    assert list(stream) == []
    assert runs == done


# how it ends


def stop_by_close(stream):
    next(stream)
    stream.close()


def stop_by_leaving(stream):
    with stream as entered:
        assert entered is stream
        next(stream)


def stop_by_an_error_of_the_callers(stream):
    with pytest.raises(KeyError), stream:
        {}[next(stream)]


def go_on_to_the_end(stream):
    assert list(stream)


ENDINGS = [stop_by_close, stop_by_leaving, stop_by_an_error_of_the_callers, go_on_to_the_end]


@pytest.mark.parametrize("end", ENDINGS)
def test_a_stream_frees_its_slot(fresh, probe, end):
    for _ in range(3):
        stream = fresh.stream(probe.prompt, max_new_tokens=20)
        end(stream)
        assert not fresh.loop.busy
        assert stream is not None  # it is still held


def test_a_stream_holds_its_slot_while_it_is_under_way(fresh, probes):
    one, two = (fresh.stream(probe.prompt, max_new_tokens=20) for probe in (probes[0], probes[-1]))
    next(one), next(two)
    one.close()
    assert fresh.loop.busy
    two.close()
    assert not fresh.loop.busy


def test_a_stream_that_nobody_holds_frees_its_slot(fresh, probe):
    stream = fresh.stream(probe.prompt, max_new_tokens=20)
    next(stream)
    del stream
    gc.collect()
    assert not fresh.loop.busy


def test_a_loop_left_early_frees_the_slot(fresh, probe):
    for _ in fresh.stream(probe.prompt, max_new_tokens=20):
        break
    gc.collect()
    assert not fresh.loop.busy


def test_a_stream_never_begun_takes_no_slot(fresh, probe):
    fresh.stream(probe.prompt).close()
    with fresh.stream(probe.prompt):
        pass
    assert not fresh.loop.busy


@pytest.mark.parametrize("end", ENDINGS)
def test_the_slot_of_an_ended_stream_serves_the_next_completion(fresh, probes, end):
    for probe in probes:
        end(fresh.stream(probes[0].prompt, max_new_tokens=20))
        assert fresh.complete(probe.prompt, max_new_tokens=20).token_ids == probe.token_ids[:20]
    assert not fresh.loop.busy


def test_a_stream_may_be_closed_twice_and_after_its_end(model, probe):
    stream = model.stream(probe.prompt, max_new_tokens=3)
    go_on_to_the_end(stream)
    completion = stream.completion
    stream.close()
    stream.close()
    assert stream.completion == completion
    assert next(stream, None) is None


@pytest.mark.parametrize("successes", [0, 1, 5])
def test_an_error_in_the_middle_reaches_the_caller_and_frees_the_slot(fresh, probe, monkeypatch, successes):
    calls, run = Counter(), HostSlots.run

    def failing(slots, works):
        calls["run"] += 1
        if calls["run"] > successes:
            raise MemoryError("no room")
        return run(slots, works)

    monkeypatch.setattr(HostSlots, "run", failing)
    stream = fresh.stream(probe.prompt, max_new_tokens=20)
    with pytest.raises(MemoryError, match="no room"):
        list(stream)
    assert stream.completion is None
    assert not fresh.loop.busy
    monkeypatch.undo()
    assert list(stream) == []
    assert fresh.complete(probe.prompt, max_new_tokens=20).token_ids == probe.token_ids[:20]


# the completion


def test_there_is_no_completion_before_the_end(model, probe):
    stream = model.stream(probe.prompt, max_new_tokens=5)
    assert stream.completion is None
    next(stream)
    assert stream.completion is None
    go_on_to_the_end(stream)
    assert stream.completion.token_ids == probe.token_ids[:5]


@pytest.mark.parametrize("end", ENDINGS[:3])
def test_there_is_no_completion_after_an_early_end(model, probe, end):
    stream = model.stream(probe.prompt, max_new_tokens=20)
    end(stream)
    assert stream.completion is None


def test_a_text_that_ends_at_once_has_a_completion_without_a_piece(stopping, probe):
    stream = stopping(probe.token_ids[0]).stream(probe.prompt)
    assert list(stream) == []
    assert stream.completion.finish_reason == "stop"
    assert stream.completion.token_ids == probe.token_ids[:1]


def test_what_ends_a_text_is_in_no_piece(stopping, probe, turn, vocabulary):
    stream = stopping(probe.token_ids[turn]).stream(probe.prompt)
    assert "".join(stream) == library_text(vocabulary, probe.token_ids[:turn])
    assert stream.completion.token_ids == probe.token_ids[: turn + 1]


# what is refused, is refused at once


@pytest.mark.parametrize(
    ("kind", "options"),
    [(ValueError, {"max_new_tokens": 0}), (TypeError, {"stop": 3}), (TypeError, {"tokens": 3})],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value.__name__,
)
def test_options_are_checked_at_the_call(fresh, refusal, kind, options):
    assert next(iter(options)) in refusal(kind, fresh.stream, "It was", **options)
    assert not fresh.loop.busy


@pytest.mark.parametrize(("kind", "prompt"), [(TypeError, 3), (TypeError, ["It was"]), (ValueError, "\ud800")])
def test_a_prompt_is_checked_at_the_call(model, refusal, kind, prompt):
    assert "prompt" in refusal(kind, model.stream, prompt)


def test_a_prompt_that_leaves_no_place_is_refused_at_the_call(model, refusal, exactly, context):
    assert f"{context - 1:,}" in refusal(ValueError, model.stream, exactly(context))


def test_the_slot_is_free_with_the_last_piece(fresh, probe):
    """A caller need not ask for what does not come."""
    with fresh.session() as session:
        stream = session.stream(probe.prompt, max_new_tokens=6)
        while stream.completion is None:
            next(stream)
        assert session.text == probe.prompt + stream.completion.text
        session.complete(" and", max_new_tokens=1)
        with pytest.raises(StopIteration):
            next(stream)


def test_a_stream_closed_by_another_thread_ends_with_the_piece_under_way(fresh, probe):
    stream = fresh.stream(probe.prompt, max_new_tokens=300, ignore_eos=True)
    next(stream)
    closer = threading.Thread(target=lambda: (time.sleep(0.05), stream.close()))
    closer.start()
    pieces = list(stream)
    closer.join()
    assert len(pieces) < 298
    assert stream.completion is None
    assert not fresh.loop.busy
