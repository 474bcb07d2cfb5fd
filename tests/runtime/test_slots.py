"""Texts that take turns in the slots of one cache: nothing of one may be seen in the next."""

import numpy as np
import pytest

from runtime.bundle.bundle import open_bundle
from runtime.graphs.decode import DecodeGraph
from runtime.graphs.kinds import runs
from runtime.graphs.state import DecodeState
from runtime.graphs.work import Work


@pytest.fixture(params=["ragged", "decode"])
def graph(request, bundle):
    opened = open_bundle(bundle, verify=False)
    if not runs(request.param):
        pytest.skip("this ONNX Runtime has no query_seqlens")
    return DecodeGraph(opened.graph_path(request.param), opened.manifest.architecture, threads=1)


@pytest.fixture
def slots(graph, probes):
    return graph.slots(len(probes))


def step(slots, ids, lengths, *, logits=False):
    """Run the ids of each slot; the most likely ids after them."""
    works = [Work(slot, new, lengths[slot], logits=logits) for slot, new in ids.items()]
    answers = slots.run(works)
    if logits:
        assert all(np.isfinite(answer.logits).all() for answer in answers)
    for work in works:
        lengths[work.slot] += len(work.token_ids)
    return [int(answer.next_ids[-1]) for answer in answers]


def replay(sequence, probe, count, *, chunk):
    """Greedy tokens after the probe's prompt, read in chunks."""
    for start in range(0, len(probe.prompt_ids), chunk):
        token = sequence.advance(probe.prompt_ids[start : start + chunk])
    tokens = [token]
    while len(tokens) < count:
        tokens.append(sequence.advance([tokens[-1]]))
    return tuple(tokens)


@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
def test_a_prompt_in_chunks_of_any_size_gives_pytorchs_tokens(graph, probes, chunk):
    for probe in probes:
        with graph.sequence() as sequence:
            assert replay(sequence, probe, 12, chunk=chunk) == probe.token_ids[:12]


def test_the_most_likely_id_is_where_the_logits_are_highest(graph, probe):
    with graph.sequence() as sequence:
        for token in probe.token_ids[:5]:
            most_likely, logits = sequence.step([token])
            assert most_likely == np.argmax(logits)
            sequence.rewind(sequence.length - 1)
            assert sequence.advance([token]) == most_likely  # without all logits


@pytest.mark.parametrize("chunk", [1, 1000])
def test_a_slot_used_again_after_a_longer_text_gives_pytorchs_tokens(slots, probes, context, chunk):
    DecodeState(slots, 1).advance([7] * context)
    for probe in probes:
        assert replay(DecodeState(slots, 1), probe, 12, chunk=chunk) == probe.token_ids[:12]


def test_sequences_under_way_at_once_do_not_share_a_cache(graph, probes):
    first, second = probes[0], probes[-1]
    with graph.sequence() as one, graph.sequence() as two:
        assert one is not two
        tokens = [one.advance(first.prompt_ids)], [two.advance(second.prompt_ids)]
        for _ in range(11):
            for sequence, found in zip((one, two), tokens, strict=True):
                found.append(sequence.advance([found[-1]]))
    assert tuple(tokens[0]) == first.token_ids[:12]
    assert tuple(tokens[1]) == second.token_ids[:12]


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_what_lay_in_the_memory_of_a_slot_is_never_seen(slots, probes, chunk):
    for array in slots._cache.arrays:
        array.fill(np.nan)
    for probe in probes:
        again = DecodeState(slots, 1)
        assert replay(again, probe, 12, chunk=chunk) == probe.token_ids[:12]
        assert np.isfinite(again.step([1])[1]).all()


def test_prompts_of_different_lengths_in_one_run_give_pytorchs_tokens(slots, probes):
    for array in slots._cache.arrays:
        array.fill(np.nan)
    lengths = [0] * len(probes)
    tokens = step(slots, {n: probe.prompt_ids for n, probe in enumerate(probes)}, lengths, logits=True)
    found = [tokens]
    while len(found) < 12:
        found.append(step(slots, {n: [token] for n, token in enumerate(found[-1])}, lengths, logits=True))
    assert [tuple(row) for row in np.array(found).T] == [probe.token_ids[:12] for probe in probes]


def test_a_mix_of_prompts_single_ids_drafts_and_idle_slots_gives_pytorchs_tokens(slots, probes):
    """Slot n begins at step n, then runs 1, 3 and 0 ids in turn."""
    lengths = [0] * len(probes)
    texts = [[*probe.prompt_ids, *probe.token_ids] for probe in probes]
    for turn in range(15):
        ids = {}
        for n, (probe, text) in enumerate(zip(probes, texts, strict=True)):
            count = len(probe.prompt_ids) if turn == n else (1, 3, 0)[(turn + n) % 3] if turn > n else 0
            if count:
                ids[n] = text[lengths[n] : lengths[n] + count]
        found = step(slots, ids, lengths, logits=bool(turn % 2))
        assert found == [texts[n][lengths[n]] for n in ids]


def test_a_text_at_the_end_of_the_context_runs_beside_a_long_prompt(slots, probes, context, capfd):
    """A run's rows are as wide as its longest, for which a full row has no room."""
    lengths, probe = [0] * len(probes), probes[0]
    filler = [7] * (context - len(probe.prompt_ids) - 4)
    step(slots, {1: [*filler, *probe.prompt_ids]}, lengths)
    alone = [step(slots, {1: [token]}, lengths)[0] for token in (5, 6, 7)]
    lengths[1] -= 3
    for n, token in enumerate((5, 6, 7)):
        found = step(slots, {0: probe.prompt_ids, 1: [token], 2: probes[2].prompt_ids}, lengths, logits=True)
        assert found == [probe.token_ids[0], alone[n], probes[2].token_ids[0]]
        lengths[0] = lengths[2] = 0
    assert capfd.readouterr().err == ""  # ONNX Runtime would say there what it refuses


def test_each_work_has_an_answer_of_its_own_kind(slots, probes):
    """Logits or none, several answers, one, or none: in one run."""
    works = [
        Work(n, probe.prompt_ids, 0, answers, logits)
        for n, (probe, answers, logits) in enumerate(
            zip(probes, (3, 1, 0, 2, 1), (True, False, True, False, True), strict=True)
        )
    ]
    answers = slots.run(works)
    for work, answer, probe in zip(works, answers, probes, strict=True):
        assert len(answer.next_ids) == len(answer.tied) == work.answers
        if work.answers:
            assert answer.next_ids[-1] == probe.token_ids[0]
        if work.logits:
            assert answer.logits.argmax(axis=1).tolist() == answer.next_ids.tolist()


def test_the_order_of_works_is_that_of_their_answers(slots, probes):
    works = [Work(n, probe.prompt_ids, 0) for n, probe in enumerate(probes)]
    answers = slots.run(works[::-1])
    assert [int(answer.next_ids[0]) for answer in answers] == [probe.token_ids[0] for probe in probes[::-1]]


def test_a_copied_beginning_is_as_good_as_a_read_one(slots, probe, probes):
    lengths = [0] * len(probes)
    step(slots, {0: probe.prompt_ids, 1: probes[1].prompt_ids}, lengths)
    slots.copy(0, 3, lengths[0])
    lengths[3] = lengths[0]
    for n in range(5):
        found = step(slots, {0: probe.token_ids[n : n + 1], 3: probe.token_ids[n : n + 1]}, lengths)
        assert found == [probe.token_ids[n + 1]] * 2


def test_memory_that_was_given_back_is_taken_again(slots, probes):
    lengths = [0] * len(probes)
    step(slots, {n: probe.prompt_ids for n, probe in enumerate(probes)}, lengths)
    slots.give_back(2)
    lengths[2] = 0
    found = step(slots, {2: probes[2].prompt_ids, 3: probes[3].token_ids[:1]}, lengths)
    assert found == [probes[2].token_ids[0], probes[3].token_ids[1]]


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_a_run_that_failed_leaves_nothing_to_the_next_sequence(graph, probe, manifest, chunk):
    beyond = manifest["architecture"]["vocab_size"]
    with pytest.raises(Exception, match="out of data bounds"), graph.sequence() as failed:
        failed.advance([1, 2, beyond])
    with graph.sequence() as again:
        assert replay(again, probe, 12, chunk=chunk) == probe.token_ids[:12]


def test_the_cache_shows_as_many_positions_as_were_read(graph, manifest):
    shape = manifest["architecture"]
    with graph.sequence() as sequence:
        sequence.advance([1, 2, 3])
        sequence.advance([4])
        cache = sequence.cache()
    names = {f"present.{layer}.{part}" for layer in range(shape["n_layer"]) for part in ("key", "value")}
    assert set(cache) == names
    expected = (1, shape["n_head"], 4, shape["n_embd"] // shape["n_head"])
    assert {array.shape for array in cache.values()} == {expected}
    assert all(np.abs(array).min(axis=(0, 1, 3)).all() for array in cache.values())
