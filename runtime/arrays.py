"""Array types, softmax and log-softmax."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
F = TypeVar("F", bound=np.floating)


def not_finite(found: float) -> str:
    """What is said of logits whose maximum is NaN or infinite."""
    return f"the model's logits must be finite, got {found}: are its weights damaged?"


def softmax(logits: NDArray[F]) -> NDArray[F]:
    """Probabilities over the last axis, in the shape and the precision of `logits`."""
    powers: NDArray[F] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def log_softmax(logits: NDArray[F]) -> NDArray[F]:
    """Log-probabilities over the last axis, in the shape and the precision of `logits`; ValueError if those are NaN."""
    largest = logits.max(axis=-1, keepdims=True)
    if not np.isfinite(largest).all():
        raise ValueError(not_finite(largest.max()))
    shifted = logits - largest
    logprobs: NDArray[F] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logprobs
