"""A simulated fleet: a front that sends texts to replicas, replicas that fail, and an update that goes round them."""

import random
from array import array
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from benchmarks.scale.choosers import chooser_of
from benchmarks.scale.load import Rate, Texts, arrivals
from benchmarks.scale.replica import Replica, Speed, Text

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a fleet is, and what happens to it.

    Attributes:
        slots: Texts that run at once in a replica.
        most_waiting: Texts that wait in a replica, before one is refused.
        chooser: One of `CHOOSERS`.
        cold: Seconds from a replica's start to its first text.
        detect: Seconds until a dead replica is started again.
        retry: Seconds until a client sends a text again whose replica has died.
        grace: Seconds that a replica which is updated has for its texts.
        failures: Of a replica, a second.
        share: Of the replicas, updated at once.
    """

    speed: Speed
    replicas: int
    slots: int = 32
    most_waiting: int = 64
    chooser: str = "two"
    cold: float = 1.0
    detect: float = 10.0
    retry: float = 0.5
    grace: float = 30.0
    failures: float = 0.0
    share: float = 0.05
    seed: int = 0


class Fleet:
    """Replicas behind a front, and a record of each text that ended.

    Attributes:
        ended: Five numbers of each text: its arrival, seconds from there to its slot, to the first and to the last
            token, and its tokens.
        events: (second, "failure", "update begins" or "update ends").
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.env = plan, simpy.Environment()
        self.replicas = [
            Replica(self.env, plan.speed, slots=plan.slots, most_waiting=plan.most_waiting, ended=self._end)
            for _ in range(plan.replicas)
        ]
        self._choose = chooser_of(plan.chooser, self.replicas, plan.seed).choose
        self.sent = self.refused = self.retrying = self.again = 0
        self.ended = array("d")
        self.events = list[tuple[float, str]]()

    @property
    def under_way(self) -> int:
        """Texts in replicas, and those that are about to be sent again."""
        return sum(replica.under_way for replica in self.replicas) + self.retrying

    def send(self, text: Text) -> None:
        """A text has arrived."""
        self.sent += 1
        self._place(text)

    def _place(self, text: Text) -> None:
        replica = self._choose(text.kind)
        if replica is None or replica.under_way >= replica.most:
            self.refused += 1
        else:
            replica.add(text)

    def _end(self, text: Text) -> None:
        arrived = text.arrived
        self.ended.extend(
            (arrived, text.began - arrived, text.first - arrived, self.env.now - arrived, float(text.new))
        )

    def load(self, rate: Rate, most: float, seconds: float, texts: Texts) -> None:
        """Let texts arrive; `rate` is a second's, at a second of the simulation."""
        self.env.process(self._arrive(rate, most, seconds, texts))
        if self.plan.failures:
            self.env.process(self._fail(seconds))

    def fill(self, texts: Texts) -> None:
        """Let as many texts arrive now as there are slots."""
        source = np.random.default_rng(self.plan.seed + 1)
        drawn = texts.draw(source, self.plan.slots * len(self.replicas))
        for each in zip(*drawn, strict=True):
            self.send(Text(self.env.now, *each))

    def _arrive(self, rate: Rate, most: float, seconds: float, texts: Texts) -> Process:
        source, env = np.random.default_rng(self.plan.seed), self.env
        for times in arrivals(rate, most, seconds, source):
            for at, *drawn in zip(times, *texts.draw(source, len(times)), strict=True):
                yield env.timeout(at - env.now)
                self.send(Text(at, *drawn))

    def _fail(self, seconds: float) -> Process:
        """Of all replicas, one after the other; one that is down cannot fail."""
        source = random.Random(self.plan.seed)
        while self.env.now < seconds:
            yield self.env.timeout(source.expovariate(self.plan.failures * len(self.replicas)))
            replica = source.choice(self.replicas)
            if replica.up:
                self.env.process(self._down(replica))

    def _down(self, replica: Replica) -> Process:
        """A process is gone: its texts begin anew elsewhere, and its place is empty for a while."""
        self.events.append((self.env.now, "failure"))
        replica.up = False
        self._send_again(replica.kill())
        yield self.env.timeout(self.plan.detect + self.plan.cold)
        replica.up = True

    def _send_again(self, texts: list[Text]) -> None:
        for text in texts:
            self.retrying += 1
            self.again += 1
            retry = self.env.timeout(self.plan.retry, text)
            retry.callbacks.append(self._retry)

    def _retry(self, event: simpy.Event) -> None:
        self.retrying -= 1
        assert isinstance(event.value, Text)
        self._place(event.value)

    def update(self, at: float, until: float = 0.0) -> None:
        """Restart all replicas from a second on, a share at a time; round after round until a second, but once."""
        self.env.process(self._update(at, until))

    def _update(self, at: float, until: float) -> Process:
        yield self.env.timeout(at)
        self.events.append((self.env.now, "update begins"))
        many = max(1, round(self.plan.share * len(self.replicas)))
        while True:
            for first in range(0, len(self.replicas), many):
                some = self.replicas[first : first + many]
                yield self.env.all_of([self.env.process(self._restart(replica)) for replica in some])
            if self.env.now >= until:
                break
        self.events.append((self.env.now, "update ends"))

    def _restart(self, replica: Replica) -> Process:
        """Drain, and start anew; one that is down is started anew anyway."""
        if not replica.up:
            return
        replica.up = False
        if replica.under_way:
            replica.drained = self.env.event()
            yield replica.drained | self.env.timeout(self.plan.grace)
            replica.drained = None
            self._send_again(replica.kill())
        else:
            replica.kill()
        yield self.env.timeout(self.plan.cold)
        replica.up = True
