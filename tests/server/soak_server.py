"""A server to soak: `python soak_server.py BUNDLE SLOTS`; now and then its memory has no room for a text."""

import itertools
import sys

import runtime
from runtime.graphs.slots import HostSlots
from runtime.server import ServerSettings, create_app
from runtime.server.logs import set_up
from runtime.server.serving import bound, serve

EVERY = 50  # times that a text asks for memory, of which two find none

bundle, slots = sys.argv[1:]
reserve, texts = HostSlots.reserve, itertools.count(1)


def reserve_or_fail(self: HostSlots, slot: int, tokens: int) -> None:
    if next(texts) % EVERY < 2:  # again after slots that are kept were given back
        raise MemoryError("no room for this text")
    reserve(self, slot, tokens)


HostSlots.reserve = reserve_or_fail  # type: ignore[method-assign]
set_up("json")
model = runtime.load(bundle, device="cpu", slots=int(slots))
serve(create_app(model, ServerSettings(served_name="novelist", max_queue=4)), bound("127.0.0.1", 0), grace=5)
