"""Greedy steps that a device takes by itself, told to the host some at a time.

While the host looks at what the last steps said, the next ones are under way; what they say past the end of a text is
never seen.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.graphs.state import DecodeState

MOST_STEPS = 16  # told at a time; the first ones come alone, so that a stream begins at once
NO_LOGITS = np.empty(0, np.float32)


class LoopedStep:
    """What runs over new ids of one text.

    Args:
        most_ids: Ids that the text has at most, prompt included; the last of them is never run over.
    """

    def __init__(self, state: DecodeState, most_ids: int) -> None:
        self._state = state
        self._most_ids = most_ids
        self._told: deque[int] = deque()
        self._under_way = False
        self._steps = 1

    def __call__(self, new_ids: Sequence[int]) -> tuple[int, NDArray[np.float32]]:
        """The most likely id behind `new_ids`: the prompt, then each time what was said last."""
        if not self._told:
            self._told.extend(self.settle() or [self._state.advance(new_ids)])
            self._launch(self._told[-1])
        return self._told.popleft(), NO_LOGITS

    def settle(self) -> list[int]:
        """Wait for what is under way; what it says."""
        waited, self._under_way = self._under_way, False
        return self._state.collect() if waited else []

    def _launch(self, token_id: int) -> None:
        """Twice as many steps as last time, as far as the text may get."""
        steps = min(self._steps, self._most_ids - 1 - self._state.length)
        if steps > 0:
            self._state.launch(token_id, steps)
            self._under_way = True
            self._steps = min(2 * steps, MOST_STEPS)
