"""Returns freed memory to the system between steps that each hold a model."""

import ctypes
import sys


def give_back() -> None:
    """Return free memory that malloc keeps to the system: glibc keeps most of a dropped model's."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
        if trim is not None:
            trim(0)
