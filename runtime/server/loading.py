"""Loads a model to serve: with as many slots as steps stay short with."""

import os
from collections.abc import Mapping
from typing import Any

from runtime.api import Folder, load
from runtime.model import Model

SLOTS = 32  # by default: more texts at once make more tokens a second together, and each of them waits longer
VARIABLES = {"precision": str, "device": str, "cache": str, "threads": int, "slots": int}


def load_to_serve(path: Folder = None, *, slots: int | None = None, **options: Any) -> Model:
    """`runtime.load` with 32 slots unless told otherwise; with fewer where the memory does not hold as many."""
    try:
        return load(path, slots=SLOTS if slots is None else slots, **options)
    except MemoryError:
        if slots is not None:
            raise
        return load(path, **options)


def load_options(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The options of `runtime.load` that variables such as GPT2_ONNX_PRECISION give."""
    found: dict[str, Any] = {}
    for name, kind in VARIABLES.items():
        variable = f"GPT2_ONNX_{name.upper()}"
        if text := environment.get(variable):
            try:
                found[name] = kind(text)
            except ValueError:
                raise ValueError(f"{variable} must be an integer, got {text!r}") from None
    return found
