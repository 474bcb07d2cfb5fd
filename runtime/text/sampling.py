"""Sampling: repetition penalty, temperature, top-k, top-p, min-p, and a seeded draw.

Order and arithmetic are those of transformers.generation.logits_process (4.57), in float32: repetition penalty,
temperature, top-k, top-p, min-p. Filters drop ids instead of giving them a score of minus infinity, so that each works
on what the one before it left. The first of them is what a guide allows, which comes after the penalty and before the
temperature, as a processor of the caller's own does in transformers: so top-k and top-p choose among what may come.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Floats, Ids, softmax
from runtime.text.options import Settings

BLOCK = 256


class Sampler:
    """Chooses the ids of one text. It has its own random stream, so the rest of a batch cannot matter."""

    def __init__(self, settings: Settings, prompt_ids: Sequence[int]) -> None:
        self._settings = settings
        self._seen = [] if settings.repetition_penalty is None else list(prompt_ids)
        # NumPy's compatibility policy (NEP 19) fixes PCG64's stream, but not the methods of Generator.
        # None takes entropy from the system
        self._random = np.random.PCG64(settings.seed)

    def choose(self, logits: Floats, allowed: Ids | None = None) -> int:
        """The next id after logits [V], one of `allowed` [K] if given; it counts as seen from then on."""
        settings = self._settings
        scores = penalize(logits, self._seen, settings.repetition_penalty)
        token = self._draw(*keep_likely(scores, settings, allowed)) if settings.samples else likeliest(scores, allowed)
        if settings.repetition_penalty is not None:
            self._seen.append(token)
        return token

    def _draw(self, ids: Ids, scores: Floats) -> int:
        """Draw one of `ids`, each with the softmax probability of its score."""
        uniform = (self._random.random_raw() >> 11) * 2.0**-53  # [0, 1), from the 53 high bits
        return int(ids[inverse_cdf(softmax(scores), uniform)])


def penalize(logits: Floats, seen: Sequence[int], penalty: float | None) -> Floats:
    """Scores [V] in which the ids seen are less likely (more, if the penalty is below 1); a copy unless it is None."""
    if penalty is None:
        return logits
    ids, factor = np.unique(np.asarray(seen, np.int64)), np.float32(penalty)
    scores = logits.copy()
    scores[ids] = np.where(scores[ids] < 0, scores[ids] * factor, scores[ids] / factor)
    return scores


def likeliest(scores: Floats, allowed: Ids | None) -> int:
    """The id of the highest of `scores` [V], or of those of `allowed` [K]."""
    return int(scores.argmax() if allowed is None else allowed[scores[allowed].argmax()])


def keep_likely(scores: Floats, settings: Settings, allowed: Ids | None = None) -> tuple[Ids, Floats]:
    """The ids [K] that may come next, in ascending order, and their scores [K] after the temperature."""
    ids, scores = (np.arange(len(scores)), scores) if allowed is None else (allowed, scores[allowed])
    if settings.temperature is not None:
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


def inverse_cdf(probabilities: Floats, uniform: float) -> int:
    """The first index whose cumulative probability exceeds `uniform`; by blocks, as a cumsum of all is slow."""
    exact = probabilities.astype(np.float64)
    blocks = np.add.reduceat(exact, np.arange(0, len(exact), BLOCK)).cumsum()
    target = uniform * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
    start = block * BLOCK
    within = exact[start : start + BLOCK].cumsum() + (blocks[block - 1] if block else 0.0)
    target = min(target, np.nextafter(within[-1], 0))  # the two sums may round differently
    return start + int(np.searchsorted(within, target, side="right"))


FILTERS: dict[str, Callable[[Floats, Any], NDArray[np.bool_]]] = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
