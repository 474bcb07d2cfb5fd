"""BoundSession: a session whose inputs and outputs are arrays of the host, some of them the rows of a cache."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.graphs.cache import KeyValueCache
from runtime.ort.install import load_onnxruntime


class BoundSession:
    """Arrays are bound again only when their shapes change from one run to the next."""

    def __init__(self, session: Any, cache: KeyValueCache) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._value = load_onnxruntime().OrtValue.ortvalue_from_numpy  # shares the array's memory on the CPU
        self._cache = cache
        self._total_sequence_length = self._bind_input("total_sequence_length", np.zeros(1, np.int32))
        self._bound_rows: tuple[int, int] | None = None

    def _run_bound(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def _bind_rows(self, first: int, rows: int) -> None:
        """Bind rows of the cache, as past and as present."""
        if self._bound_rows == (first, rows):
            return
        self._bound_rows = None  # in case this fails halfway
        for name, array in zip(self._cache.architecture.cache_names(""), self._cache.arrays, strict=True):
            value = self._value(array[first : first + rows])
            self._binding.bind_ortvalue_input(f"past_key_values{name}", value)
            self._binding.bind_ortvalue_output(f"present{name}", value)
        self._bound_rows = first, rows

    def _bind_input(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        self._binding.bind_ortvalue_input(name, self._value(array))
        return array

    def _bind_output(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        self._binding.bind_ortvalue_output(name, self._value(array))
        return array
