"""Generation options: their ranges, their checks, and how they combine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

from runtime.checks import check_count, check_flag, check_number, check_text
from runtime.text.grammars import Grammar, check_alone, check_grammar, check_json_schema, check_regex

MAX_NEW_TOKENS = 64
MOST_SEED = 2**64 - 1
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-6, 1e6  # beyond these, float32 scores overflow, or no longer differ


class GenerationOptions(TypedDict, total=False):
    """Options of every call that generates text, all keyword-only; None means off.

    Any of `temperature`, `top_k`, `top_p`, `min_p` and `seed` turns sampling on, unless `temperature` is 0. Order and
    arithmetic are those of transformers' logits processors: repetition penalty, temperature, top-k, top-p, min-p.

    max_new_tokens: The most tokens to generate, 1 or more (default: 64); the end of the context ends a text too.
    temperature: Divides the logits: 0 is greedy, else 1e-6 to 1e6 (1 if another option turned sampling on).
    top_k: Keep the k most likely ids, 1 or more.
    top_p: Keep the most likely ids that make up this much probability, 0 to 1.
    min_p: Keep ids at least this likely relative to the most likely one, 0 to 1.
    repetition_penalty: 0.01 to 100; over 1 makes ids of the prompt and of the text so far less likely, greedy or not.
    seed: 0 to 2**64 - 1; the same seed gives the same text, whatever else is in the batch, so equal prompts get equal
        texts. By default each text gets a new one.
    stop: A text, or a list of texts: the completion ends before the first one that is complete.
    ignore_eos: Generate past `<|endoftext|>`, which is then text like any other (default: False).
    draft: Generate several tokens per run where they can be guessed. By default only greedy texts in fp32, whose
        tokens stay the same; True: always, and tokens nearly as likely may change places; False: never.
    logprobs: Give each token's log-probability and those of this many most likely ids, from 0 up.
    regex: The text matches this regular expression as a whole, in the syntax of Rust's `regex`, without lookarounds.
    json_schema: The text is JSON of this schema, a dictionary or a string of JSON.
    grammar: The text follows this grammar, in llguidance's variant of Lark's syntax. One of these three at most, of 1
        to 32,768 bytes; they need the extra `guide`. What does not fit is left out after the repetition penalty, and
        the filters work on the rest.
    """

    max_new_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | list[str] | tuple[str, ...] | None
    ignore_eos: bool
    logprobs: int | None
    draft: bool | None
    regex: str | None
    json_schema: str | dict[str, Any] | None
    grammar: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked GenerationOptions."""

    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
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


def check_settings(options: Mapping[str, Any]) -> Settings:
    """Raise TypeError or ValueError, naming option, range and value, unless every option is as documented."""
    for name in options:
        if name not in CHECKS:
            raise TypeError(f"there is no option {name!r}; the options are: {', '.join(CHECKS)}")
    never_off = {"max_new_tokens", "ignore_eos"}
    given = {name: value for name, value in options.items() if value is not None or name in never_off}
    settings = Settings(**{name: CHECKS[name](name, value) for name, value in given.items()})
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
    for stop in stops:
        if not check_text(name, stop):
            raise ValueError(f"{name} must be at least one character, got ''")
    return tuple(stops)


check_share = partial(check_number, allowed="a number from 0 to 1", least=0, most=1)
CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "max_new_tokens": check_count,
    "temperature": check_temperature,
    "top_k": check_count,
    "top_p": check_share,
    "min_p": check_share,
    "repetition_penalty": partial(check_number, allowed="a number from 0.01 to 100", least=0.01, most=100),
    "seed": partial(check_count, least=0, most=MOST_SEED),
    "stop": check_stop,
    "ignore_eos": check_flag,
    "logprobs": partial(check_count, least=0),
    "draft": check_flag,
    "regex": check_regex,
    "json_schema": check_json_schema,
    "grammar": check_grammar,
}
