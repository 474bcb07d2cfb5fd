"""Several completions of one prompt: how many are made, with which seeds, and which are given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runtime.checks import check_count
from runtime.text.completion import Completion
from runtime.text.options import GenerationOptions, Settings, check_settings

MOST = 1024


class CompleteOptions(GenerationOptions, total=False):
    """Options of calls that may make several completions of a prompt, beside those of every call.

    best_of: Make so many, at least `n`, and give those whose tokens are on average the most likely, best first.
    """

    best_of: int | None


@dataclass(frozen=True, slots=True)
class Several:
    """`n` completions of each prompt, the best of `best_of`; `n` is None where one is asked for, and not a list."""

    n: int | None
    best_of: int
    asked: Settings

    def settings(self) -> list[Settings]:
        """Those of each completion: the first has the caller's seed, the others have seeds drawn from it.

        To choose among them, their tokens' log-probabilities are needed.
        """
        logprobs = 0 if self._chooses and self.asked.logprobs is None else self.asked.logprobs
        return [replace(self.asked, seed=seed, logprobs=logprobs) for seed in self._seeds()]

    @property
    def _chooses(self) -> bool:
        return self.best_of > (self.n or 1)

    def _seeds(self) -> list[int | None]:
        seed = self.asked.seed
        if seed is None or self.best_of == 1:
            return [seed] * self.best_of
        drawn = np.random.SeedSequence(seed).generate_state(self.best_of - 1, np.uint64)  # fixed by NumPy's NEP 19
        return [seed, *drawn.tolist()]

    def given(self, made: Sequence[Completion]) -> list[Completion]:
        """Those of one prompt that the caller gets: in the order they were made or, if some were chosen, best first."""
        if not self._chooses:
            return list(made)
        best = sorted(made, key=mean_logprob, reverse=True)[: self.n or 1]
        unasked = self.asked.logprobs is None
        return [replace(completion, logprobs=None) for completion in best] if unasked else best


def check_several(n: object, options: Mapping[str, Any]) -> Several:
    """Raise TypeError or ValueError unless n, best_of and all other options are as documented, and make sense."""
    settings = check_settings({name: value for name, value in options.items() if name != "best_of"})
    wanted = None if n is None else check_count("n", n, most=MOST)
    best_of = options.get("best_of")
    made = (wanted or 1) if best_of is None else check_count("best_of", best_of, most=MOST)
    if made < (wanted or 1):
        raise ValueError(f"best_of must be at least n, {wanted:,}, got {made:,}")
    if made > 1 and not settings.samples:
        name = "n" if best_of is None else "best_of"
        raise ValueError(f"{name}={made:,} needs sampling, as greedy completions are all the same: give a temperature")
    return Several(wanted, made, settings)


def mean_logprob(completion: Completion) -> float:
    """Of the tokens, before any penalty, temperature or filter."""
    logprobs = completion.logprobs or ()
    return sum(token.logprob for token in logprobs) / len(logprobs)
