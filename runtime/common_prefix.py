"""Where two lists of ids part."""

from collections.abc import Sequence


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids at the beginning are the same."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
