"""One model, many threads: each gets what it would get alone."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

THREADS = 8
pytestmark = pytest.mark.all_cpus


def complete(model, probe, n):
    return model.complete(probe.prompt, max_new_tokens=5 + n % 20)


def sample(model, probe, n):
    return model.complete(probe.prompt, seed=n, temperature=1.2, max_new_tokens=15)


def batch(model, probe, n):
    return model.complete([probe.prompt, "", "It was"], seed=n, batch_size=1 + n % 3, max_new_tokens=9)


def stream(model, probe, n):
    opened = model.stream(probe.prompt, max_new_tokens=20, stop=[",", "\0"][n % 2])
    return list(opened), opened.completion


def broken_off(model, probe, n):
    with model.stream(probe.prompt, max_new_tokens=40) as opened:
        return [next(opened) for _ in range(1 + n % 5)]


def talk(model, probe, n):
    with model.session() as session:
        turns = [session.complete(probe.prompt, max_new_tokens=8), session.complete(" Then", seed=n, max_new_tokens=8)]
        session.rewind(3)
        return turns, session.complete(max_new_tokens=4), session.token_ids


def score(model, probe, n):
    return model.score(probe.prompt + probe.text[: 20 + n])


def refused(model, probe, n):
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.complete(probe.prompt, max_new_tokens=-n)


WORK = [complete, sample, batch, stream, broken_off, talk, score, refused]


def test_eight_threads_at_once_get_what_one_after_the_other_gets(model, probes):
    tasks = [(kind, probes[n % len(probes)], n) for n in range(12) for kind in WORK]
    random.Random(1).shuffle(tasks)
    expected = [kind(model, probe, n) for kind, probe, n in tasks]
    together = threading.Barrier(THREADS)

    def run(mine):
        together.wait(timeout=60)
        return [kind(model, probe, n) for kind, probe, n in mine]

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(run, [tasks[place::THREADS] for place in range(THREADS)]))
    for place in range(THREADS):
        assert found[place] == expected[place::THREADS]


def test_greedy_texts_are_pytorchs_whatever_else_is_under_way(model, probes):
    stop = threading.Event()

    def disturb(n):
        while not stop.is_set():
            WORK[1 + n](model, probes[n % len(probes)], n)

    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(disturb, n) for n in range(4)]
        try:
            for probe in probes:
                assert model.complete(probe.prompt, max_new_tokens=64).token_ids == probe.token_ids[:64]
        finally:
            stop.set()
        for other in others:
            other.result(timeout=60)


def test_a_stream_may_wander_from_thread_to_thread(model, probe):
    opened, pieces = model.stream(probe.prompt, max_new_tokens=20), []
    with ThreadPoolExecutor(3) as pool:
        while (piece := pool.submit(next, opened, None).result(timeout=60)) is not None:
            pieces.append(piece)
    assert opened.completion.token_ids == probe.token_ids[:20]
    assert "".join(pieces) == opened.completion.text


def test_no_more_caches_are_kept_than_a_few(fresh, probes):
    opened = [fresh.stream(probes[n % len(probes)].prompt, max_new_tokens=20) for n in range(12)]
    for each in opened:
        next(each)
    for each in opened:
        each.close()
    assert len(fresh.decode_graph._idle) <= 4
    assert len(set(map(id, fresh.decode_graph._idle))) == len(fresh.decode_graph._idle)
    for probe in probes:
        assert fresh.complete(probe.prompt, max_new_tokens=20).token_ids == probe.token_ids[:20]
