"""Runs of a graph whose rows all have as many new ids, with a made-up language instead of a graph."""

import numpy as np
import pytest
from fake_slots import erratic
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.graphs.device.cache import block
from runtime.graphs.padded import PaddedRuns
from runtime.graphs.work import Answer, Work

ROWS, CAPACITY = 6, 12


class FakeGraph:
    """Rows that hold ids instead of keys and values, each with the position that it was given."""

    def __init__(self):
        self.ids = np.full((ROWS, CAPACITY), 3)
        self.runs = []  # the rows of each

    def run(self, first_row, input_ids, past_lengths, lengths, indices, *, logits):
        ids = np.array(input_ids)
        rows, count = ids.shape
        self.runs.append(range(first_row, first_row + rows))
        assert max(past_lengths) + count <= CAPACITY
        said = np.empty((rows, count), np.int64)
        for row, (new, after) in enumerate(zip(ids, lengths, strict=True)):
            held = self.ids[first_row + row]
            held[after - count : after] = new
            said[row] = [erratic(held[: after - count + n + 1].tolist()) for n in range(count)]
        asked = said.reshape(-1)[list(indices)]
        found = np.eye(4, dtype=np.float32)[asked] if logits else np.empty((len(asked), 0), np.float32)
        return Answer(asked, found, np.zeros(len(asked), bool))


def test_rows_between_keep_what_they_hold():
    graph, written = FakeGraph(), np.zeros(ROWS, np.int64)
    runs = PaddedRuns(graph, written, CAPACITY)
    runs.run([Work(0, [1, 2], 0), Work(1, [3, 1, 1], 0), Work(2, [2], 0)])
    graph.runs.clear()
    runs.run([Work(0, [1], 2), Work(2, [1], 1)])
    assert graph.runs == [range(3)]
    assert graph.ids[1, :3].tolist() == [3, 1, 1]


def test_a_row_that_another_graph_wrote_keeps_what_it_holds():
    """The prefill graph has runs of its own over the same cache."""
    graph, written = FakeGraph(), np.zeros(ROWS, np.int64)
    decode, prefill = (PaddedRuns(graph, written, CAPACITY) for _ in range(2))
    prefill.run([Work(1, [3, 1, 1], 0)])
    decode.run([Work(0, [1], 0), Work(2, [1], 0)])
    assert graph.ids[1, :3].tolist() == [3, 1, 1]


def test_rows_between_which_one_is_full_run_one_after_the_other():
    graph, written = FakeGraph(), np.zeros(ROWS, np.int64)
    runs = PaddedRuns(graph, written, CAPACITY)
    runs.run([Work(1, [2] * CAPACITY, 0)])
    graph.runs.clear()
    runs.run([Work(0, [1], 0), Work(2, [1], 0)])
    assert graph.runs == [range(1), range(2, 3)]
    assert graph.ids[1].tolist() == [2] * CAPACITY


def test_works_that_want_no_answer_take_none_from_the_others():
    runs = PaddedRuns(FakeGraph(), np.zeros(ROWS, np.int64), CAPACITY)
    works = [Work(0, [1], 0), Work(1, [2], 0, answers=0), Work(2, [3], 0, logits=True), Work(4, [0], 0)]
    answers = runs.run(works)
    assert [answer.next_ids.tolist() for answer in answers] == [[erratic([1])], [], [erratic([3])], [erratic([0])]]
    assert [answer.logits.shape for answer in answers] == [(1, 0), (0, 0), (1, 4), (1, 0)]


@pytest.mark.parametrize(
    ("first", "after", "found"),
    [(0, 1, (0, 1)), (5, 6, (5, 6)), (2, 4, (2, 4)), (1, 3, (0, 4)), (4, 6, (4, 6)), (3, 5, (0, 6)), (0, 6, (0, 6))],
)
def test_blocks_begin_at_multiples_of_their_size(first, after, found):
    assert block(first, after, ROWS) == found


TURNS = st.lists(
    st.dictionaries(st.integers(0, ROWS - 1), st.tuples(st.sampled_from([1, 1, 1, 2, 5]), st.integers(0, 12))),
    min_size=1,
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(turns=TURNS, on_device=st.booleans())
def test_whatever_runs_beside_a_row_it_holds_its_own_ids(turns, on_device):
    graph = FakeGraph()
    wide = (lambda first, after: block(first, after, ROWS)) if on_device else (lambda first, after: (first, after))
    runs = PaddedRuns(graph, np.zeros(ROWS, np.int64), CAPACITY, wide)
    held = {row: [] for row in range(ROWS)}
    for turn, asked in enumerate(turns):
        works = []
        for row, (count, back) in sorted(asked.items()):
            del held[row][max(0, len(held[row]) - back // 4) :]  # it may have been rewound
            if new := [(turn + row + n) % 4 for n in range(min(count, CAPACITY - len(held[row])))]:
                works.append(Work(row, new, len(held[row]), len(new) if back % 3 else 0, logits=bool(back % 2)))
        for work, answer in zip(works, runs.run(works) if works else [], strict=True):
            held[work.slot] += work.token_ids
            ends = range(len(held[work.slot]) - work.answers + 1, len(held[work.slot]) + 1)
            assert answer.next_ids.tolist() == [erratic(held[work.slot][:end]) for end in ends]
            assert answer.logits.shape == (work.answers, 4 if work.logits else 0)
    for row, ids in held.items():
        assert graph.ids[row, : len(ids)].tolist() == ids
