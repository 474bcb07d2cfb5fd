"""A graph bound to a cache, which is past and present at once, and to the small arrays of its runs."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.key_value_cache import Floats, KeyValueCache
from runtime.onnx_runtime import load_onnxruntime


class BoundGraph:
    """Runs of one session over some rows of a cache.

    Arrays are bound again only when a run has another shape than the last: a loop that adds a token a run writes its
    numbers in place.
    """

    def __init__(self, session: Any, cache: KeyValueCache) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._value = load_onnxruntime().OrtValue.ortvalue_from_numpy  # shares the array's memory on the CPU
        self._cache = cache
        self._total_sequence_length = self._bind_input("total_sequence_length", np.zeros(1, np.int32))
        self._bound_rows: tuple[int, int] | None = None
        self._bound_shape: tuple[int, int, int] | None = None

    def run(
        self,
        first_row: int,
        input_ids: ArrayLike,
        past_lengths: ArrayLike,
        lengths: ArrayLike,
        logits_indices: ArrayLike,
    ) -> None:
        """Add ids to the rows from `first_row` on.

        Args:
            first_row: The first of B rows next to each other.
            input_ids: [B, S], padded on the right. Over one token a row only where B is 1 or all rows are empty.
            past_lengths: [B], tokens in each row before.
            lengths: [B], tokens in each row afterwards, without padding.
            logits_indices: [N], where logits are wanted, as b * S + s.
        """
        ids, after = np.asarray(input_ids, np.int64), np.asarray(lengths, np.int32)
        indices = np.asarray(logits_indices, np.int64)
        rows, count = ids.shape
        self._bind_rows(first_row, rows)
        self._bind_shape(rows, count, len(indices))
        self._input_ids[...] = ids
        np.add(np.asarray(past_lengths)[:, None], np.arange(count), out=self._position_ids)  # [B, S]
        np.subtract(after, 1, out=self._seqlens_k)
        self._total_sequence_length[0] = after.max()
        self._logits_indices[...] = indices
        self._session.run_with_iobinding(self._binding)

    @property
    def logits(self) -> Floats:
        """Logits [N, V] of the last run; the next one overwrites them."""
        return self._logits

    @property
    def next_tokens(self) -> NDArray[np.int64]:
        """The most likely ids [N] of the last run; the next one overwrites them."""
        return self._next_token[:, 0]

    def _bind_rows(self, first: int, rows: int) -> None:
        if self._bound_rows == (first, rows):
            return
        self._bound_rows = None  # in case this fails halfway
        for name, array in zip(self._cache.architecture.cache_names(""), self._cache.arrays, strict=True):
            value = self._value(array[first : first + rows])
            self._binding.bind_ortvalue_input(f"past_key_values{name}", value)
            self._binding.bind_ortvalue_output(f"present{name}", value)
        self._bound_rows = first, rows

    def _bind_shape(self, rows: int, count: int, logits_count: int) -> None:
        """Arrays for `rows` times `count` ids, and for logits in `logits_count` places."""
        if self._bound_shape == (rows, count, logits_count):
            return
        self._bound_shape = None
        self._input_ids = self._bind_input("input_ids", np.empty((rows, count), np.int64))
        self._position_ids = self._bind_input("position_ids", np.empty((rows, count), np.int64))
        self._seqlens_k = self._bind_input("seqlens_k", np.empty(rows, np.int32))
        self._logits_indices = self._bind_input("logits_indices", np.empty(logits_count, np.int64))
        logits_shape = (logits_count, self._cache.architecture.vocab_size)
        self._logits = self._bind_output("logits", np.empty(logits_shape, np.float32))
        self._next_token = self._bind_output("next_token", np.empty((logits_count, 1), np.int64))
        self._bound_shape = rows, count, logits_count

    def _bind_input(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        self._binding.bind_ortvalue_input(name, self._value(array))
        return array

    def _bind_output(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        self._binding.bind_ortvalue_output(name, self._value(array))
        return array
