"""Memory between steps that each hold a model."""

import ctypes
import sys


def give_back() -> None:
    """Return to the system what malloc keeps: of a model that was dropped, glibc holds on to most."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)
