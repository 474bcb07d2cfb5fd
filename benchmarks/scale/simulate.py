"""The studies that simulate: a day, how many replicas are enough, and the texts that live servers got."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmarks.scale.figures import Figures, capacity, figures, table_of
from benchmarks.scale.fleet import Fleet, Plan
from benchmarks.scale.load import DAY, Texts, arrivals, daily, steady
from benchmarks.scale.replica import Text

NOON = DAY / 2  # when a day's update begins
WARM = 40.0  # seconds of the simulation that do not count, of a load that is steady
LEAST_TEXTS = 60_000  # for a 99th percentile of a steady load


def day(plan: Plan, texts: Texts, *, peak: float, ratio: float, compress: float) -> Fleet:
    """A day's load, `compress` times as fast, with failures and an update; texts take as long as they do.

    Failures come as often a day, so each lasts `compress` times as much of it.
    """
    seconds = DAY / compress
    curve = daily(peak, ratio)

    def rate(at: np.ndarray) -> np.ndarray:
        return curve(at * compress)

    fleet = Fleet(replace(plan, failures=plan.failures * compress))
    fleet.load(rate, peak, seconds, texts)
    fleet.update(NOON / compress)
    fleet.env.run()
    return fleet


def at_peak(plan: Plan, texts: Texts, *, peak: float) -> Figures:
    """A load that is steady, with failures, and with updates one after the other.

    It begins with all slots full, as after a burst: too few replicas would take long to fill theirs, and show no queue.
    """
    seconds = max(60.0, LEAST_TEXTS / peak)
    fleet = Fleet(plan)
    fleet.fill(texts)
    fleet.load(steady(peak), peak, WARM + seconds, texts)
    fleet.update(0.0, WARM + seconds)
    fleet.env.run()
    return figures(table_of(fleet), WARM)


def enough(plan: Plan, texts: Texts, *, own: int, bound: float) -> tuple[int, Figures]:
    """The fewest replicas for a peak that fills `own` of them whole, so that 99 % of texts wait no longer than `bound`.

    Found by halving, as more replicas are never worse; to a fiftieth of `own`.
    """
    peak = own * capacity(plan, texts)
    found: dict[int, Figures] = {}

    def fits(replicas: int) -> bool:
        found[replicas] = at_peak(replace(plan, replicas=replicas), texts, peak=peak)
        return found[replicas].seconds["waiting"][99] <= bound

    tried = range(max(2, own // 2), 2 * own + 2, max(1, own // 50))
    replicas = tried[bisect_left(tried, True, hi=len(tried) - 1, key=fits)]
    if replicas not in found:
        fits(replicas)
    return replicas, found[replicas]


def replay(plan: Plan, texts: Sequence[Text]) -> Fleet:
    """Texts that are known one by one."""
    fleet = Fleet(plan)
    for text in texts:
        arrival = fleet.env.timeout(text.arrived, Text(text.arrived, text.kind, text.shared, text.own, text.new))
        arrival.callbacks.append(lambda event: fleet.send(event.value))
    fleet.env.run()
    return fleet


def texts_of(texts: Texts, rate: float, seconds: float, seed: int) -> list[Text]:
    """Texts that arrive at a steady rate."""
    source = np.random.default_rng(seed)
    found = list[Text]()
    for times in arrivals(steady(rate), rate, seconds, source):
        found += [Text(at, *drawn) for at, *drawn in zip(times, *texts.draw(source, len(times)), strict=True)]
    return found
