"""Array types, softmax and log-softmax."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
F = TypeVar("F", bound=np.floating)


def softmax(logits: NDArray[F]) -> NDArray[F]:
    """Probabilities over the last axis, in the shape and the precision of `logits`."""
    powers: NDArray[F] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def log_softmax(logits: NDArray[F]) -> NDArray[F]:
    """Log-probabilities over the last axis, in the shape and the precision of `logits`."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logprobs: NDArray[F] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logprobs
