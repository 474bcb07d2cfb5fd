"""The cache that sequences take turns with: nothing of one may be seen in the next."""

import numpy as np
import pytest

from runtime.bundle.bundle import open_bundle
from runtime.graphs.decode import DecodeGraph


@pytest.fixture
def session(bundle):
    opened = open_bundle(bundle, verify=False)
    return DecodeGraph(opened.graph_path("decode"), opened.manifest.architecture, threads=1)


def replay(sequence, probe, count, *, chunk):
    """Greedy tokens after the probe's prompt, read in chunks."""
    for start in range(0, len(probe.prompt_ids), chunk):
        token = sequence.advance(probe.prompt_ids[start : start + chunk])
    tokens = [token]
    while len(tokens) < count:
        tokens.append(sequence.advance([tokens[-1]]))
    return tuple(tokens)


@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
def test_a_prompt_in_chunks_of_any_size_gives_pytorchs_tokens(session, probes, chunk):
    for probe in probes:
        with session.sequence() as sequence:
            assert replay(sequence, probe, 12, chunk=chunk) == probe.token_ids[:12]


def test_the_most_likely_id_is_where_the_logits_are_highest(session, probe):
    with session.sequence() as sequence:
        for token in probe.token_ids[:5]:
            most_likely, logits = sequence.step([token])
            assert most_likely == np.argmax(logits)
            sequence.rewind(sequence.length - 1)
            assert sequence.advance([token]) == most_likely  # without all logits


@pytest.mark.parametrize("chunk", [1, 1000])
def test_a_cache_used_again_after_a_longer_sequence_gives_pytorchs_tokens(session, probes, context, chunk):
    with session.sequence() as longer:
        longer.advance([7] * context)
    for probe in probes:
        with session.sequence() as again:
            assert again.forward is longer.forward
            assert replay(again, probe, 12, chunk=chunk) == probe.token_ids[:12]


def test_sequences_under_way_at_once_do_not_share_a_cache(session, probes):
    first, second = probes[0], probes[-1]
    with session.sequence() as one, session.sequence() as two:
        assert one is not two
        tokens = [one.advance(first.prompt_ids)], [two.advance(second.prompt_ids)]
        for _ in range(11):
            for sequence, found in zip((one, two), tokens, strict=True):
                found.append(sequence.advance([found[-1]]))
    assert tuple(tokens[0]) == first.token_ids[:12]
    assert tuple(tokens[1]) == second.token_ids[:12]


def test_a_cache_comes_back_from_a_caller_that_failed(session, probe):
    def fail():
        with session.sequence() as sequence:
            sequence.advance(probe.prompt_ids[:3])
            lent.append(sequence)
            raise KeyError

    lent = []
    with pytest.raises(KeyError):
        fail()
    with session.sequence() as again:
        assert again.forward is lent[0].forward
        assert replay(again, probe, 12, chunk=1000) == probe.token_ids[:12]


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_what_lay_in_the_memory_of_a_cache_is_never_seen(session, probes, chunk):
    with session.sequence() as sequence:
        sequence.advance([1])
        for array in sequence.forward.cache.arrays:
            array.fill(np.nan)
    for probe in probes:
        with session.sequence() as again:
            assert again.forward is sequence.forward
            assert replay(again, probe, 12, chunk=chunk) == probe.token_ids[:12]
            assert np.isfinite(again.step([1])[1]).all()


def test_what_lay_in_the_memory_of_a_batch_is_never_seen(session, probes):
    batch = session.batch(len(probes))
    for array in batch._forward.cache.arrays:
        array.fill(np.nan)
    tokens, logits = batch.admit([probe.prompt_ids for probe in probes])  # of different lengths
    found = [tokens.copy()]
    while len(found) < 12:
        assert np.isfinite(logits).all()
        tokens, logits = batch.step(found[-1])
        found.append(tokens.copy())
    assert [tuple(row) for row in np.array(found).T] == [probe.token_ids[:12] for probe in probes]


def test_a_row_that_takes_the_place_of_another_goes_on_as_before(session, probes):
    batch = session.batch(len(probes))
    rows = list(probes)
    batch.admit([probe.prompt_ids for probe in rows])
    for n in range(12):
        if n % 3 == 2 and len(rows) > 1:
            batch.remove(0)
            rows[0] = rows[-1]
            rows.pop()
        tokens, _ = batch.step([probe.token_ids[n] for probe in rows])
        assert tokens.tolist() == [probe.token_ids[n + 1] for probe in rows]


def test_a_row_admitted_later_does_not_disturb_the_others(session, probes):
    batch = session.batch(len(probes))
    places = []
    for probe in probes:
        if places:
            batch.step([other.token_ids[place] for other, place in zip(probes, places, strict=False)])
        places = [place + 1 for place in places]
        tokens, _ = batch.admit([probe.prompt_ids])
        assert tokens.tolist() == [probe.token_ids[0]]
        places.append(0)
    tokens, _ = batch.step([probe.token_ids[place] for probe, place in zip(probes, places, strict=True)])
    assert tokens.tolist() == [probe.token_ids[place + 1] for probe, place in zip(probes, places, strict=True)]


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_a_run_that_failed_leaves_nothing_to_the_next_sequence(session, probe, manifest, chunk):
    beyond = manifest["architecture"]["vocab_size"]
    with pytest.raises(Exception, match="out of data bounds"), session.sequence() as failed:
        failed.advance([1, 2, beyond])
    with session.sequence() as again:
        assert replay(again, probe, 12, chunk=chunk) == probe.token_ids[:12]


def test_the_cache_shows_as_many_positions_as_were_read(session, manifest):
    shape = manifest["architecture"]
    with session.sequence() as sequence:
        sequence.advance([1, 2, 3])
        sequence.advance([4])
        cache = sequence.cache()
    names = {f"present.{layer}.{part}" for layer in range(shape["n_layer"]) for part in ("key", "value")}
    assert set(cache) == names
    expected = (1, shape["n_head"], 4, shape["n_embd"] // shape["n_head"])
    assert {array.shape for array in cache.values()} == {expected}
    assert all(np.abs(array).min(axis=(0, 1, 3)).all() for array in cache.values())
