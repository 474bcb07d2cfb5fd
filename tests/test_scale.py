"""benchmarks/scale against queueing theory, against sums by hand, and that nothing is lost."""

import math
import random
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("simpy", reason="simpy is not installed: the simulation of many replicas is untested")

from benchmarks.scale.choosers import CHOOSERS, Ring, TwoRandom
from benchmarks.scale.figures import ARRIVED, FIRST, LATENCY, TOKENS, WAITED, figures, table_of
from benchmarks.scale.fleet import Fleet, Plan
from benchmarks.scale.load import DAY, Texts, arrivals, daily, steady
from benchmarks.scale.replica import Speed, Text
from benchmarks.scale.simulate import at_peak, day, enough

FINE = 1e-6  # seconds of a step, so fine that an exponential number of them is an exponential time
BATCHES = 20


def alone(steps, rate, seconds, *, slots, most_waiting=10**6, service=1.0, seed=1, lengths="exponential"):
    """One replica: texts without prompts that take `service` seconds alone, on average."""
    fleet = Fleet(Plan(speed=Speed(steps, token=0.0), replicas=1, slots=slots, most_waiting=most_waiting))
    source = np.random.default_rng(seed)
    at = np.cumsum(source.exponential(1 / rate, round(rate * seconds)))
    mean = service / FINE
    took = source.exponential(mean, len(at)) if lengths == "exponential" else np.full(len(at), mean)
    for arrived, tokens in zip(at.tolist(), took.tolist(), strict=True):
        text = Text(arrived, 0, 0, 0, max(1, round(tokens)))
        fleet.env.timeout(arrived, text).callbacks.append(lambda event: fleet.send(event.value))
    return fleet


def mean_and_error(values):
    """The mean and its standard error by batch means, as neighbours are alike."""
    means = [float(batch.mean()) for batch in np.array_split(values[len(values) // 20 :], BATCHES)]
    return float(np.mean(means)), float(np.std(means, ddof=1) / math.sqrt(BATCHES))


def assert_is(values, expected):
    """Within three standard errors, which are small enough to tell."""
    mean, error = mean_and_error(values)
    assert error < 0.06 * expected
    assert abs(mean - expected) < 3 * error


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_slot_is_m_m_1(load):
    fleet = alone({1: FINE}, load, 60_000, slots=1)
    fleet.env.run()
    assert_is(table_of(fleet)[:, WAITED], load / (1 - load))  # rho / (mu - lambda), at mu = 1


@pytest.mark.parametrize(("slots", "load"), [(4, 0.8), (8, 0.7)])
def test_slots_of_a_speed_of_their_own_are_m_m_c(slots, load):
    fleet = alone({1: FINE}, load * slots, 220_000 / slots, slots=slots)
    fleet.env.run()
    offered = load * slots
    all_busy = offered**slots / math.factorial(slots) / (1 - load)
    erlang_c = all_busy / (sum(offered**texts / math.factorial(texts) for texts in range(slots)) + all_busy)
    assert_is(table_of(fleet)[:, WAITED], erlang_c / (slots - offered))


def test_slots_that_share_one_speed_are_processor_sharing():
    """Its mean time is 1 / (mu - lambda) whatever the lengths; here all are as long."""
    shared = {texts: texts * FINE for texts in (1, 2)}
    fleet = alone(shared, 0.7, 40_000, slots=10_000, lengths="fixed")
    fleet.env.run()
    assert_is(table_of(fleet)[:, LATENCY], 1 / (1 - 0.7))


def test_a_queue_that_is_full_refuses_as_m_m_1_k_does():
    fleet = alone({1: FINE}, 0.9, 60_000, slots=1, most_waiting=3)
    fleet.env.run()
    places, load = 4, 0.9
    refused = (1 - load) * load**places / (1 - load ** (places + 1))
    assert fleet.refused / fleet.sent == pytest.approx(refused, rel=0.05)


def test_littles_law_holds():
    """Texts under way, looked at from outside, are arrivals a second times the seconds of a text."""
    plan = Plan(speed=Speed({1: 0.01, 32: 0.06}, token=1 / 700, request=0.003), replicas=5, failures=1 / 300)
    fleet, seconds, looks = Fleet(plan), 3_000, []
    fleet.load(steady(6.0), 6.0, seconds, Texts())

    def look():
        while fleet.env.now < seconds:
            yield fleet.env.timeout(random.Random(len(looks)).uniform(0, 0.4))
            looks.append(fleet.under_way)

    fleet.env.process(look())
    fleet.env.run()
    ended = table_of(fleet)
    assert np.mean(looks) == pytest.approx(len(ended) / seconds * ended[:, LATENCY].mean(), rel=0.03)


@pytest.mark.parametrize("chooser", CHOOSERS)
@pytest.mark.parametrize("until", [40.0, 90.0, None])
def test_nothing_is_lost(chooser, until):
    """Whatever fails or is updated, and at whatever time one looks."""
    plan = Plan(
        speed=Speed({1: 0.01, 32: 0.06}, token=1 / 700), replicas=12, chooser=chooser, most_waiting=4,
        failures=1 / 60, grace=0.5, share=0.25,
    )  # fmt: skip
    fleet = Fleet(plan)
    fleet.load(steady(25.0), 25.0, 120.0, Texts())
    fleet.update(20.0, 60.0)
    fleet.env.run(until)
    kinds = Counter(kind for _, kind in fleet.events)
    assert kinds["failure"] > 2
    assert fleet.again
    assert fleet.sent == len(table_of(fleet)) + fleet.refused + fleet.under_way
    if until is None:
        assert fleet.refused
        assert not fleet.under_way
        assert kinds["update ends"] == 1
        assert all(replica.up for replica in fleet.replicas)


def test_a_text_takes_what_its_sum_says():
    """A prompt of 100 tokens at 0.01 s and 5 tokens, by steps of 1 s; a second joins at the end of a step."""
    fleet = Fleet(Plan(speed=Speed({1: 1.0, 2: 1.5}, token=0.01, request=0.25), replicas=1, slots=2))
    for arrived, kind, own, new in ((0.0, 1, 100, 5), (3.0, 2, 50, 2), (3.5, 3, 10, 1)):
        text = Text(arrived, kind, 0, own, new)
        fleet.env.timeout(arrived, text).callbacks.append(lambda event: fleet.send(event.value))
    fleet.env.run()
    rows = {row[ARRIVED]: row.tolist() for row in table_of(fleet)}
    # The first reads until 1 + 0.25 + 1 = 2.25, and decodes until 3.25. Beside it the second has 34 tokens read, until
    # 3.25 + 1 + 0.25 + 0.34 = 4.84, then 16, until 6. Both decode until 7.5, and so has the first its five.
    assert rows[0.0] == pytest.approx([0.0, 0.0, 2.25, 7.5, 5])
    assert rows[3.0] == pytest.approx([3.0, 0.25, 3.0, 4.5, 2])
    # The third has no slot until then; it reads in 1 + 0.25 + 0.1.
    assert rows[3.5] == pytest.approx([3.5, 4.0, 5.35, 5.35, 1])


def test_a_beginning_is_read_once():
    fleet = Fleet(Plan(speed=Speed({1: 1.0}, token=0.01), replicas=1, slots=1))
    for arrived in (0.0, 100.0):
        text = Text(arrived, 7, 200, 10, 1)
        fleet.env.timeout(arrived, text).callbacks.append(lambda event: fleet.send(event.value))
    fleet.env.run()
    assert table_of(fleet)[:, FIRST] == pytest.approx([3.1, 1.1])


def test_steps_are_interpolated():
    speed = Speed({1: 1.0, 4: 4.0, 8: 6.0}, token=0.0)
    assert [speed.step(texts) for texts in (0, 1, 2, 4, 6, 8, 10)] == pytest.approx([1, 1, 2, 4, 5, 6, 7])
    with pytest.raises(ValueError, match=r"of one text, got those of \[2\]"):
        Speed({2: 1.0}, token=0.0)


class Place:
    def __init__(self, slots=4):
        self.up, self.under_way, self.slots = True, 0, slots


def test_a_replica_that_is_gone_moves_its_own_beginnings_only():
    replicas = [Place() for _ in range(20)]
    ring = Ring(replicas)
    before = {kind: ring.choose(kind) for kind in range(2_000)}
    assert max(Counter(map(id, before.values())).values()) < 2.5 * 2_000 / 20
    replicas[3].up = False
    after = {kind: ring.choose(kind) for kind in range(2_000)}
    moved = [kind for kind in before if before[kind] is not after[kind]]
    assert moved
    assert all(before[kind] is replicas[3] for kind in moved)
    full = before[0]
    full.under_way = full.slots
    assert ring.choose(0) not in (full, None)
    for each in replicas:
        each.up = False
    assert ring.choose(0) is None


def test_the_fewer_of_two_keeps_replicas_alike():
    """The longest of 1,000 queues of 1,000 texts is about log log n / log 2 + 1 long, not log n / log log n."""
    replicas = [Place() for _ in range(1_000)]
    replicas[0].up = False
    two = TwoRandom(replicas, seed=3)
    for _ in range(1_000):
        two.choose(0).under_way += 1
    assert max(each.under_way for each in replicas) <= 4
    assert replicas[0].under_way == 0


def test_arrivals_follow_the_days_curve():
    rate = daily(2.0, 4.0)
    assert rate(np.array([15 * 3600.0, 3 * 3600.0])) == pytest.approx([2.0, 0.5])
    source = np.random.default_rng(0)
    times = np.concatenate([np.array(part) for part in arrivals(rate, 2.0, DAY, source)])
    assert len(times) == pytest.approx(1.25 * DAY, rel=0.01)
    gaps = np.diff(times[(times > 14.5 * 3600) & (times < 15.5 * 3600)])
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential
    expected = 3600 * rate((np.arange(24) + 0.5) * 3600)
    hours = np.histogram(times, 24, (0, DAY))[0]
    assert np.abs(hours - expected).max() < 4 * math.sqrt(expected.max())


def test_texts_are_as_long_as_they_say():
    texts = Texts(new=64, most_new=128)
    kinds, shared, own, new = texts.draw(np.random.default_rng(0), 200_000)
    assert np.mean(new) == pytest.approx(texts.means()[1], rel=0.01)
    assert max(new) == 128
    assert (min(own), max(own)) == texts.own
    assert len({(kind, length) for kind, length in zip(kinds, shared, strict=True)}) == len(set(kinds))
    seen = Counter(kinds)
    assert seen[0] / seen[9] == pytest.approx(10, rel=0.1)


SPEED = Speed({1: 0.01, 8: 0.02, 32: 0.06}, token=1 / 1000, request=0.002)


def test_a_day_has_its_failures_and_its_update():
    plan = Plan(speed=SPEED, replicas=20, failures=1 / DAY, share=0.1)
    fleet = day(plan, Texts(), peak=20.0, ratio=4.0, compress=120.0)
    kinds = Counter(kind for _, kind in fleet.events)
    assert kinds["failure"] == pytest.approx(20, abs=14)  # three standard deviations of Poisson's
    begins, ends = (next(at for at, each in fleet.events if each == kind) for kind in ("update begins", "update ends"))
    assert begins * 120 == pytest.approx(DAY / 2)
    assert ends - begins >= 10 * plan.cold  # ten shares, one after the other
    whole = figures(table_of(fleet))
    assert whole.texts == fleet.sent == pytest.approx(12.5 * 720, rel=0.05)
    assert whole.tokens == table_of(fleet)[:, TOKENS].sum()


def test_fewer_replicas_than_enough_are_not():
    plan, bound = Plan(speed=SPEED, replicas=2), 0.5
    replicas, found = enough(plan, Texts(), own=4, bound=bound)
    assert found.seconds["waiting"][99] <= bound
    from dataclasses import replace

    from benchmarks.scale.figures import capacity

    peak = 4 * capacity(plan, Texts())
    fewer = at_peak(replace(plan, replicas=replicas - 1), Texts(), peak=peak)
    assert fewer.seconds["waiting"][99] > bound
