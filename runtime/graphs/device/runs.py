"""DeviceRuns: runs of one session on a device, one at a time; runs of fixed shape as captured CUDA graphs.

ONNX Runtime captures at the first run of a `gpu_graph_id` in a thread, and runs the graph more than once to do so.
As every run advances the state, capturing is a separate step: the state is written again afterwards.
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

MOST_CAPTURES = 64  # per session: ONNX Runtime keeps each until the session ends
CAPTURE_STEPS = 8  # bound on the steps of a capture: by ONNX Runtime's source a plain run, a captured one and a replay
NO_CAPTURE = -1
logger = logging.getLogger("runtime")


class DeviceRuns:
    """Hold `lock` to run, or to write what a run reads."""

    def __init__(self, session: Any, placement: Placement) -> None:
        self.session = session
        self.placement = placement
        self.lock = threading.RLock()
        self._captures = captures(session)
        self._left = MOST_CAPTURES
        self._ids = count(1)
        self._run_options: dict[tuple[int, bool], Any] = {}
        self._local = threading.local()  # a captured graph belongs to the thread that captured it

    def run(self, state: DeviceState, *, room: int, wait: bool = True) -> None:
        """Run the graph on the state's bound arrays.

        Args:
            room: Tokens that each row's cache has room for.
            wait: Whether to return when the device is done; else the run is only queued.
        """
        with memory_errors(self.placement):
            graph = self._graph(state, room)
            self.session.run_with_iobinding(state.binding, self._options(graph, wait))

    def _graph(self, state: DeviceState, room: int) -> int:
        """The id of the state's captured graph in this thread, captured first where possible; else NO_CAPTURE."""
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
        """Run options, made once each: making them takes longer than a captured step."""
        if (graph, wait) not in self._run_options:
            self._run_options[graph, wait] = make_options(graph, wait)
        return self._run_options[graph, wait]


def make_options(graph: int, wait: bool) -> Any:
    options = load_onnxruntime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    if not wait:
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
