"""Slots without a graph, for tests of what calls them."""

import hashlib
from itertools import count

import numpy as np

from runtime.graphs.work import Answer

VOCABULARY = 4


def erratic(ids):
    """The most likely id after `ids` in a language in which each of them counts, wherever it is."""
    return hashlib.sha256(bytes(ids)).digest()[0] % VOCABULARY


def repetitive(ids):
    """In a language that comes back to where it was, after a while."""
    return (ids[-5:][0] + (len(ids) % 40 == 0)) % VOCABULARY


def continued(prompt, count, language=erratic):
    """What follows a prompt."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(language(ids))
    return ids[len(prompt) :]


class FakeSlots:
    """Slots that hold ids instead of keys and values, and notes of what was run.

    Args:
        language: Gives the most likely id after some.
        logits_after: Gives the logits after some.

    Attributes:
        held: What each slot holds; ids after a run's end are still there, as they would be in a cache.
        steps_run: {slot: new ids} of each run.
    """

    launches = False

    def __init__(self, size, language=erratic, logits_after=None):
        self.count, self.following = size, language
        self.logits_after = logits_after or (lambda ids: np.eye(VOCABULARY, dtype=np.float32)[language(ids)])
        self.held = [[] for _ in range(size)]
        self.steps_run, self.copies, self.given_back = [], [], []

    def reserve(self, slot, _tokens):
        assert 0 <= slot < self.count

    def run(self, works):
        assert len({work.slot for work in works}) == len(works) > 0
        self.steps_run.append({work.slot: list(work.token_ids) for work in works})
        return [self.answer(work) for work in works]

    def answer(self, work):
        held = self.held[work.slot]
        assert 0 <= work.answers <= len(work.token_ids) > 0
        assert work.past_length <= len(held), "it goes on after ids that were never run"
        held[work.past_length :] = work.token_ids
        beginnings = [held[:end] for end in range(len(held) - work.answers + 1, len(held) + 1)]
        next_ids = np.array([self.following(ids) for ids in beginnings], np.int64)
        logits = [self.logits_after(ids) if work.logits else np.empty(0, np.float32) for ids in beginnings]
        return Answer(next_ids, np.array(logits), np.zeros(work.answers, np.bool_))

    def copy(self, source, target, length):
        assert length <= len(self.held[source])
        self.copies.append((source, target, length))
        self.held[target] = self.held[source][:length]

    def give_back(self, slot):
        self.given_back.append(slot)
        self.held[slot] = []


def scripted_slots(token_ids):
    """Slots in which these ids come one after the other, whatever is run."""
    script = iter(token_ids)
    return FakeSlots(4, lambda _: next(script))


def fed(slots):
    """The ids of each run, where a run has those of one slot."""
    return [ids for step in slots.steps_run for ids in step.values()]


class LaunchingSlots(FakeSlots):
    """Slots on a device that feeds itself.

    Attributes:
        launched: How many steps each launch was for.
    """

    launches = True

    def __init__(self, size):
        super().__init__(size)
        self.launched, self.under_way = [], None

    def run(self, works):
        assert self.under_way is None, "the device is busy"
        return super().run(works)

    def steps(self, _works):
        return 1000

    def launch(self, works, steps):
        assert self.under_way is None
        self.launched.append(steps)
        self.under_way = []
        for work in works:
            said = []
            for _, past in zip(range(steps), count(work.past_length), strict=False):
                token = said[-1:] or list(work.token_ids)
                (found,) = self.answer(work._replace(token_ids=token, past_length=past)).next_ids.tolist()
                said.append(found)
            self.under_way.append(said)

    def collect(self):
        said, self.under_way = self.under_way, None
        return said
