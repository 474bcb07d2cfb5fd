"""Several completions of one prompt: how many are made, with which seeds or as beams, and which are given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runtime.checks import check_count, check_number
from runtime.text.beams import Beams, EarlyStopping
from runtime.text.completion import Completion
from runtime.text.options import GenerationOptions, Settings, check_settings

MOST, MOST_BEAMS = 1024, 64
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")
WITHOUT_BEAMS = (*SAMPLING, "stop", "logprobs", "prompt_logprobs", "draft", "regex", "json_schema", "grammar")


class CompleteOptions(GenerationOptions, total=False):
    """Options of calls that may make several completions of a prompt, beside those of every call.

    best_of: Make so many, at least `n`, and give those whose tokens are on average the most likely, best first.
    num_beams: Search for the likeliest text with so many beams, 1 to 64; 1 is greedy. With `n`, give the n best.
    length_penalty: -10 to 10 (default: 1); a beam's score is divided by its length to this power.
    early_stopping: True: end as soon as `num_beams` beams have ended; False (default): when it is unlikely that a
        better one comes; `"never"`: when none can.
    num_return_sequences: transformers' name for `n`.
    """

    best_of: int | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: EarlyStopping | None
    num_return_sequences: int | None


OWN = tuple(CompleteOptions.__annotations__.keys() - GenerationOptions.__annotations__.keys())


@dataclass(frozen=True, slots=True)
class Several:
    """`n` completions of each prompt, the best of `best_of`; `n` is None where one is asked for, and not a list."""

    n: int | None
    best_of: int
    asked: Settings
    beams: Beams | None = None

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
    """Raise TypeError or ValueError unless n and all of CompleteOptions are as documented, and make sense together."""
    own = {name: value for name, value in options.items() if name in OWN and value is not None}
    settings = check_settings({name: value for name, value in options.items() if name not in OWN})
    wanted = check_wanted(n, own.pop("num_return_sequences", None))
    if beams := check_beams(own, settings):
        if (wanted or 1) > beams.num_beams:
            raise ValueError(f"n must be at most num_beams, {beams.num_beams:,}, got {wanted:,}")
        return Several(wanted, 1, settings, beams)
    made = check_count("best_of", own["best_of"], most=MOST) if "best_of" in own else wanted or 1
    if made < (wanted or 1):
        raise ValueError(f"best_of must be at least n, {wanted:,}, got {made:,}")
    if made > 1 and not settings.samples:
        name = "best_of" if "best_of" in own else "n"
        raise ValueError(f"{name}={made:,} needs sampling, as greedy completions are all the same: give a temperature")
    return Several(wanted, made, settings)


def check_wanted(n: object, sequences: object) -> int | None:
    if n is not None and sequences is not None:
        raise ValueError("n and num_return_sequences are two names for one thing; give one of them")
    given = {"n": n, "num_return_sequences": sequences}
    counts = [check_count(name, value, most=MOST) for name, value in given.items() if value is not None]
    return counts[0] if counts else None


def check_beams(own: Mapping[str, Any], settings: Settings) -> Beams | None:
    """The beams asked for, if there are any to search."""
    num_beams = check_count("num_beams", own.get("num_beams", 1), most=MOST_BEAMS)
    penalty = check_number(
        "length_penalty", own.get("length_penalty", 1.0), "a number from -10 to 10", least=-10, most=10
    )
    stopping: Any = own.get("early_stopping", False)
    if not (isinstance(stopping, bool) or stopping == "never"):
        raise ValueError(f"early_stopping must be True, False or 'never', got {stopping!r}")
    if num_beams == 1:
        for name in ("length_penalty", "early_stopping"):
            if name in own:
                raise ValueError(f"{name} makes no sense without beams: give num_beams, 2 or more")
        return None
    for name in ("best_of", *WITHOUT_BEAMS):
        given = own.get(name) if name == "best_of" else getattr(settings, name)
        if given not in (None, ()) and (settings.samples or name not in SAMPLING):
            raise ValueError(f"{name} does not go with num_beams; leave one of them out")
    return Beams(num_beams=num_beams, length_penalty=penalty, early_stopping=stopping)


def mean_logprob(completion: Completion) -> float:
    """Of the tokens, before any penalty, temperature or filter."""
    logprobs = completion.logprobs or ()
    return sum(token.logprob for token in logprobs) / len(logprobs)
