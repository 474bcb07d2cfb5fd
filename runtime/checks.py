"""Checks of option values, made once at the public API; each error names the option, the range and the value."""

import math
import re
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

PRECISIONS = ("fp32", "fp16", "int8", "int4")
DRAFTS = ("int8", "int4")
CACHES = ("float32", "int8")
DEVICE = re.compile(r"(auto|cpu)|cuda(?::(\d{1,4}))?")
ARENA_EXTEND_STRATEGIES = ("kNextPowerOfTwo", "kSameAsRequested")
MAX_THREADS = 1024
MAX_BATCH_SIZE = MAX_SLOTS = 1024
LEAST_GPU_MEMORY, MOST_GPU_MEMORY = 2**20, 2**50


def check_threads(value: object) -> int | None:
    return None if value is None else check_count("threads", value, most=MAX_THREADS)


def check_slots(value: object) -> int | None:
    return None if value is None else check_count("slots", value, most=MAX_SLOTS)


def check_batch_size(value: object) -> int:
    return check_count("batch_size", value, most=MAX_BATCH_SIZE)


def shown(value: object) -> str:
    """`value` for a message; Python refuses to print integers of more than 4,300 digits."""
    try:
        return str(value)
    except ValueError:
        return "an integer of thousands of digits"


def check_count(name: str, value: object, *, least: int = 1, most: int | None = None) -> int:
    """`value` as an integer from `least` to `most`."""
    allowed = f"an integer of at least {least}{f' and at most {most:,}' if most is not None else ''}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    count = int(value)
    if count < least or (most is not None and count > most):
        raise ValueError(f"{name} must be {allowed}, got {shown(value)}")
    return count


def check_number(name: str, value: object, allowed: str, *, least: float, most: float = math.inf) -> float:
    """`value` as a finite number from `least` to `most`; `allowed` says so in words."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an integer or a fraction of hundreds of digits
        number = math.inf
    if not (math.isfinite(number) and least <= number <= most):
        raise ValueError(f"{name} must be {allowed}, got {number if math.isinf(number) else value}")
    return number


def check_flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_precision(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value in PRECISIONS):
        return value
    raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {value!r}")


def check_cache(value: object, precision: str) -> str:
    """The type of keys and values, by default float32; int8 is only served beside the CPU's precisions."""
    if value is not None and not (isinstance(value, str) and value in CACHES):
        raise ValueError(f"cache must be None or one of {', '.join(map(repr, CACHES))}, got {value!r}")
    if value == "int8" and precision == "fp16":
        raise ValueError("cache must be None or 'float32' where the precision is 'fp16', got 'int8'")
    return "float32" if value is None else str(value)


def check_draft_precision(value: object, precision: str) -> str | None:
    """`value`, if it is None or a precision lower than `precision`."""
    lower = [draft for draft in DRAFTS if PRECISIONS.index(draft) > PRECISIONS.index(precision)]
    if value is None or (isinstance(value, str) and value in lower):
        return value
    allowed = " or ".join(map(repr, (None, *lower)))
    raise ValueError(f"draft must be {allowed} where the precision is {precision!r}, got {value!r}")


def check_device(value: object) -> tuple[str, int]:
    """("auto", "cpu" or "cuda"; the card's number)."""
    found = DEVICE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', N from 0 up, got {value!r}")
    return found[1] or "cuda", int(found[2] or 0)


def check_arena_extend_strategy(value: object) -> str | None:
    if value is None or value in ARENA_EXTEND_STRATEGIES:
        return value
    allowed = " or ".join(map(repr, (None, *ARENA_EXTEND_STRATEGIES)))
    raise ValueError(f"arena_extend_strategy must be {allowed}, got {value!r}")


def check_gpu_mem_limit(value: object) -> int | None:
    return None if value is None else check_count("gpu_mem_limit", value, least=LEAST_GPU_MEMORY, most=MOST_GPU_MEMORY)


def check_text(name: str, value: object) -> str:
    """`value`, if it is text that UTF-8 can encode."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        lone = f"U+{ord(value[error.start]):04X} at position {error.start}"
        raise ValueError(f"{name} must be Unicode text, got a lone surrogate, {lone}") from None
    return value


def check_prompts(value: list[Any] | tuple[Any, ...], name: str = "prompt") -> list[str]:
    """`value` as texts; an error names the text by its index."""
    return [check_text(f"{name}[{number}]", text) for number, text in enumerate(value)]


def check_ids(value: Iterable[Any], vocab_size: int, name: str = "token_ids") -> list[int]:
    """`value` as ids of a vocabulary; an error names the id by its index."""
    return [check_count(f"{name}[{n}]", token, least=0, most=vocab_size - 1) for n, token in enumerate(value)]
