"""Two graphs over one cache: short runs by one, long ones by the other, and no text that could tell.

The decode graph stands in for a prefill graph: they have the same inputs and outputs.
"""

import shutil
import threading

import numpy as np
import pytest

import runtime.graphs.decode
import runtime.graphs.slots
from runtime.bundle.bundle import open_bundle
from runtime.errors import BundleError
from runtime.graphs.decode import DecodeGraph
from runtime.graphs.kinds import runs
from runtime.graphs.work import Work

MANY = 32  # ids a row, from which on the prefill graph runs here, as the probes are no longer


@pytest.fixture(autouse=True)
def fewer_are_many(monkeypatch):
    assert runtime.graphs.slots.MANY == 128  # as docs/precisions.md says
    monkeypatch.setattr(runtime.graphs.slots, "MANY", MANY)


@pytest.fixture
def made(monkeypatch):
    """Names of the graphs that were loaded, in order."""
    names, make = [], runtime.graphs.decode.make_session

    def noted(path, **options):
        names.append(path.stem)
        return make(path, **options)

    monkeypatch.setattr(runtime.graphs.decode, "make_session", noted)
    return names


@pytest.fixture(params=["ragged", "decode"])
def paths(request, bundle, tmp_path):
    """A decode graph under two names, beside its weights."""
    if not runs(request.param):
        pytest.skip("this ONNX Runtime has no query_seqlens")
    folder = shutil.copytree(bundle / "onnx", tmp_path / "onnx")
    path = shutil.copy(folder / f"{request.param}.onnx", folder / "one.onnx")
    return path, shutil.copy(path, folder / "many.onnx")


@pytest.fixture
def session(bundle, paths):
    architecture = open_bundle(bundle, verify=False).manifest.architecture
    return DecodeGraph(paths[0], architecture, threads=1, prefill_path=paths[1])


@pytest.fixture(scope="module")
def longest(probes):
    """The probe with the most tokens, prompt and all: (ids, how many of them are the prompt)."""
    probe = max(probes, key=lambda each: len(each.prompt_ids) + len(each.token_ids))
    ids = [*probe.prompt_ids, *probe.token_ids]
    assert len(ids) > 2 * MANY
    return ids, len(probe.prompt_ids)


def test_the_prefill_graph_is_loaded_once_for_the_first_run_of_32_ids(made, session, longest):
    ids, _ = longest
    with session.sequence() as state, session.sequence() as other:
        state.advance(ids[: MANY - 1])
        state.advance(ids[:1])
        assert made == ["one"]
        state.advance(ids[:MANY])
        assert made == ["one", "many"]
        state.advance(ids[:MANY])
        other.advance(ids[: MANY + 1])
    session.slots(2).run([Work(0, ids[:MANY], 0), Work(1, ids[:3], 0)])
    assert made == ["one", "many"]


@pytest.mark.parametrize(
    "lengths", [(31,), (32,), (60,), (31, 1), (32, 1, 1), (3, 40, 1), (32, 28), (1, 32, 3, 32)], ids=str
)
def test_ids_in_chunks_of_any_size_give_pytorchs_next_token(session, longest, lengths):
    ids, prompt = longest
    with session.sequence() as state:
        for array in state.slots._cache.arrays:
            array.fill(np.nan)
        for length in lengths:
            token, logits = state.step(ids[state.length : state.length + length])
            assert np.isfinite(logits).all()
            if state.length >= prompt:
                assert token == ids[state.length] == np.argmax(logits)
        assert state.length == sum(lengths)


def test_a_rewound_text_is_read_on_by_the_other_graph(session, longest):
    ids, _ = longest
    with session.sequence() as state:
        for length, back in ((50, 40), (60, 20), (21, 0), (62, 61)):
            token, logits = state.step(ids[state.length : length])
            assert token == ids[length] == np.argmax(logits)
            state.rewind(back)


def test_logits_are_those_of_the_graph_that_ran_last(session, longest):
    ids, _ = longest
    with session.sequence() as state:
        tokens, logits, _ = state.read(ids[:40], last=3)
        assert logits.shape[0] == 3
        assert tokens.tolist() == logits.argmax(axis=-1).tolist() == ids[38:41]
        tokens, logits, _ = state.read(ids[40:42], last=2)
        assert tokens.tolist() == logits.argmax(axis=-1).tolist() == ids[41:43]


def test_slots_are_read_by_one_graph_and_go_on_by_the_other(session, longest):
    """Long prompts beside short ones and beside texts that are under way."""
    ids, prompt = longest
    lengths, slots = [0] * 4, session.slots(4)
    for array in slots._cache.arrays:
        array.fill(np.nan)

    def run(counts):
        works = [Work(slot, ids[lengths[slot] : lengths[slot] + n], lengths[slot], logits=True) for slot, n in counts]
        for work, answer in zip(works, slots.run(works), strict=True):
            lengths[work.slot] += len(work.token_ids)
            assert answer.next_ids.tolist() == [ids[lengths[work.slot]]]
            assert np.isfinite(answer.logits).all()

    run([(0, prompt)])
    run([(0, 1), (1, 45), (2, MANY), (3, 40)])
    for _ in range(8):
        run([(3, 1), (1, 1), (2, 1), (0, 1)])
    run([(2, 1), (0, 9), (1, 9)])


def test_threads_that_need_the_prefill_graph_at_once_share_it(made, session, longest):
    ids, _ = longest
    found, begin = [], threading.Barrier(8)

    def read():
        begin.wait()
        with session.sequence() as state:
            found.append(state.advance(ids[:50]))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [ids[50]] * 8
    assert made == ["one", "many"]


def test_without_a_prefill_graph_one_does_it_all(made, bundle, paths, longest):
    ids, _ = longest
    architecture = open_bundle(bundle, verify=False).manifest.architecture
    session = DecodeGraph(paths[0], architecture, threads=1)
    with session.sequence() as state:
        assert state.advance(ids[:50]) == ids[50]
    assert made == ["one"]


def test_a_prefill_graph_of_another_model_is_refused_and_short_texts_go_on(session, paths, longest, refusal):
    ids, prompt = longest
    shutil.copy(paths[0].parent / "model.onnx", paths[1])  # the reference graph has other outputs
    with session.sequence() as state:
        assert "export the bundle again" in refusal(BundleError, state.advance, ids[:40])
        state.rewind(0)
        assert state.advance(ids[:prompt]) == ids[prompt]
        shutil.copy(paths[0], paths[1])
        assert state.advance(ids[prompt:50]) == ids[50]
