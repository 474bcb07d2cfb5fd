"""Log-probabilities of tokens: natural logarithms in float32, as PyTorch's log_softmax gives them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Floats, log_softmax


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model found one token, before any penalty, temperature or filter.

    Attributes:
        token_id: The token's id.
        logprob: Its log-probability (natural logarithm).
        top: The most likely ids and their log-probabilities, best first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprob(logits: Floats, token_id: int, count: int) -> TokenLogprob:
    """The log-probability of `token_id` under logits [V], and the `count` highest."""
    logprobs = log_softmax(logits)
    best = [(int(token), float(logprobs[token])) for token in highest(logprobs, count)]
    return TokenLogprob(token_id, float(logprobs[token_id]), tuple(best))


def highest(values: Floats, count: int) -> NDArray[np.int64]:
    """Indices of the `count` highest of `values` [V], highest first; among equal ones, the lowest index first."""
    if count == 0:
        return np.empty(0, np.int64)
    candidates = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return candidates[np.lexsort((candidates, -values[candidates]))][:count]
