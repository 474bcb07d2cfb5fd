"""DeviceCache: keys and values in a device's memory, updated in place."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from runtime.bundle.architecture import Architecture
from runtime.ort.install import load_onnxruntime
from runtime.ort.memory import DeviceArray
from runtime.ort.one_node import FLOAT, FLOAT16, one_node_model
from runtime.ort.placement import Placement

LEAST_CAPACITY = 128
KINDS = {np.dtype(np.float32): FLOAT, np.dtype(np.float16): FLOAT16}


class DeviceCache:
    """Keys and values [rows, n_head, capacity, head_size] of each layer.

    Values after a row's length do not count, but they must be finite, which zeros are.

    Attributes:
        capacity: Tokens that a row has room for.
        written: [rows], tokens that each row may hold, which `PaddedRuns` keeps.
    """

    def __init__(
        self, architecture: Architecture, rows: int, capacity: int, *, dtype: DTypeLike, placement: Placement
    ) -> None:
        self.architecture = architecture
        self.rows = rows
        self.capacity = capacity
        self.placement = placement
        self.written = np.zeros(rows, np.int64)
        shape = (rows, architecture.n_head, capacity, architecture.head_size)
        names = architecture.cache_names("")
        self.arrays = {name: DeviceArray(shape, dtype, placement) for name in names}

    def row(self, row: int, length: int) -> dict[str, NDArray[Any]]:
        """A row's keys and values [1, n_head, length, head_size] by their names as outputs, brought to the host."""
        return {f"present{name}": array.read()[row : row + 1, :, :length] for name, array in self.arrays.items()}

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a row's keys and values to another row, on the device.

        That is the whole row, as it is contiguous in memory and its first `length` tokens are not.
        """
        for array in self.arrays.values():
            session = copy_session(self.placement.without_cuda_graph(), KINDS[array.dtype])
            binding = session.io_binding()
            binding.bind_input("x", *array.rows(source, 1))
            binding.bind_output("y", *array.rows(target, 1))
            session.run_with_iobinding(binding)
        self.written[target] = max(self.written[target], length)

    def take_over(self, other: "DeviceCache") -> None:
        """Copy all that another cache holds, which fits into this one, by way of the host."""
        if not other.written.any():
            return
        rows, tokens = min(self.rows, other.rows), min(self.capacity, other.capacity)
        for name, array in self.arrays.items():
            values = np.zeros(array.shape, array.dtype)
            values[:rows, :, :tokens] = other.arrays[name].read()[:rows, :, :tokens]
            array.write(values)
        self.written[:rows] = np.minimum(other.written[:rows], self.capacity)


@cache
def copy_session(placement: Placement, kind: int) -> Any:
    """A session of the model y = x, made when a row first moves: ONNX Runtime has no simpler copy within a device."""
    providers = [(placement.provider, placement.provider_options())]
    return load_onnxruntime().InferenceSession(one_node_model("Identity", kind, rank=4), providers=providers)


def bucket(tokens: int, most: int) -> int:
    """The capacity for `tokens`: few sizes, so that caches and captured graphs are reused."""
    capacity = LEAST_CAPACITY
    while capacity < tokens:
        capacity *= 2
    return min(capacity, most)


def row_bucket(rows: int, most: int) -> int:
    """How many rows a cache has: a power of two, or as many as it may have."""
    return min(1 << (rows - 1).bit_length(), most)


def block(first: int, after: int, rows: int) -> tuple[int, int]:
    """The rows that a step runs over, as (the first, the one after the last): few blocks, as each is a captured graph.

    A block is a power of two of rows that begins at a multiple of its size, or as much of that as the cache has.
    """
    size = 1
    while first // size != (after - 1) // size:
        size *= 2
    start = first // size * size
    return start, min(start + size, rows)
