"""The callers' options, each checked once, at the door."""

MAX_THREADS = 1024


def check_max_new_tokens(value: object) -> int:
    return check_count("max_new_tokens", value)


def check_threads(value: object) -> int | None:
    return None if value is None else check_count("threads", value, most=MAX_THREADS)


def check_count(name: str, value: object, most: int | None = None) -> int:
    """`value` as an integer from 1 to `most`."""
    allowed = f"an integer of at least 1{f' and at most {most:,}' if most else ''}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    if value < 1 or (most and value > most):
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return value


def check_device(value: object) -> str:
    if value == "cuda":
        raise ValueError("device must be 'auto' or 'cpu', got 'cuda': CUDA needs a float16 decode graph, not made yet")
    if value not in ("auto", "cpu"):
        raise ValueError(f"device must be 'auto' or 'cpu', got {value!r}")
    return "cpu"


def check_prompt(value: object) -> str:
    """`value` as text that UTF-8 can carry."""
    if not isinstance(value, str):
        raise TypeError(f"prompt must be a string, got {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        lone = f"U+{ord(value[error.start]):04X} at position {error.start}"
        raise ValueError(f"prompt must be Unicode text, got a lone surrogate, {lone}") from None
    return value
