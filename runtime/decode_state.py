"""One sequence under way."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.forward import Forward
from runtime.key_value_cache import Floats


class DecodeState:
    """The tokens read so far, with their keys and values in one row of a cache."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self.length = 0

    def advance(self, token_ids: Sequence[int]) -> int:
        """Run over `token_ids` (at least one) behind what is there; the most likely next id."""
        return int(self.read(token_ids, last=1)[0][0])

    def step(self, token_ids: Sequence[int]) -> tuple[int, Floats]:
        """As `advance`, with the logits [V] behind the last id, which the next run overwrites."""
        return self.advance(token_ids), self.logits

    def read(self, token_ids: Sequence[int], *, last: int) -> tuple[NDArray[np.int64], Floats]:
        """Run over `token_ids`; the most likely next ids [last] and logits [last, V] behind the last ones."""
        total = self.length + len(token_ids)
        places = range(len(token_ids) - last, len(token_ids))
        self._forward.run(0, [token_ids], [self.length], [total], places)
        self.length = total
        return self._forward.next_tokens, self._forward.logits

    def rewind(self, length: int) -> None:
        """Forget everything behind the first `length` tokens; at most what is there."""
        self.length = min(self.length, length)

    @property
    def logits(self) -> Floats:
        """Logits [V] behind the last id; the next run overwrites them."""
        last: Floats = self._forward.logits[-1]
        return last

    def cache(self) -> dict[str, Floats]:
        """Keys and values [1, n_head, length, head_size] by their names as outputs; views, not copies."""
        return self._forward.cache.row(0, self.length)
