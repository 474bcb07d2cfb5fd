"""A simulated replica: slots whose texts share its steps, a queue, and the beginnings that it has read.

The rules are the engine's (`runtime.engine.scheduler`): in each step every text that decodes gains a token, and some
tokens of prompts are read beside them, the oldest first; a text takes a slot between two steps, never within one.
A step takes `Speed.steps` for its texts, and more for what is read. Steps in which nothing changes are one event.
"""

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from itertools import count
from math import ceil, inf

import simpy

from runtime.engine.scheduler import prompt_tokens
from runtime.engine.slots import MOST_KEPT


class Speed:
    """How long a replica takes.

    Args:
        steps: Seconds of a step by the number of texts that decode in it; between them it is interpolated, and beyond
            the most it grows as from the two before it.
        token: Seconds for each token of a prompt that a step reads.
        request: Seconds for each request besides, once.
    """

    def __init__(self, steps: Mapping[int, float], *, token: float, request: float = 0.0) -> None:
        self.token, self.request = token, request
        if 1 not in steps:
            raise ValueError(f"steps must have the seconds of one text, got those of {sorted(steps)}")
        self.known = sorted(steps.items())
        self._steps = [self.known[0][1]]  # of prompts alone, as of one text: the weights are read once

    def step(self, texts: int) -> float:
        """Seconds of a step in which so many texts decode, 0 or more."""
        while len(self._steps) <= texts:
            self._steps.append(self._between(len(self._steps)))
        return self._steps[texts]

    def _between(self, texts: int) -> float:
        if len(self.known) == 1:
            return self.known[0][1]
        place = min(max(bisect_left(self.known, (texts, -inf)), 1), len(self.known) - 1)
        (less, before), (more, after) = self.known[place - 1 : place + 1]
        return before + (after - before) * (texts - less) / (more - less)


class Text:
    """A text from its arrival to its end; times are seconds of the simulation."""

    __slots__ = ("arrived", "began", "first", "kind", "left", "new", "own", "shared")

    def __init__(self, arrived: float, kind: int, shared: int, own: int, new: int) -> None:
        self.arrived, self.kind, self.shared, self.own, self.new = arrived, kind, shared, own, new
        self.began = self.first = 0.0
        self.left = 0  # tokens of the prompt that are to be read


class Replica:
    """A replica that is up, drains, or is down.

    Args:
        ended: What is called with each text that has ended.
    """

    def __init__(
        self, env: simpy.Environment, speed: Speed, *, slots: int, most_waiting: int, ended: Callable[[Text], None]
    ) -> None:
        self._env, self._speed, self._ended = env, speed, ended
        self.slots, self.most = slots, slots + most_waiting
        self.up = True
        self.drained: simpy.Event | None = None
        self._order = count()
        self._clear()

    def _clear(self) -> None:
        self.under_way = 0
        self._waiting = deque[Text]()
        self._reading = list[Text]()
        self._fresh = 0  # texts that have a slot since the last step
        self._decoding = list[tuple[int, int, Text]]()  # a heap, by the step after which a text has ended
        self._made = 0  # steps so far, which is tokens of a text that decodes all along
        self._due: simpy.Event | None = None  # the end of the steps that run
        self._began, self._step, self._steps = 0.0, 0.0, 0
        self._held = dict[int, int]()  # how many running texts have read a beginning
        self._kept = OrderedDict[int, None]()  # beginnings of the texts that ended last

    def add(self, text: Text) -> None:
        """Queue a text; it takes a slot at the end of the step that runs."""
        self._waiting.append(text)
        self.under_way += 1
        if self._due is None:
            self._go_on()
        elif self._steps > 1 and self._running < self.slots:
            self._cut()

    def kill(self) -> list[Text]:
        """Stop at once; the texts that it had."""
        texts = [*(text for _, _, text in self._decoding), *self._reading, *self._waiting]
        self._clear()
        return texts

    @property
    def _running(self) -> int:
        return len(self._decoding) + len(self._reading)

    def _go_on(self) -> None:
        """Between two steps: free slots are taken, and the next steps begin."""
        while self._waiting and self._running < self.slots:
            self._begin(self._waiting.popleft())
        decoding = len(self._decoding)
        step = self._speed.step(decoding)
        if self._reading:
            self._run(1, step + self._fresh * self._speed.request + self._read(prompt_tokens(decoding)))
            self._fresh = 0
        elif decoding:
            self._run(self._decoding[0][0] - self._made, step)
        else:
            self._due = None
            if self.drained is not None and not self.drained.triggered:
                self.drained.succeed()

    def _begin(self, text: Text) -> None:
        text.began = self._env.now
        text.left = text.own if text.kind in self._held or text.kind in self._kept else text.shared + text.own
        self._reading.append(text)
        self._fresh += 1
        self._keep()

    def _read(self, room: int) -> float:
        """Seconds of the prompts' parts that fit into a step."""
        left = room
        for text in self._reading:
            part = min(text.left, left)
            text.left -= part
            left -= part
            if not left:
                break
        return (room - left) * self._speed.token

    def _run(self, steps: int, step: float) -> None:
        self._began, self._step = self._env.now, step
        self._end_after(steps)

    def _end_after(self, steps: int) -> None:
        self._steps = steps
        self._due = self._env.timeout(max(0.0, self._began + steps * self._step - self._env.now))
        self._due.callbacks.append(self._end)

    def _cut(self) -> None:
        """End the steps that run after the present one, as a text has come for which there is a slot."""
        steps = min(self._steps, max(1, ceil((self._env.now - self._began) / self._step)))
        if steps < self._steps:
            self._end_after(steps)

    def _end(self, event: simpy.Event) -> None:
        if event is not self._due:  # cut short, or the replica was killed
            return
        self._made += self._steps
        while self._decoding and self._decoding[0][0] <= self._made:
            self._finish(heappop(self._decoding)[2])
        if self._reading:
            self._tell_first()
        self._go_on()

    def _tell_first(self) -> None:
        """Texts whose prompt has been read have their first token."""
        read = [text for text in self._reading if not text.left]
        self._reading = [text for text in self._reading if text.left]
        for text in read:
            text.first = self._env.now
            self._held[text.kind] = self._held.get(text.kind, 0) + 1
            if text.new > 1:
                heappush(self._decoding, (self._made + text.new - 1, next(self._order), text))
            else:
                self._finish(text)

    def _finish(self, text: Text) -> None:
        self.under_way -= 1
        self._held[text.kind] -= 1
        if not self._held[text.kind]:
            del self._held[text.kind]
        self._kept.pop(text.kind, None)
        self._kept[text.kind] = None
        self._keep()
        self._ended(text)

    def _keep(self) -> None:
        """Beginnings of the texts that ended last, in slots that are free."""
        while len(self._kept) > min(MOST_KEPT, self.slots - self._running):
            self._kept.popitem(last=False)
