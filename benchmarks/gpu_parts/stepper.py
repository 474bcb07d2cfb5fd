"""A sequence over a session of one's own, put together as `DecodeGraph` does it, so that the session can be timed."""

from typing import Any

import numpy as np
from gpu_parts.checkpoint import Checkpoint
from gpu_parts.rounds import seconds_of

from runtime.graphs.device.cache import DeviceCache, bucket
from runtime.graphs.device.graph import DeviceGraph
from runtime.graphs.device.runs import DeviceRuns
from runtime.graphs.forward import Forward
from runtime.graphs.state import DecodeState
from runtime.ort.placement import Placement


class TimedSession:
    """An ONNX Runtime session that adds up the seconds of its runs."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run_with_iobinding(self, *arguments: Any) -> None:
        seconds, _ = seconds_of(lambda: self.session.run_with_iobinding(*arguments))
        self.seconds += seconds


def make_stepper(session: Any, placement: Placement, checkpoint: Checkpoint) -> DecodeState:
    """In float16, with room for the plan's tokens and some more."""
    sizes, plan = checkpoint.architecture, checkpoint.plan
    capacity = bucket(plan.prompt + max(plan.tokens, 64) + 64, sizes.n_positions)
    cache = DeviceCache(sizes, 1, capacity, dtype=np.float16, placement=placement)
    graph = DeviceGraph(DeviceRuns(session, placement), cache)
    return DecodeState(Forward(cache, graph, lambda: None))
