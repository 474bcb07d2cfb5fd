"""A text under way, alone and in a batch, over a fake of four tokens; no ONNX."""

from itertools import islice

import numpy as np
import pytest
from fake_slots import FakeSlots, fed
from fakes import LetterTokenizer

from runtime.engine.loop import Loop
from runtime.engine.pieces import pieces
from runtime.engine.scheduler import Scheduler
from runtime.engine.texts import GeneratedText
from runtime.text.generation import Generation
from runtime.text.options import Settings

LOGITS = np.log(np.array([[5, 1, 1, 1], [1, 5, 1, 1], [1, 1, 5, 1], [1, 1, 1, 5]], np.float32) / 8)


def one_more(ids):
    """After token n comes n + 1, and after 3 comes 0."""
    return (ids[-1] + 1) % 4


@pytest.fixture
def slots():
    return FakeSlots(1, one_more, lambda ids: LOGITS[one_more(ids)])


def run_together(slots, generation):
    loop = Loop(Scheduler(slots))
    assert [text.generation for text in loop.run_all([GeneratedText(generation)], 1)] == [generation]


def run_alone(slots, generation):
    assert "".join(streamed(slots, generation)) == generation.text


def streamed(slots, generation):
    return pieces(Loop(Scheduler(slots)), GeneratedText(generation, streamed=True))


@pytest.fixture
def begin():
    """A generation after these ids."""

    def make(prompt_ids, *, eos_ids=(), room=100, **settings):
        return Generation(prompt_ids, Settings(**settings), tokenizer=LetterTokenizer(), eos_ids=eos_ids, room=room)

    return make


@pytest.fixture(params=[run_alone, run_together])
def complete(request, slots, begin):
    """The completion after these ids, alone or as one of a list."""

    def run(prompt_ids, **settings):
        generation = begin(prompt_ids, **settings)
        request.param(slots, generation)
        return generation.completion()

    return run


# where a text ends


def test_a_stop_id_ends_the_text_and_is_not_in_it(complete):
    completion = complete([0], eos_ids={3})
    assert completion.token_ids == (1, 2, 3)
    assert completion.text == "bc"
    assert completion.finish_reason == "stop"


def test_any_of_several_stop_ids_ends_the_text(complete):
    completion = complete([0], eos_ids=[3, 2])
    assert completion.token_ids == (1, 2)
    assert completion.finish_reason == "stop"


def test_a_stop_id_in_the_prompt_ends_nothing(complete):
    assert complete([3, 3], eos_ids={3}).token_ids == (0, 1, 2, 3)


def test_max_new_tokens_ends_the_text(complete):
    completion = complete([0], max_new_tokens=6)
    assert completion.token_ids == (1, 2, 3, 0, 1, 2)
    assert completion.text == "bcdabc"
    assert completion.finish_reason == "length"


@pytest.mark.parametrize("room", [1, 2, 5])
def test_the_room_in_the_context_ends_the_text(complete, room):
    completion = complete([0], room=room, max_new_tokens=6)
    assert completion.token_ids == (1, 2, 3, 0, 1)[:room]
    assert completion.finish_reason == "length"


def test_a_stop_id_as_the_last_allowed_token_is_a_stop_and_counts_once(complete):
    completion = complete([0], max_new_tokens=3, eos_ids={3})
    assert completion.token_ids == (1, 2, 3)
    assert completion.finish_reason == "stop"


def test_a_stop_id_that_is_ignored_is_text(complete):
    completion = complete([0], max_new_tokens=4, eos_ids={3}, ignore_eos=True)
    assert completion.text == "bcda"
    assert completion.finish_reason == "length"


def test_a_stop_ends_the_text_before_it(complete):
    completion = complete([0], stop=("da",))
    assert completion.token_ids == (1, 2, 3, 0)
    assert completion.text == "bc"
    assert completion.finish_reason == "stop"


def test_a_stop_that_is_never_complete_is_text(complete):
    completion = complete([0], stop=("dx", "cdab"), max_new_tokens=4)
    assert completion.text == "bcda"
    assert completion.finish_reason == "length"


def test_a_completion_counts_its_prompt(complete):
    assert complete([0, 1, 2], max_new_tokens=1).prompt_tokens == 3


# log-probabilities


def test_each_token_has_its_log_probability_the_last_one_too(complete):
    logprobs = complete([0], logprobs=2, eos_ids={3}).logprobs
    assert [each.token_id for each in logprobs] == [1, 2, 3]
    assert [each.logprob for each in logprobs] == pytest.approx([np.log(5 / 8)] * 3)
    assert [[token for token, _ in each.top] for each in logprobs] == [[1, 0], [2, 0], [3, 0]]
    assert [each.top[1][1] for each in logprobs] == pytest.approx([np.log(1 / 8)] * 3)


def test_no_log_probabilities_unless_asked_for(complete):
    assert complete([0], max_new_tokens=3).logprobs is None
    assert complete([0], max_new_tokens=3, logprobs=0).logprobs[0].top == ()


# what is run


def test_the_prompt_is_fed_whole_and_then_one_id_at_a_time(slots, complete):
    complete([2, 1, 0], max_new_tokens=4)
    assert fed(slots) == [[2, 1, 0], [1], [2], [3]]


@pytest.mark.parametrize("eos_ids", [(), {3}])
def test_a_step_is_taken_for_each_token_and_no_more(slots, complete, eos_ids):
    assert len(complete([0], max_new_tokens=5, eos_ids=eos_ids).token_ids) == len(fed(slots))


# a piece at a time


def test_nothing_is_computed_before_it_is_asked_for(slots, begin):
    pieces = streamed(slots, begin([0], max_new_tokens=10))
    assert fed(slots) == []
    for count in range(1, 5):
        next(pieces)
        assert len(fed(slots)) == count


def test_a_text_left_early_costs_no_more_steps(slots, begin):
    assert list(islice(streamed(slots, begin([0], max_new_tokens=10)), 2)) == ["b", "c"]
    assert len(fed(slots)) == 2


def test_text_that_may_become_a_stop_waits_and_no_piece_is_empty(slots, begin):
    generation = begin([0], max_new_tokens=5, stop=("cdb",))
    assert list(streamed(slots, generation)) == ["b", "cda", "b"]


def test_what_waited_comes_with_the_last_piece(slots, begin):
    generation = begin([0], max_new_tokens=3, stop=("cdab",))
    assert list(streamed(slots, generation)) == ["b", "cd"]


def test_a_text_that_ends_at_once_has_no_piece(slots, begin):
    assert list(streamed(slots, begin([0], eos_ids={1}))) == []
    assert len(fed(slots)) == 1
