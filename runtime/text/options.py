"""Generation options: their ranges, their checks, and how they combine."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.arrays import Floats
from runtime.checks import check_count, check_flag, check_number, check_text
from runtime.text.grammars import Grammar, check_alone, check_grammar, check_json_schema, check_regex

DIGITS = re.compile("[0-9]{1,18}")
MAX_NEW_TOKENS = 64
MOST_SEED = 2**64 - 1
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-6, 1e6  # beyond these, float32 scores overflow, or no longer differ


class GenerationOptions(TypedDict, total=False):
    """Options of every call that generates text, all keyword-only; None means off.

    Any of `temperature`, `top_k`, `top_p`, `min_p` and `seed` turns sampling on, unless `temperature` is 0. Arithmetic
    and order are those of transformers' logits processors: logit_bias, repetition_penalty, OpenAI's frequency_penalty
    and presence_penalty, bad_words, min_new_tokens, logits_processor, temperature, top_k, top_p, min_p.

    max_new_tokens: The most tokens to generate, 1 or more (default: 64); the end of the context ends a text too.
    min_new_tokens: The fewest tokens before an id may end the text, at most `max_new_tokens`; a stop ends it earlier.
    temperature: Divides the logits: 0 is greedy, else 1e-6 to 1e6 (1 if another option turned sampling on).
    top_k: Keep the k most likely ids, 1 or more.
    top_p: Keep the most likely ids that make up this much probability, 0 to 1.
    min_p: Keep ids at least this likely relative to the most likely one, 0 to 1.
    repetition_penalty: 0.01 to 100; over 1 makes ids of the prompt and of the text so far less likely, greedy or not.
    logit_bias: Added to the logits of some ids: a dictionary from ids to numbers from -100 to 100.
    presence_penalty: -2 to 2, taken off the logits of ids that were generated before, greedy or not.
    frequency_penalty: -2 to 2, taken off them as often as they were generated.
    bad_words: Texts that must not come, spelled in the tokens that each has alone and after a space.
    logits_processor: A function of all ids so far (int64, [T]) and the scores (float32, [V]) that gives new scores [V].
        It runs for each text and each token, in Python: slow. What it raises ends its own text, and reaches the caller.
    seed: 0 to 2**64 - 1; the same seed gives the same text, whatever else is in the batch, so equal prompts get equal
        texts. By default each text gets a new one.
    stop: A text, or a list of texts: the completion ends before the first one that is complete.
    ignore_eos: Generate past `<|endoftext|>`, which is then text like any other (default: False).
    eos_token_id: An id, or a list of ids, that end the text too, `ignore_eos` or not.
    draft: Generate several tokens per run where they can be guessed. By default only greedy texts in fp32, whose
        tokens stay the same; True: always, and tokens nearly as likely may change places; False: never.
    logprobs: Give each token's log-probability and those of this many most likely ids, from 0 up.
    prompt_logprobs: The same of the prompt's tokens.
    regex: The text matches this regular expression as a whole, in the syntax of Rust's `regex`, without lookarounds.
    json_schema: The text is JSON of this schema, a dictionary or a string of JSON.
    grammar: The text follows this grammar, in llguidance's variant of Lark's syntax. One of these three at most, of 1
        to 32,768 bytes; they need the extra `guide`. What does not fit is left out after `logits_processor`, and the
        filters work on the rest.
    """

    max_new_tokens: int
    min_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    presence_penalty: float | None
    frequency_penalty: float | None
    bad_words: list[str] | tuple[str, ...] | None
    logits_processor: Callable[[NDArray[np.int64], Floats], ArrayLike] | None
    seed: int | None
    stop: str | list[str] | tuple[str, ...] | None
    ignore_eos: bool
    eos_token_id: int | list[int] | tuple[int, ...] | None
    logprobs: int | None
    prompt_logprobs: int | None
    draft: bool | None
    regex: str | None
    json_schema: str | dict[str, Any] | None
    grammar: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked GenerationOptions."""

    max_new_tokens: int = MAX_NEW_TOKENS
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    bad_words: tuple[str, ...] = ()
    logits_processor: Callable[[NDArray[np.int64], Floats], ArrayLike] | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    eos_token_id: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    draft: bool | None = None
    regex: Grammar | None = None
    json_schema: Grammar | None = None
    grammar: Grammar | None = None

    @property
    def guided_by(self) -> Grammar | None:
        """The grammar that the text follows, if any."""
        return self.regex or self.json_schema or self.grammar

    @property
    def samples(self) -> bool:
        """Whether ids are drawn at random instead of taking the most likely one."""
        asked = (self.temperature, self.top_k, self.top_p, self.min_p, self.seed)
        return self.temperature != 0 and any(value is not None for value in asked)

    @property
    def changes_logits(self) -> bool:
        """Whether logits are changed before an id is chosen."""
        asked = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty, self.logits_processor)
        return any(value is not None for value in asked) or bool(
            self.logit_bias or self.bad_words or self.min_new_tokens
        )


def check_settings(options: Mapping[str, Any]) -> Settings:
    """Raise TypeError or ValueError, naming option, range and value, unless every option is as documented."""
    for name in options:
        if name not in CHECKS:
            raise TypeError(f"there is no option {name!r}; the options are: {', '.join(CHECKS)}")
    never_off = {"max_new_tokens", "ignore_eos"}
    given = {name: value for name, value in options.items() if value is not None or name in never_off}
    return check_together(Settings(**{name: CHECKS[name](name, value) for name, value in given.items()}))


def check_together(settings: Settings) -> Settings:
    """`settings`, if they make sense together."""
    fewest, most = settings.min_new_tokens or 0, settings.max_new_tokens
    if fewest > most:
        raise ValueError(f"min_new_tokens must be at most max_new_tokens, {most:,}, got {fewest:,}")
    if fewest and settings.ignore_eos and not settings.eos_token_id:
        raise ValueError("min_new_tokens makes no sense with ignore_eos, as no id ends the text; leave one of them out")
    check_alone((settings.regex, settings.json_schema, settings.grammar), ignore_eos=settings.ignore_eos)
    return settings


def check_temperature(name: str, value: object) -> float:
    allowed = f"0 (greedy) or a number from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}"
    temperature = check_number(name, value, allowed, least=0, most=MOST_TEMPERATURE)
    if 0 < temperature < LEAST_TEMPERATURE:
        raise ValueError(f"{name} must be {allowed}, got {temperature}")
    return temperature


def check_stop(name: str, value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list | tuple):
        raise TypeError(f"{name} must be a string, or a list of strings, got {type(value).__name__}")
    return check_texts(name, stops)


def check_bad_words(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} must be a list of strings, got {type(value).__name__}")
    return check_texts(name, value)


def check_texts(name: str, value: Sequence[Any]) -> tuple[str, ...]:
    for text in value:
        if not check_text(name, text):
            raise ValueError(f"{name} must be at least one character, got ''")
    return tuple(value)


def check_logit_bias(name: str, value: object) -> tuple[tuple[int, float], ...]:
    """Ids may be strings of digits, as JSON's keys are."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dictionary from ids to numbers, got {type(value).__name__}")
    ids = [int(key) if isinstance(key, str) and DIGITS.fullmatch(key) else key for key in value]
    found: dict[int, float] = {}
    for token, bias in zip(ids, value.values(), strict=True):
        checked = check_count(f"an id of {name}", token, least=0)
        if checked in found:
            raise ValueError(f"{name} must name each id once, got {checked} twice")
        found[checked] = check_bias(f"{name}[{token}]", bias)
    return tuple(found.items())


def check_eos_token_id(name: str, value: object) -> tuple[int, ...]:
    if isinstance(value, list | tuple):
        return tuple(check_count(f"{name}[{number}]", token, least=0) for number, token in enumerate(value))
    return (check_count(name, value, least=0),)


def check_callable(name: str, value: object) -> Callable[..., Any]:
    if not callable(value):
        raise TypeError(f"{name} must be a function of ids and scores, got {type(value).__name__}")
    return value


check_bias = partial(check_number, allowed="a number from -100 to 100", least=-100, most=100)
check_penalty = partial(check_number, allowed="a number from -2 to 2", least=-2, most=2)
check_share = partial(check_number, allowed="a number from 0 to 1", least=0, most=1)
CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "max_new_tokens": check_count,
    "min_new_tokens": partial(check_count, least=0),
    "temperature": check_temperature,
    "top_k": check_count,
    "top_p": check_share,
    "min_p": check_share,
    "repetition_penalty": partial(check_number, allowed="a number from 0.01 to 100", least=0.01, most=100),
    "logit_bias": check_logit_bias,
    "presence_penalty": check_penalty,
    "frequency_penalty": check_penalty,
    "bad_words": check_bad_words,
    "logits_processor": check_callable,
    "seed": partial(check_count, least=0, most=MOST_SEED),
    "stop": check_stop,
    "ignore_eos": check_flag,
    "eos_token_id": check_eos_token_id,
    "logprobs": partial(check_count, least=0),
    "prompt_logprobs": partial(check_count, least=0),
    "draft": check_flag,
    "regex": check_regex,
    "json_schema": check_json_schema,
    "grammar": check_grammar,
}
