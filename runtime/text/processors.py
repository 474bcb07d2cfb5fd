"""What changes a text's logits before an id is chosen: biases, penalties, forbidden ids, and the caller's own function.

Their order is that of transformers.generation (4.57): logit_bias where its sequence_bias is, repetition_penalty,
bad_words, min_new_tokens, the caller's processors; after them temperature, top-k, top-p and min-p. OpenAI's
frequency_penalty and presence_penalty, which transformers lacks, follow the repetition penalty, as in vLLM.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.arrays import Floats
from runtime.text.options import Settings
from runtime.text.tokenizer import Tokenizer

BadWords = Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Biases:
    """What is added to the logits of some ids (OpenAI's logit_bias), as arrays: there may be one for each id."""

    token_ids: NDArray[np.int64]
    values: Floats

    @classmethod
    def of(cls, biases: Sequence[tuple[int, float]]) -> "Biases":
        given = dict(biases)
        return cls(np.array(list(given), np.int64), np.array(list(given.values()), np.float32))

    def add(self, logits: Floats) -> Floats:
        """Scores [V]; a copy unless there are none."""
        if not self.token_ids.size:
            return logits
        scores = logits.copy()
        scores[self.token_ids] += self.values
        return scores


class Processors:
    """Changes the logits of one text; `append` tells it each id that the text gains.

    Args:
        settings: The caller's options, checked.
        prompt_ids: At least one.
        eos_ids: Ids that end the text.
        bad_words: The ids of each word that must not come.
    """

    def __init__(
        self, settings: Settings, prompt_ids: Sequence[int], eos_ids: Collection[int] = (), bad_words: BadWords = ()
    ) -> None:
        self._settings = settings
        self._ids = list(prompt_ids)
        self._begin = len(self._ids)
        self._counts: Counter[int] = Counter()  # of the generated ids
        self._eos_ids = sorted(eos_ids)
        self._bad_words = bad_words
        self._biases = Biases.of(settings.logit_bias)

    def append(self, token: int) -> None:
        self._ids.append(token)
        self._counts[token] += 1

    def followed_by(self, token: int) -> "Processors":
        """Those of the text and one more id; these stay as they are."""
        other = copy(self)
        other._ids, other._counts = [*self._ids], self._counts.copy()
        other.append(token)
        return other

    def change(self, logits: Floats) -> Floats:
        """Scores [V] of logits [V], which stay as they are."""
        settings = self._settings
        scores = self._biases.add(logits)
        scores = penalize(scores, self._ids, settings.repetition_penalty)
        scores = penalize_counts(
            scores, self._counts, settings.frequency_penalty or 0.0, settings.presence_penalty or 0.0
        )
        scores = forbid(scores, [*ends_of(self._bad_words, self._ids), *self._ends_held_back()])
        if settings.logits_processor is not None:
            scores = changed(settings.logits_processor, self._ids, scores)
        return scores

    def _ends_held_back(self) -> Sequence[int]:
        generated = len(self._ids) - self._begin
        return self._eos_ids if generated < (self._settings.min_new_tokens or 0) else ()


def penalize(logits: Floats, seen: Sequence[int], penalty: float | None) -> Floats:
    """Scores [V] in which the ids seen are less likely (more, if the penalty is below 1); a copy unless it is None."""
    if penalty is None:
        return logits
    ids, factor = np.unique(np.asarray(seen, np.int64)), np.float32(penalty)
    scores = logits.copy()
    scores[ids] = np.where(scores[ids] < 0, scores[ids] * factor, scores[ids] / factor)
    return scores


def penalize_counts(logits: Floats, counts: Counter[int], frequency: float, presence: float) -> Floats:
    """Scores [V] less what OpenAI's penalties take off generated ids: count * frequency + presence; may be a copy."""
    if not counts or not (frequency or presence):
        return logits
    scores = logits.copy()
    times = np.array(list(counts.values()), np.float32)
    scores[list(counts)] -= times * np.float32(frequency) + np.float32(presence)
    return scores


def forbid(logits: Floats, token_ids: Collection[int]) -> Floats:
    """Scores [V] of minus infinity at some ids; a copy unless there are none."""
    if not token_ids:
        return logits
    scores = logits.copy()
    scores[list(token_ids)] = -np.inf
    return scores


def ends_of(words: BadWords, ids: Sequence[int]) -> list[int]:
    """The last ids of those words whose other ids are the last of `ids`."""
    return [word[-1] for word in words if len(word) == 1 or tuple(ids[1 - len(word) :]) == word[:-1]]


def bad_word_ids(words: Sequence[str], tokenizer: Tokenizer) -> BadWords:
    """The ids of words, each as it is and after a space, as GPT-2 has other ids for each."""
    spelled = [tokenizer.encode(form) for word in words for form in (word, f" {word.lstrip()}")]
    return sorted({tuple(ids) for ids in spelled})


def changed(processor: Callable[..., ArrayLike], ids: Sequence[int], scores: Floats) -> Floats:
    """What a caller's function makes of copies; a ValueError if those are not scores of all ids."""
    given = np.asarray(processor(np.array(ids, np.int64), scores.copy()))
    if given.shape != scores.shape or not np.issubdtype(given.dtype, np.floating):
        raise ValueError(
            f"logits_processor must return {len(scores):,} floating-point scores, one for each id, got an array of "
            f"{given.dtype} of shape {given.shape}"
        )
    return given.astype(np.float32)
