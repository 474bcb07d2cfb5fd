"""Several texts side by side: each is what it would be alone, and no row is kept or waited for longer than needed."""

from itertools import product

import numpy as np
import pytest
from fake_slots import FakeSlots, fed
from fakes import LetterTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime
from runtime.engine.loop import Loop
from runtime.engine.scheduler import Scheduler
from runtime.engine.texts import GeneratedText
from runtime.graphs.slots import HostSlots
from runtime.text.generation import Generation
from runtime.text.options import Settings

VOCAB = 23
END = 0


def following(history):
    """The id that comes after these; each of them, and its place, matters."""
    return sum((place + 1) * (token + 3) for place, token in enumerate(history)) * 7 % VOCAB


def logits_after(history):
    """Highest where `following` says, and in no two rows alike."""
    row = np.linspace(-2, -1, VOCAB, dtype=np.float32) - np.float32(len(history) / 1000)
    row[following(history)] = 3
    return row


def by_hand(prompt_ids, limit, *, ends=True):
    """The ids after a prompt, alone."""
    ids = list(prompt_ids)
    while len(ids) - len(prompt_ids) < limit:
        ids.append(following(ids))
        if ends and ids[-1] == END:
            break
    return tuple(ids[len(prompt_ids) :])


def slots_of(size):
    return FakeSlots(size, following, logits_after)


def run_all(slots, generations, most=None):
    """The generations, each when it is finished."""
    texts = (GeneratedText(generation) for generation in generations)
    for text in Loop(Scheduler(slots)).run_all(texts, most or slots.count):
        yield text.generation


def begin(prompt_ids, limit=20, **options):
    room = options.pop("room", 10**6)
    made = Settings(max_new_tokens=limit, **options)
    return Generation(prompt_ids, made, tokenizer=LetterTokenizer(), eos_ids={END}, room=room)


PROMPTS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12)
WORK = st.lists(st.tuples(PROMPTS, st.integers(1, 12)), max_size=14)
every_case = settings(deadline=None, database=None, max_examples=200)


# the loop, over a fake


@given(work=WORK, rows=st.integers(1, 6))
@every_case
def test_each_text_is_what_it_is_alone(work, rows):
    generations = [begin(prompt_ids, limit) for prompt_ids, limit in work]
    finished = list(run_all(slots_of(rows), generations))
    assert sorted(map(id, finished)) == sorted(map(id, generations))
    for generation, (prompt_ids, limit) in zip(generations, work, strict=True):
        completion = generation.completion()
        assert completion.token_ids == by_hand(prompt_ids, limit)
        assert completion.finish_reason == ("stop" if completion.token_ids[-1] == END else "length")


@given(work=WORK, rows=st.integers(1, 6))
@every_case
def test_each_row_gets_its_own_logits(work, rows):
    generations = [begin(prompt_ids, limit, logprobs=1) for prompt_ids, limit in work]
    for generation in run_all(slots_of(rows), generations):
        history = list(generation.prompt_ids)
        for each in generation.completion().logprobs:
            row = logits_after(history).astype(np.float64)
            assert each.logprob == pytest.approx(row[each.token_id] - np.log(np.exp(row).sum()), abs=1e-5)
            history.append(each.token_id)


@given(work=WORK, rows=st.integers(1, 6))
@every_case
def test_a_text_costs_its_prompt_and_a_step_a_token(work, rows):
    slots = slots_of(rows)
    generations = [begin(prompt_ids, limit) for prompt_ids, limit in work]
    assert all(generation.finish_reason for generation in run_all(slots, generations))
    shared = sum(length for _, _, length in slots.copies)
    run = sum(len(generation.prompt_ids) + len(generation.token_ids) - 1 for generation in generations)
    assert sum(map(len, fed(slots))) <= run - shared


@given(work=WORK, rows=st.integers(1, 9))
@every_case
def test_nobody_waits_while_a_slot_is_free(work, rows):
    generations = [begin(prompt_ids[:3], limit) for prompt_ids, limit in work]

    class Watched(FakeSlots):
        def run(self, works):
            left = sum(generation.finish_reason is None for generation in generations)
            assert len(works) == min(rows, left)
            return super().run(works)

    slots = Watched(rows, following, logits_after)
    assert len(list(run_all(slots, generations))) == len(work)


def test_texts_with_ends_of_their_own_leave_one_by_one():
    slots = slots_of(8)
    generations = [begin([n, 2, 3], limit, ignore_eos=True) for n, limit in enumerate((3, 1, 5, 4, 1, 5))]
    finished = list(run_all(slots, generations))
    assert [len(step) for step in slots.steps_run] == [6, 4, 4, 3, 2]
    assert [len(generation.token_ids) for generation in finished] == [1, 1, 3, 4, 5, 5]


def test_the_next_text_takes_the_place_of_one_that_has_ended():
    slots = slots_of(2)
    limits = [1, 4, 1, 1]
    list(run_all(slots, [begin([n], limit, ignore_eos=True) for n, limit in enumerate(limits)]))
    assert [len(step) for step in slots.steps_run] == [2, 2, 2, 1]


def test_a_text_is_given_when_it_is_finished_and_not_later():
    slots = slots_of(4)
    generations = [begin([n], limit, ignore_eos=True) for n, limit in enumerate((4, 2, 7, 2))]
    assert [len(slots.steps_run) for _ in run_all(slots, generations)] == [2, 2, 4, 7]


def test_a_source_is_asked_no_earlier_than_there_is_room():
    asked, finished = 0, 0

    def source():
        nonlocal asked
        for n in range(50):
            asked += 1
            yield begin([n % VOCAB, 2], 3, ignore_eos=True)

    for _ in run_all(slots_of(4), source()):
        finished += 1
        assert asked <= finished + 4
    assert asked == finished == 50


def test_no_more_run_at_once_than_were_asked_for():
    slots = slots_of(8)
    assert len(list(run_all(slots, [begin([n], 5, ignore_eos=True) for n in range(9)], most=3))) == 9
    assert max(map(len, slots.steps_run)) == 3


def test_nothing_to_do_takes_no_run():
    slots = slots_of(3)
    assert list(run_all(slots, [])) == []
    assert slots.steps_run == []


# a model


def test_a_list_gives_a_list_in_its_order(model, probes):
    made = model.complete([probe.prompt for probe in probes], max_new_tokens=20)
    assert isinstance(made, list)
    assert [completion.token_ids for completion in made] == [probe.token_ids[:20] for probe in probes]


def test_the_probes_together_give_pytorchs_tokens(model, probes):
    made = model.complete([probe.prompt for probe in probes], max_new_tokens=64)
    for completion, probe in zip(made, probes, strict=True):
        assert completion.token_ids == probe.token_ids[:64]
        assert completion.text == probe.text
        assert completion.prompt_tokens == len(probe.prompt_ids)
        assert completion.finish_reason == "length"


def test_the_order_of_a_list_is_the_callers(model, probes):
    backwards = model.complete([probe.prompt for probe in reversed(probes)], max_new_tokens=9)
    assert [completion.token_ids for completion in backwards] == [probe.token_ids[:9] for probe in reversed(probes)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 64])
def test_more_prompts_than_rows(model, probes, batch_size):
    work = [probes[n % len(probes)] for n in range(13)]
    made = model.complete([probe.prompt for probe in work], batch_size=batch_size, max_new_tokens=12)
    assert [completion.token_ids for completion in made] == [probe.token_ids[:12] for probe in work]


def test_a_tuple_is_as_good_as_a_list(model, probes):
    prompts = tuple(probe.prompt for probe in probes)
    made = model.complete(prompts, max_new_tokens=5)
    assert isinstance(made, list)
    assert [completion.token_ids for completion in made] == [probe.token_ids[:5] for probe in probes]


@pytest.mark.parametrize("nothing", [[], ()])
def test_no_prompts_give_no_completions(model, nothing):
    assert model.complete(nothing) == []


def test_one_prompt_in_a_list_gives_one_completion_in_a_list(model, probe):
    assert model.complete([probe.prompt], max_new_tokens=9) == [model.complete(probe.prompt, max_new_tokens=9)]


def test_the_same_prompt_again_and_again(model, probe):
    made = model.complete([probe.prompt] * 9, batch_size=4, max_new_tokens=9)
    assert {completion.token_ids for completion in made} == {probe.token_ids[:9]}


def test_an_empty_prompt_in_a_list_starts_from_the_end_of_text(model, probe):
    made = model.complete(["", probe.prompt, ""], max_new_tokens=8)
    assert made[0] == made[2] == model.complete("", max_new_tokens=8)
    assert made[0].prompt_tokens == 1
    assert made[1].token_ids == probe.token_ids[:8]


def test_the_module_function_takes_a_list_too(bundle, probes):
    made = runtime.complete([probe.prompt for probe in probes], model=bundle, batch_size=2, max_new_tokens=5)
    assert [completion.token_ids for completion in made] == [probe.token_ids[:5] for probe in probes]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_rows_that_end_at_different_tokens(stopping, probes, batch_size):
    ends = {probe.token_ids[n] for n, probe in enumerate(probes, 2)}
    model = stopping(sorted(ends))
    made = model.complete([probe.prompt for probe in probes] * 2, batch_size=batch_size, max_new_tokens=40)
    for completion, probe in zip(made, [*probes, *probes], strict=True):
        first = next((n for n, token in enumerate(probe.token_ids[:40]) if token in ends), 39)
        assert completion.token_ids == probe.token_ids[: first + 1]
        assert completion.finish_reason == "stop"
    assert len({len(completion.token_ids) for completion in made}) > 1  # or it would have been one end


def test_a_batch_to_the_end_of_the_context(endless, exactly, context):
    counts = [context - 1, context - 3, 5, context - 2]
    made = endless.complete([exactly(count) for count in counts], max_new_tokens=3)
    assert [len(completion.token_ids) for completion in made] == [1, 3, 3, 2]
    for completion, count in zip(made, counts, strict=True):
        assert completion == endless.complete(exactly(count), max_new_tokens=3)


def test_log_probabilities_are_those_of_each_row(model, probes):
    prompts = [probe.prompt for probe in probes]
    for together, prompt in zip(model.complete(prompts, logprobs=3, max_new_tokens=10), prompts, strict=True):
        alone = model.complete(prompt, logprobs=3, max_new_tokens=10)
        for one, other in zip(together.logprobs, alone.logprobs, strict=True):
            assert one.token_id == other.token_id
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]


@given(work=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20)), max_size=10), batch_size=st.integers(1, 5))
@settings(deadline=None, database=None, max_examples=40)
def test_prompts_of_any_lengths_in_batches_of_any_size(model, probes, vocabulary, work, batch_size):
    """A prompt is a probe's, with some of its continuation, so that what follows is PyTorch's too."""
    prompts, expected = [], []
    for which, more in work:
        probe = probes[which % len(probes)]
        ids = [*probe.prompt_ids, *probe.token_ids[:more]]
        text = vocabulary.decode(ids, skip_special_tokens=False)
        if vocabulary.encode(text).ids == ids:
            prompts.append(text)
            expected.append(probe.token_ids[more : more + 6])
    made = model.complete(prompts, batch_size=batch_size, max_new_tokens=6)
    assert [completion.token_ids for completion in made] == expected


# what is refused


@pytest.mark.parametrize(("wrong", "place"), list(product([None, 3, b"x", ["x"]], [0, 3])), ids=repr)
def test_a_prompt_that_is_no_string_is_named_by_its_place(model, refusal, wrong, place):
    prompts = ["It was"] * 5
    prompts[place] = wrong
    message = refusal(TypeError, model.complete, prompts)
    assert f"prompt[{place}]" in message
    assert type(wrong).__name__ in message


def test_half_a_character_is_named_by_its_place(model, refusal):
    message = refusal(ValueError, model.complete, ["a", "b", "c", "d\ud800"])
    assert "prompt[3]" in message
    assert "U+D800 at position 1" in message


def test_a_prompt_that_leaves_no_place_is_named_by_its_place(model, refusal, exactly, context):
    message = refusal(ValueError, model.complete, ["a", "b", "c", exactly(context + 5)])
    assert "prompt[3]" in message
    assert f"{context - 1:,}" in message
    assert f"{context + 5:,}" in message


def test_an_empty_prompt_in_a_list_is_named_where_nothing_is_there_to_start_from(bundle_copy, refusal):
    bundle_copy.configure(bos_token_id=None)
    assert "prompt[1]" in refusal(ValueError, runtime.load(bundle_copy.folder).complete, ["a", ""])


def test_one_bad_prompt_and_none_is_completed(model, refusal, monkeypatch):
    monkeypatch.setattr(HostSlots, "run", lambda *_: pytest.fail("something was run"))
    refusal(TypeError, model.complete, ["It was", None])
    refusal(ValueError, model.complete, ["It was", "\ud800"])


def test_a_model_is_as_it_was_after_a_batch_that_failed(fresh, probes, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("no room")

    prompts = [probe.prompt for probe in probes]
    monkeypatch.setattr(HostSlots, "run", fail)
    with pytest.raises(MemoryError, match="no room"):
        fresh.complete(prompts, max_new_tokens=5)
    monkeypatch.undo()
    made = fresh.complete(prompts, max_new_tokens=5)
    assert [completion.token_ids for completion in made] == [probe.token_ids[:5] for probe in probes]
