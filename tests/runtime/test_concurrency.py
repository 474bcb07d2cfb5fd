"""One model, many threads: each gets what it would get alone."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import runtime
from runtime.engine.loop import Loop
from runtime.graphs.slots import HostSlots

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
    return "".join(opened), opened.completion


def broken_off(model, probe, n):
    with model.stream(probe.prompt, max_new_tokens=40) as opened:
        return probe.text.startswith("".join(next(opened) for _ in range(1 + n % 5)))


def talk(model, probe, n):
    with model.session() as session:
        turns = [session.complete(probe.prompt, max_new_tokens=8), session.complete(" Then", seed=n, max_new_tokens=8)]
        session.rewind(3)
        return turns, session.complete(max_new_tokens=4), session.token_ids


def score(model, probe, n):
    """Sums in another order differ in their last bits."""
    return [pytest.approx(each, abs=1e-4) for each in model.score(probe.prompt + probe.text[: 20 + n]).logprobs[1:]]


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


def test_more_streams_at_once_than_slots(bundle, probes):
    """A stream that waits for its reader lends its slot, and reads its ids again when the reader comes back."""
    model = runtime.load(bundle, device="cpu", threads=1, slots=2, verify=False)
    work = [probes[n % len(probes)] for n in range(6)]
    opened = [model.stream(probe.prompt, max_new_tokens=40) for probe in work]
    texts = [next(each) for each in opened]
    for _ in range(40):
        texts = [text + next(each, "") for text, each in zip(texts, opened, strict=True)]
    assert texts == [model.complete(probe.prompt, max_new_tokens=40).text for probe in work]
    assert not model.loop.busy


def test_threads_share_their_steps(fresh, probes, runs):
    """Eight texts of 40 tokens take 320 steps one after the other."""
    expected = [probes[n % len(probes)].token_ids[:40] for n in range(THREADS)]
    together = threading.Barrier(THREADS)

    def run(n):
        together.wait(timeout=60)
        return fresh.complete(probes[n % len(probes)].prompt, max_new_tokens=40, draft=False).token_ids

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(run, range(THREADS))) == expected
    assert len(runs) < 160


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_a_driver_that_leaves_hands_the_wheel_over(fresh, probes, monkeypatch, error):
    """The caller that drives is interrupted in the midst of a step; the others get their texts."""
    run, calls, main = HostSlots.run, [], threading.current_thread()

    def interrupted(slots, works):
        calls.append(threading.current_thread())
        if len(calls) > 20 and calls[-1] is main and error is not MemoryError:
            raise error
        return run(slots, works)

    monkeypatch.setattr(HostSlots, "run", interrupted)
    begun = threading.Event()

    def others(n):
        begun.wait(timeout=60)
        return fresh.complete(probes[n].prompt, max_new_tokens=40).token_ids

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(others, n) for n in range(3)]
        stream = fresh.stream(probes[3].prompt, max_new_tokens=400, ignore_eos=True)
        next(stream)
        begun.set()
        if error is MemoryError:
            stream.close()
        else:
            with pytest.raises(error):
                list(stream)
        assert [each.result(timeout=60) for each in waiting] == [probes[n].token_ids[:40] for n in range(3)]
    monkeypatch.undo()
    assert fresh.complete(probes[0].prompt, max_new_tokens=9).token_ids == probes[0].token_ids[:9]
    assert not fresh.loop.busy


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_what_a_callers_function_raises_reaches_that_caller_alone(fresh, probes, error):
    """Whoever drives."""

    def fail(ids, scores):
        if len(ids) > 20:
            raise error("of the caller")
        return scores

    def run(n):
        options = {"logits_processor": fail} if n % 2 else {}
        try:
            return fresh.complete(probes[n % len(probes)].prompt, max_new_tokens=40, **options).token_ids
        except BaseException as raised:
            return raised

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, range(8)))
    for n in range(0, 8, 2):
        assert found[n] == probes[n % len(probes)].token_ids[:40]
        assert isinstance(found[n + 1], error)
        assert "of the caller" in str(found[n + 1])
    assert not fresh.loop.busy


class ThenLock:
    """A lock after whose first release something happens before anything else can."""

    def __init__(self, then):
        self._lock, self._then = threading.Lock(), [then]

    def __enter__(self):
        return self._lock.__enter__()

    def __exit__(self, *error):
        self._lock.__exit__(*error)
        if self._then:
            self._then.pop()()


def test_one_who_leaves_takes_no_drive_from_another_who_comes_at_that_moment():
    """Else two threads step at once: a caller that had nothing to wait for leaves as another begins to drive."""
    loop, comes = Loop(None), []

    def come():
        comes.append(loop._takes_wheel(lambda: None, lambda: False))

    loop._lock = ThenLock(come)
    loop.wait(lambda: True)
    come()
    assert comes == [True, False]
