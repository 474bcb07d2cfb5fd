"""The greedy loop over a fake of four tokens; no ONNX."""

from itertools import islice

import pytest

from runtime.generation import generate


class Fake:
    """After token n comes n + 1, and after 3 comes 0; remembers what it was fed."""

    def __init__(self):
        self.fed = []

    def __call__(self, token_ids):
        self.fed.append(list(token_ids))
        return (token_ids[-1] + 1) % 4


@pytest.fixture
def step():
    return Fake()


def test_a_stop_id_ends_the_text_and_is_yielded(step):
    assert list(generate(step, [0], max_new_tokens=10, stop_ids={3})) == [1, 2, 3]


def test_any_of_several_stop_ids_ends_the_text(step):
    assert list(generate(step, [0], max_new_tokens=10, stop_ids=[3, 2])) == [1, 2]


def test_a_stop_id_in_the_prompt_ends_nothing(step):
    assert list(generate(step, [3, 3], max_new_tokens=10, stop_ids={3})) == [0, 1, 2, 3]


def test_max_new_tokens_ends_the_text(step):
    assert list(generate(step, [0], max_new_tokens=6, stop_ids=())) == [1, 2, 3, 0, 1, 2]


def test_a_stop_id_as_the_last_allowed_token_is_yielded_once(step):
    assert list(generate(step, [0], max_new_tokens=3, stop_ids={3})) == [1, 2, 3]


def test_the_prompt_is_fed_whole_and_then_one_id_at_a_time(step):
    list(generate(step, [2, 1, 0], max_new_tokens=4, stop_ids=()))
    assert step.fed == [[2, 1, 0], [1], [2], [3]]


def test_nothing_is_computed_before_it_is_asked_for(step):
    tokens = generate(step, [0], max_new_tokens=10, stop_ids=())
    assert step.fed == []
    for count in range(1, 5):
        next(tokens)
        assert len(step.fed) == count


@pytest.mark.parametrize("stop_ids", [(), {3}])
def test_a_step_is_taken_for_each_token_and_no_more(step, stop_ids):
    tokens = list(generate(step, [0], max_new_tokens=5, stop_ids=stop_ids))
    assert len(step.fed) == len(tokens)


def test_a_text_left_early_costs_no_more_steps(step):
    assert list(islice(generate(step, [0], max_new_tokens=10, stop_ids=()), 2)) == [1, 2]
    assert len(step.fed) == 2


def test_no_new_tokens_take_no_step(step):
    assert list(generate(step, [0], max_new_tokens=0, stop_ids=())) == []
    assert step.fed == []
