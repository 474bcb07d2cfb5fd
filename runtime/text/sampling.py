"""Sampling: temperature, top-k, top-p, min-p, and a seeded draw.

Order and arithmetic are those of transformers.generation.logits_process (4.57), in float32. Filters drop ids instead of
giving them a score of minus infinity, so that each works on what the one before it left. The first of them is what a
guide allows, after all processors and before the temperature: so top-k and top-p choose among what may come.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Floats, Ids, not_finite, softmax
from runtime.text.options import Settings
from runtime.text.processors import BadWords, Processors

BLOCK = 256


class Scratch(threading.local):
    """Memory of a thread, kept from draw to draw.

    The allocator gives arrays of this size back to the system at once, which takes longer than all of the arithmetic.
    """

    def __init__(self) -> None:
        self._powers, self._probabilities = np.empty(0, np.float32), np.empty(0, np.float64)

    def softmax(self, scores: Floats) -> NDArray[np.float64]:
        """Probabilities [K] of scores [K], in float32's precision; the next ones take their place."""
        if len(scores) > len(self._powers):
            self._powers, self._probabilities = np.empty(len(scores), np.float32), np.empty(len(scores), np.float64)
        powers, probabilities = self._powers[: len(scores)], self._probabilities[: len(scores)]
        np.exp(np.subtract(scores, scores.max(), out=powers), out=powers)
        powers /= powers.sum()
        probabilities[:] = powers
        return probabilities


SCRATCH = Scratch()


class Sampler:
    """Chooses the ids of one text. It has its own random stream, so the rest of a batch cannot matter."""

    def __init__(
        self, settings: Settings, prompt_ids: Sequence[int], eos_ids: Collection[int] = (), bad_words: BadWords = ()
    ) -> None:
        self._settings = settings
        self._processors = Processors(settings, prompt_ids, eos_ids, bad_words) if settings.changes_logits else None
        # NumPy's compatibility policy (NEP 19) fixes PCG64's stream, but not the methods of Generator.
        # None takes entropy from the system
        self._random = np.random.PCG64(settings.seed)

    def choose(self, logits: Floats, allowed: Ids | None = None) -> int:
        """The next id after logits [V], one of `allowed` [K] if given; ValueError if none is left to choose from."""
        scores = self._processors.change(logits) if self._processors else logits
        if not np.isfinite((scores if allowed is None else scores[allowed]).max()):
            raise ValueError(reason_of_no_choice(logits, scores))
        settings = self._settings
        token = self._draw(*keep_likely(scores, settings, allowed)) if settings.samples else likeliest(scores, allowed)
        if self._processors:
            self._processors.append(token)
        return token

    def _draw(self, ids: Ids, scores: Floats) -> int:
        """Draw one of `ids`, each with the softmax probability of its score."""
        uniform = (self._random.random_raw() >> 11) * 2.0**-53  # [0, 1), from the 53 high bits
        return int(ids[inverse_cdf(SCRATCH.softmax(scores), uniform)])


def reason_of_no_choice(logits: Floats, scores: Floats) -> str:
    if not np.isfinite(logits.max()):
        return not_finite(logits.max())
    if np.isnan(scores.max()) or np.isposinf(scores.max()):
        return f"scores must be finite or minus infinity, got {scores.max()} from logits_processor"
    return "no id is left to choose from: what forbids ids leaves none of those that may come"


def likeliest(scores: Floats, allowed: Ids | None) -> int:
    """The id of the highest of `scores` [V], or of those of `allowed` [K]."""
    return int(scores.argmax() if allowed is None else allowed[scores[allowed].argmax()])


def keep_likely(scores: Floats, settings: Settings, allowed: Ids | None = None) -> tuple[Ids, Floats]:
    """The ids [K] that may come next, in ascending order, and their scores [K] after the temperature."""
    ids, scores = (all_ids(len(scores)), scores) if allowed is None else (allowed, scores[allowed])
    if settings.temperature not in (None, 1.0):
        scores = scores / np.float32(settings.temperature)
    for name, keep in FILTERS.items():
        if (value := getattr(settings, name)) is not None:
            kept = keep(scores, value)
            ids, scores = ids[kept], scores[kept]
    return ids, scores


def top_k(scores: Floats, k: int) -> NDArray[np.bool_]:
    """Which of `scores` [K] are as high as the k-th highest; ties stay."""
    k = min(k, len(scores))
    mask: NDArray[np.bool_] = scores >= np.partition(scores, -k)[-k]
    return mask


def top_p(scores: Floats, p: float) -> NDArray[np.bool_]:
    """Which of `scores` [K] stay when the least likely go, as long as those dropped make up at most 1 - p.

    Of equal scores at the border, the lowest ids go, as in a stable sort. Ids so unlikely that all together they cannot
    make up half of 1 - p are not sorted: with a trained model that is nearly all of them.
    """
    probabilities = softmax(scores)
    likely = probabilities > (1 - p) / (2 * len(scores))
    gone_before = probabilities[~likely].sum(dtype=np.float64)
    ascending = np.sort(probabilities[likely]).cumsum(dtype=np.float64)  # torch, too, accumulates in float64
    gone = int(((gone_before + ascending[:-1]).astype(np.float32) <= np.float32(1 - p)).sum())  # the best always stays
    border = np.partition(scores[likely], gone)[gone]
    mask: NDArray[np.bool_] = scores >= border
    still_to_go = gone - int((scores[likely] < border).sum())
    mask[np.flatnonzero(scores == border)[:still_to_go]] = False
    return mask


def min_p(scores: Floats, p: float) -> NDArray[np.bool_]:
    """Which of `scores` [K] are at least p times as likely as the most likely one."""
    probabilities = softmax(scores)
    highest = probabilities.max()
    mask: NDArray[np.bool_] = (probabilities >= np.float32(p) * highest) | (probabilities == highest)
    return mask


@lru_cache(maxsize=4)
def all_ids(count: int) -> Ids:
    ids = np.arange(count)
    ids.flags.writeable = False  # all texts have the same ones
    return ids


def inverse_cdf(exact: NDArray[np.float64], uniform: float) -> int:
    """The first index whose cumulative probability exceeds `uniform`; by blocks, as a cumsum of all is slow."""
    blocks = np.add.reduceat(exact, np.arange(0, len(exact), BLOCK)).cumsum()
    target = uniform * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
    start = block * BLOCK
    within = exact[start : start + BLOCK].cumsum() + (blocks[block - 1] if block else 0.0)
    target = min(target, np.nextafter(within[-1], 0))  # the two sums may round differently
    return start + int(np.searchsorted(within, target, side="right"))


FILTERS: dict[str, Callable[[Floats, Any], NDArray[np.bool_]]] = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
