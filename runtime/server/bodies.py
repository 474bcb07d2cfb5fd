"""The bodies of requests: JSON read strictly, then checked against the fields that an endpoint has."""

import codecs
import json
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from runtime.checks import check_text
from runtime.server.errors import invalid
from runtime.server.told import named, shortened, told
from runtime.text.options import LEAST_TEMPERATURE

T = TypeVar("T", bound="Body")
MOST_DIGITS, LARGE = 40, 1e40  # of an integer; a whole number with a point is one up to here
MOST_ITEMS = 1024  # of lists that each step goes through: a text with more would hold the others up
INTEGER_64 = Meta(ge=-(2**63), le=2**63 - 1)

Texts = {"type": "array", "minItems": 1, "items": {"type": "string"}}
TokenId = Annotated[int, Meta(extra_json_schema={"minimum": 0})]  # the model's vocabulary has the last word
Ids = Annotated[list[TokenId], Meta(min_length=1)]
IdList = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
IdLists = {"type": "array", "minItems": 1, "items": IdList}
Prompt = Annotated[
    Any,
    Meta(
        description="A text, a list of texts, the ids of a text, or a list of lists of ids.",
        extra_json_schema={"anyOf": [{"type": "string"}, Texts, IdList, IdLists]},
    ),
]
TEMPERATURES = {"anyOf": [{"const": 0}, {"minimum": LEAST_TEMPERATURE}]}
Biases = Annotated[
    dict[str, Any],
    Meta(
        description="From ids, as strings of digits, to numbers from -100 to 100.",
        extra_json_schema={
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        },
    ),
]


class StreamOptions(Struct, forbid_unknown_fields=True):
    """What a stream tells beside its text."""

    include_usage: Annotated[bool, Meta(description="Send the counts of tokens before the end.")] = False


class Body(Struct, forbid_unknown_fields=True, kw_only=True):
    """What every body may have: the name of the model that is asked."""

    model: str | None = None


class CompletionBody(Body):
    """A request for completions: OpenAI's fields, and some that other servers have too."""

    prompt: Prompt
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2, extra_json_schema=TEMPERATURES)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Meta(ge=0)] | None = None
    echo: bool | None = None
    stop: (
        Annotated[str, Meta(min_length=1)]
        | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=16)]
        | None
    ) = None
    seed: Annotated[int, INTEGER_64] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    logit_bias: Biases | None = None
    suffix: Annotated[None, Meta(description="Not supported: GPT-2 was not trained to fill gaps.")] = None
    user: str | None = None
    top_k: Annotated[int, Meta(ge=-1, description="-1 and 0 keep all ids.")] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MOST_ITEMS)] | None = None
    bad_words: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=MOST_ITEMS)] | None = None
    regex: str | None = None
    json_schema: str | dict[str, Any] | None = None
    grammar: str | None = None


class EmbeddingBody(Body):
    """A request for embeddings: OpenAI's fields, and which hidden states are pooled how."""

    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, description="Only the model's own n_embd.")] | None = None
    user: str | None = None
    layer: Annotated[int, Meta(ge=0, description="0 is the embedding, n_layer (default) the last.")] | None = None
    pooling: Literal["mean", "last"] | None = None
    normalize: bool | None = None


class TokenizeBody(Body):
    """A text to turn into ids."""

    prompt: str
    add_special_tokens: Annotated[bool, Meta(description="GPT-2 adds none, either way.")] = False
    return_token_strs: bool = False


class DetokenizeBody(Body):
    """Ids to turn into a text."""

    tokens: list[TokenId]


class InsideBody(Body):
    """A text to look inside, or its ids."""

    prompt: str | Ids


def read_body(kind: type[T], body: bytes) -> T:
    """A body as an endpoint's fields; ApiError with the parameter's name unless it is as declared."""
    value = read_json(body)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        param, message = told(str(error), value, kind)
        raise invalid(param, message) from None


def read_json(body: bytes) -> Any:
    """JSON as RFC 8259 has it: UTF-8, no NaN, and no key twice, which programs read in different ways."""
    if body.startswith(codecs.BOM_UTF8):
        raise invalid(None, "the body must be UTF-8 without a byte order mark")
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=refuse_constant,
            parse_float=number,
            parse_int=integer,
        )
    except UnicodeDecodeError as error:
        raise invalid(None, f"the body must be UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise invalid(
            None, f"the body must be JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise invalid(None, "the body must not be nested this deep") from None
    except ValueError as error:
        raise invalid(None, f"the body must be JSON: {error}") from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    for key in found:
        check_key(key)
    if len(found) < len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise invalid(named(twice), f"{named(twice)} must be given once, got it twice")
    return found


def check_key(key: str) -> None:
    try:
        check_text("a name", key)
    except ValueError as error:
        raise invalid(None, str(error)) from None


def refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def number(text: str) -> float | int:
    """A number with a point; a whole one counts as an integer, as in JSON Schema."""
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{shortened(text)} is too large a number")
    return int(value) if value.is_integer() and abs(value) < LARGE else value


def integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{shortened(text)} is too large an integer")
    return int(text)
