"""The callers' options, each checked once, at the door."""


def check_max_new_tokens(value: object) -> int:
    return check_count("max_new_tokens", value)


def check_threads(value: object) -> int | None:
    return None if value is None else check_count("threads", value)


def check_count(name: str, value: object) -> int:
    """`value` as an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer of at least 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value}")
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
