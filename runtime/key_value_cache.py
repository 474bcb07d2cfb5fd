"""Keys and values that past and present share."""

import math
import mmap

import numpy as np
from numpy.typing import NDArray

from runtime.bundle.manifest import Architecture

Floats = NDArray[np.float32]


class KeyValueCache:
    """Keys and values [rows, n_head, n_positions, head_size] of each layer.

    What lies behind a row's length is never read, so nothing needs clearing; memory is touched, and thus taken, only as
    far as a row has grown.
    """

    def __init__(self, architecture: Architecture, rows: int) -> None:
        self.architecture = architecture
        self.rows = rows
        shape = (rows, architecture.n_head, architecture.n_positions, architecture.head_size)
        self.arrays = own_pages(len(architecture.cache_names("present")), shape)

    def row(self, row: int, length: int) -> dict[str, Floats]:
        """A row's keys and values [1, n_head, length, head_size] by their names as outputs; views, not copies."""
        names = self.architecture.cache_names("present")
        return {name: array[row : row + 1, :, :length] for name, array in zip(names, self.arrays, strict=True)}

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` keys and values of a row to another row."""
        for array in self.arrays:
            array[target, :, :length] = array[source, :, :length]


def own_pages(count: int, shape: tuple[int, ...]) -> list[Floats]:
    """Arrays in pages that belong to nobody else: taken as they are touched, given back as soon as they are dropped.

    malloc keeps what threads drop in its arenas: after 20,000 completions in eight threads a process held 257 MB that
    way, and holds 129 MB this way.
    """
    private = (
        {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    )  # after a fork too
    memory = mmap.mmap(-1, 4 * count * math.prod(shape), **private)
    return list(np.frombuffer(memory, np.float32).reshape(count, *shape))
