"""Scoring: log-probabilities and perplexity of a text, including texts longer than the context.

The method is that of the Hugging Face guide "Perplexity of fixed-length models": windows of one context, each a stride
after the last, in which only tokens count that no earlier window has scored. Here every token counts once; the guide
averages the means of its windows and weighs each window by one token less.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import log_softmax
from runtime.engine.loop import Loop
from runtime.engine.texts import ScoredText


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a model finds a text.

    Attributes:
        token_ids: The text's ids.
        logprobs: Each id's log-probability (natural logarithm), given those before it in its window; None for an id
            with none before it: the first, and with a stride of the whole context the first of each window.
        context: Tokens in a window.
        stride: Tokens from the start of one window to the start of the next.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    context: int
    stride: int

    @property
    def scored_tokens(self) -> int:
        """How many ids have a log-probability."""
        return sum(logprob is not None for logprob in self.logprobs)

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-probability; 1 is certainty."""
        return math.exp(-math.fsum(logprob for logprob in self.logprobs if logprob is not None) / self.scored_tokens)


def score_ids(
    loop: Loop, token_ids: Sequence[int], *, context: int, stride: int, progress: Callable[[int], object]
) -> tuple[float | None, ...]:
    """The log-probability of each id; `progress` is called with the number of tokens scored since its last call."""
    logprobs: list[float | None] = [None] * len(token_ids)
    for start, first, end in windows(len(token_ids), context, stride):
        text = ScoredText(token_ids[start:end], first - start)
        with loop.running(text):
            while not text.finished:
                loop.wait(text.is_ready)
                progress(text.news())
        logprobs[first:end] = text.result()
    return tuple(logprobs)


def windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(where a window starts, the first id that it scores, where it ends)."""
    scored = 0
    for start in range(0, length, stride):
        end = min(start + context, length)
        yield start, max(scored, start + 1), end
        scored = end
        if end == length:
            return


def target_logprobs(logits: NDArray[np.float32], targets: Sequence[int]) -> list[float]:
    """Each row's log-probability of its target, from logits [S, V]."""
    picked: list[float] = log_softmax(logits)[np.arange(len(targets)), targets].tolist()
    return picked
