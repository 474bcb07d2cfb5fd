"""Runs of one session on a device, one at a time; those of fixed shape as captured CUDA graphs, where there are any.

ONNX Runtime captures at the first run of a `gpu_graph_id` in a thread, and in doing so runs the graph more than once.
As the state advances with every run, capturing is a step of its own: the state is written again afterwards.
"""

import logging
import threading
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from runtime.graphs.device.state import LOG, DeviceState
from runtime.ort.install import load_onnxruntime
from runtime.ort.memory import memory_errors
from runtime.ort.placement import Placement
from runtime.ort.sessions import captures

MOST_CAPTURES = 64  # by a session: ONNX Runtime keeps each until the session ends
CAPTURE_STEPS = 8  # that capturing may take; by ONNX Runtime's source it takes a plain run, a captured one and a replay
NO_CAPTURE = -1
logger = logging.getLogger("runtime")


class DeviceRuns:
    """Whoever runs, or writes what a run reads, holds `lock`."""

    def __init__(self, session: Any, placement: Placement) -> None:
        self.session = session
        self.placement = placement
        self.lock = threading.RLock()
        self._captures = captures(session)
        self._left = MOST_CAPTURES
        self._ids = count(1)
        self._run_options: dict[tuple[int, bool], Any] = {}
        self._local = threading.local()  # a captured graph is known to the thread that captured it alone

    def run(self, state: DeviceState, *, room: int, wait: bool = True) -> None:
        """One run of what is bound.

        Args:
            room: Tokens that each row's cache has room for.
            wait: Whether to come back when the device is done; else when it knows what to do.
        """
        with memory_errors(self.placement):
            graph = self._graph(state, room)
            self.session.run_with_iobinding(state.binding, self._options(graph, wait))

    def _graph(self, state: DeviceState, room: int) -> int:
        """The number of the state's captured graph in this thread."""
        known: WeakKeyDictionary[DeviceState, int] = self._local.__dict__.setdefault("graphs", WeakKeyDictionary())
        if state in known:
            return known[state]
        if not (self._captures and state.feeds and self._left and room > CAPTURE_STEPS):
            return NO_CAPTURE
        number = next(self._ids)
        if not self._capture(state, number):
            return NO_CAPTURE
        known[state] = number
        return number

    def _capture(self, state: DeviceState, number: int) -> bool:
        held, total = state.held(), state.total
        self._left -= 1
        state.log_position(min(LOG, CAPTURE_STEPS))
        try:
            self.session.run_with_iobinding(state.binding, self._options(number, wait=True))
        except Exception as error:  # ONNX Runtime's own share no public base
            self._captures = False
            logger.info("steps run without CUDA graphs: %s", " ".join(str(error).split()))
        state.forget()
        state.put(total, **held)
        return self._captures

    def _options(self, graph: int, wait: bool) -> Any:
        """Made once each: a captured step takes less time than making them."""
        if (graph, wait) not in self._run_options:
            self._run_options[graph, wait] = make_options(graph, wait)
        return self._run_options[graph, wait]


def make_options(graph: int, wait: bool) -> Any:
    options = load_onnxruntime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    if not wait:
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
