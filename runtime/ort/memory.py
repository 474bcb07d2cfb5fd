"""Arrays in a device's memory, and one-line MemoryErrors when it runs out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from runtime.ort.install import load_onnxruntime
from runtime.ort.placement import Placement

OUT_OF_MEMORY = re.compile(
    r"failed to allocate|out of memory|available memory of|ALLOC_FAILED|bad_alloc|std::bad_array", re.IGNORECASE
)


@contextmanager
def memory_errors(placement: Placement) -> Iterator[None]:
    """Turn ONNX Runtime's out-of-memory errors into a MemoryError of one line."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's own share no public base
        if isinstance(error, MemoryError) or not OUT_OF_MEMORY.search(str(error)):
            raise
        limit = f"; gpu_mem_limit is {placement.gpu_mem_limit:,} bytes" if placement.gpu_mem_limit else ""
        raise MemoryError(
            f"{placement} has no memory left{limit}; choose a smaller batch_size or max_new_tokens, or free some"
        ) from None


class DeviceArray:
    """An array in a device's memory, zeros at first; on the CPU, in ordinary memory."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, placement: Placement) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.placement = placement
        with memory_errors(placement):
            make = load_onnxruntime().OrtValue.ortvalue_from_shape_and_type
            self.value = make(shape, self.dtype.type, placement.device, placement.index)
            self.write(np.zeros(shape, self.dtype))

    def write(self, values: NDArray[Any]) -> None:
        """Copy `values`, of the same shape, to the device."""
        if values.size:
            self.value.update_inplace(np.ascontiguousarray(values, self.dtype))

    def read(self) -> NDArray[Any]:
        """A copy on the host."""
        found: NDArray[Any] = self.value.numpy()
        return found.copy() if self.placement.device == "cpu" else found  # on the CPU it is a view

    def rows(self, first: int, count: int) -> tuple[str, int, type, tuple[int, ...], int]:
        """`count` rows from `first` on, as arguments of ONNX Runtime's bind_input and bind_output."""
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        address = self.value.data_ptr() + first * row_bytes
        return self.placement.device, self.placement.index, self.dtype.type, (count, *self.shape[1:]), address
