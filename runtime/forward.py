"""Runs over a cache: a token a row by one graph, many at a time by another, if there is one that is faster then."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.bound_graph import BoundGraph
from runtime.key_value_cache import Floats, KeyValueCache

MANY = 32  # tokens a row, from which on a prefill graph runs; loading it takes as long as it saves in a few such runs


class Forward:
    """Both graphs over one cache; `prefill` makes the other's session, or gives None.

    Which of them ran last is where the logits are.
    """

    def __init__(self, decode: Any, prefill: Callable[[], Any], cache: KeyValueCache) -> None:
        self.cache = cache
        self._prefill = prefill
        self._one = self._last = BoundGraph(decode, cache)
        self._many: BoundGraph | None = None

    def run(
        self,
        first_row: int,
        input_ids: ArrayLike,
        past_lengths: ArrayLike,
        lengths: ArrayLike,
        logits_indices: ArrayLike,
    ) -> None:
        """Add ids to some rows; the arguments are those of `BoundGraph.run`."""
        ids = np.asarray(input_ids, np.int64)
        self._last = self._graph_for(ids.shape[1])
        self._last.run(first_row, ids, past_lengths, lengths, logits_indices)

    @property
    def logits(self) -> Floats:
        """Logits [N, V] of the last run; the next one overwrites them."""
        return self._last.logits

    @property
    def next_tokens(self) -> NDArray[np.int64]:
        """The most likely ids [N] of the last run; the next one overwrites them."""
        return self._last.next_tokens

    def _graph_for(self, count: int) -> BoundGraph:
        if count < MANY:
            return self._one
        if self._many is None:
            session = self._prefill()
            self._many = self._one if session is None else BoundGraph(session, self.cache)
        return self._many
