"""Grammars that a text must follow, checked at the door: a regex, a JSON schema, or a Lark grammar, through llguidance.

A grammar may be a stranger's. Its source is bounded, llguidance's own limits bound the work of a step, and since its
compiler recurses as deep as the source does, it runs on a stack that is deep enough for the longest source.
"""

import json
import re
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from runtime.checks import check_text
from runtime.forks import tell_children

if TYPE_CHECKING:
    from llguidance import LLParserLimits

T = TypeVar("T")
WHERE = re.compile(r'^at 1\(8\): invalid regex ".*" \(in regex\): ')  # in the grammar that llguidance makes of a regex
MOST_BYTES = 32_768  # of a source; more would be a reason to ask who sent it
STACK = 2**27  # bytes: four times what the deepest nesting of so long a source took
MOST_LEXER_STATES = 50_000  # of 1 to 2 kB each
JSON_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}  # as json.dumps writes it


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a text must follow, checked.

    Attributes:
        option: The option that gave it: regex, json_schema or grammar.
        source: As llguidance takes it.
        shown: Its beginning, for messages.
    """

    option: str
    source: str
    shown: str


def check_regex(name: str, value: object) -> Grammar:
    allowed = "a regular expression that llguidance knows"
    pattern = check_text(name, value)
    check_size(name, pattern)
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:  # would escape the end that llguidance puts after it
        raise ValueError(f"{name} must be {allowed}: it ends with a lone backslash, got {quoted(pattern)}")
    return compiled(name, pattern, allowed, "regex")


def check_grammar(name: str, value: object) -> Grammar:
    rules = check_text(name, value)
    check_size(name, rules)
    return compiled(name, rules, "a grammar in llguidance's Lark syntax", "lark")


def check_json_schema(name: str, value: object) -> Grammar:
    if not isinstance(value, str | dict):
        raise TypeError(f"{name} must be a dictionary, or a string of JSON, got {type(value).__name__}")
    if isinstance(value, str):
        value = parsed(name, value)
    try:
        schema = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be a JSON object: {one_line(str(error))}, got {quoted(value)}") from None
    check_size(name, check_text(name, schema))
    return compiled(name, schema, "a JSON schema that llguidance knows", "json_schema")


def parsed(name: str, text: str) -> dict[str, Any]:
    check_size(name, check_text(name, text))
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be a JSON object: {one_line(str(error))}, got {quoted(text)}") from None
    if not isinstance(schema, dict):
        raise ValueError(f"{name} must be a JSON object, got {quoted(text)}")
    return schema


def check_size(name: str, source: str) -> None:
    size = len(source.encode("utf-8"))
    if not 1 <= size <= MOST_BYTES:
        raise ValueError(f"{name} must be 1 to {MOST_BYTES:,} bytes of UTF-8, got {size:,}")


def check_alone(grammars: Iterable[Grammar | None], *, ignore_eos: bool) -> None:
    """Raise ValueError unless a text follows one grammar at most, and may end where that does."""
    given = [grammar.option for grammar in grammars if grammar]
    if len(given) > 1:
        raise ValueError(f"a text follows one of regex, json_schema and grammar, got {' and '.join(given)}")
    if given and ignore_eos:
        raise ValueError(f"ignore_eos must be False with {given[0]}, as the text ends when it is whole, got True")


def compiled(name: str, source: str, allowed: str, kind: str) -> Grammar:
    """The grammar of a source that llguidance compiles; `kind` is llguidance's name of its syntax."""
    grammar, error = compile_source(kind, source)
    if error:
        raise ValueError(f"{name} must be {allowed}: {error}, got {quoted(source)}")
    return Grammar(name, grammar, quoted(source))


@lru_cache(maxsize=64)  # a list of requests often has one grammar
def compile_source(kind: str, source: str) -> tuple[str, str]:
    """llguidance's grammar of a source, and in one line what is wrong with it, if anything."""
    matcher = llguidance().LLMatcher
    styled = {"defaults": JSON_STYLE} if kind == "json_schema" else {}

    def compile_it() -> tuple[str, str]:
        grammar = getattr(matcher, f"grammar_from_{kind}")(source, **styled)
        return grammar, matcher.validate_grammar(grammar, limits=limits())

    try:
        grammar, error = deeply(compile_it)
    except ValueError as refused:
        grammar, error = "", str(refused)
    return grammar, reason(error)


def llguidance() -> ModuleType:
    """The module llguidance; ImportError that says how to install it."""
    try:
        import llguidance
    except ModuleNotFoundError as error:
        if error.name != "llguidance":  # it is installed, but broken
            raise
        remedy = 'install it: pip install "gpt2-onnx[guide]"'
        raise ImportError(f"regex, json_schema and grammar need llguidance; {remedy}") from error
    return llguidance


def limits() -> "LLParserLimits":
    """What a grammar may cost; llguidance's own defaults bound the work of a step to tens of milliseconds."""
    made: LLParserLimits = llguidance().LLParserLimits(max_lexer_states=MOST_LEXER_STATES, verbose_errors=False)
    return made


def reason(message: str) -> str:
    """What llguidance says is wrong, without its drawing of where: one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    return shortened(told or WHERE.sub("", lines[0] if lines else ""), 200)


def one_line(message: str) -> str:
    return " ".join(message.split())


def quoted(value: object) -> str:
    """The beginning of a value, for a message."""
    with suppress(RecursionError, ValueError):
        return shortened(repr(value), 80)
    return f"one that nests too deep ({type(value).__name__})"


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


class DeepStack:
    """Runs calls on a stack of `STACK` bytes, and turns what llguidance's Rust panics with into a ValueError."""

    def __init__(self) -> None:
        self._forked()
        tell_children(self, DeepStack._forked)

    def _forked(self) -> None:
        self._sizing = threading.Lock()  # the size counts for every thread that starts meanwhile

    def run(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises, in a thread of its own."""
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(call())
            except BaseException as error:  # a panic of Rust is no Exception
                errors.append(error)

        thread = threading.Thread(target=run, name="llguidance")
        with self._sizing:
            before = threading.stack_size(STACK)
            try:
                thread.start()
            finally:
                threading.stack_size(before)
        thread.join()
        for error in errors:
            raise error if isinstance(error, Exception) else ValueError(reason(str(error)) or type(error).__name__)
        return results[0]


deeply = DeepStack().run
