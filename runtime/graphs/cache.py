"""KeyValueCache: keys and values in host memory, updated in place."""

import math
import mmap
import platform
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.bundle.architecture import Architecture

GIVE_BACK = getattr(mmap, "MADV_DONTNEED", None)


class KeyValueCache:
    """Keys and values [rows, n_head, n_positions, head_size] of each layer, in float32 or as int8 codes.

    Nothing after a row's length is ever read, so nothing needs clearing. Memory is touched, and thus taken, only as far
    as a row has grown: malloc's arenas would keep what threads free, so the arrays have pages of their own.

    Attributes:
        written: [rows], tokens that each row may hold, which `PaddedRuns` keeps.
    """

    def __init__(self, architecture: Architecture, rows: int, *, kind: str = "float32") -> None:
        self.architecture = architecture
        self.rows = rows
        self.written = np.zeros(rows, np.int64)
        shape = (rows, architecture.n_head, architecture.n_positions, architecture.head_size)
        count = len(architecture.cache_names("present"))
        self._row_bytes = np.dtype(kind).itemsize * math.prod(shape[1:])
        self._memory = private_memory(count * rows * self._row_bytes)
        self.arrays: list[NDArray[Any]] = list(np.frombuffer(self._memory, kind).reshape(count, *shape))

    def row(self, row: int, length: int) -> dict[str, NDArray[Any]]:
        """A row's keys and values [1, n_head, length, head_size] by their names as outputs; views, not copies."""
        names = self.architecture.cache_names("present")
        return {name: array[row : row + 1, :, :length] for name, array in zip(names, self.arrays, strict=True)}

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` keys and values of a row to another row."""
        for array in self.arrays:
            array[target, :, :length] = array[source, :, :length]
        self.written[target] = max(self.written[target], length)

    def give_back(self, row: int) -> None:
        """Give a row's whole pages back to the system, where it can take them."""
        self.written[row] = 0
        if GIVE_BACK is None or not hasattr(self._memory, "madvise"):
            return
        for index in range(len(self.arrays)):
            start = (index * self.rows + row) * self._row_bytes
            first, after = -(-start // mmap.PAGESIZE), (start + self._row_bytes) // mmap.PAGESIZE
            if after > first:
                self._memory.madvise(GIVE_BACK, first * mmap.PAGESIZE, (after - first) * mmap.PAGESIZE)


def private_memory(size: int) -> Any:
    """Pages that are taken when touched, given back as soon as nobody refers to them, and private after a fork too."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | unreserved())


def unreserved() -> int:
    """MAP_NORESERVE, which Python names from 3.12 on: without it, a process of several models could not fork."""
    generic = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64", "riscv64")
    return getattr(mmap, "MAP_NORESERVE", 0x4000 if generic else 0)


def slot_bytes(architecture: Architecture, kind: str = "float32") -> int:
    """Of a text that fills the context."""
    return np.dtype(kind).itemsize * 2 * architecture.n_layer * architecture.n_embd * architecture.n_positions
