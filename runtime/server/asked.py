"""What a request for completions asks of the engine: prompts as ids, and the options of each completion."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from runtime.checks import check_ids, check_text
from runtime.model import Model
from runtime.server.bodies import CompletionBody
from runtime.server.errors import ApiError, invalid, too_long
from runtime.server.settings import ServerSettings
from runtime.server.told import shortened, shown
from runtime.text.options import LEAST_TEMPERATURE, Settings
from runtime.text.several import Several, check_several

MAX_TOKENS = 16  # OpenAI's default
SAME_NAMES = (  # in OpenAI's API, or in other servers', as in `runtime`
    *("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "bad_words"),
    *("logprobs", "regex", "json_schema", "grammar"),
)
FORMS = "a text, a list of texts, a list of ids, or a list of such lists"
WORD = re.compile(r"\w+")
PYTHONS = re.compile(r"(\b(?:be|got) )(None|True|False)\b")
JSONS = {"None": "null", "True": "true", "False": "false"}
OTHER_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "eos_token_id": "stop_token_ids"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request in the engine's terms.

    Attributes:
        prompts: The ids of each.
        settings: Those of each completion of a prompt, of which `several` chooses `n`.
    """

    prompts: list[list[int]]
    settings: list[Settings]
    several: Several
    n: int
    echo: bool
    streams: bool
    tells_usage: bool


def understand(body: CompletionBody, model: Model, limits: ServerSettings) -> Asked:
    """Check a request against the model and the server's limits; ApiError names the parameter."""
    check_limits(body, limits)
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "stream_options makes sense only with stream, which must be true, got false")
    prompts = read_prompts(body.prompt, "prompt", model, limits.max_prompts)
    most = check_room(prompts, body.max_tokens, model.prompting.context)
    n = body.n or 1
    if (body.min_tokens or 0) > most:
        raise invalid("min_tokens", f"min_tokens must be at most max_tokens, {most:,}, got {body.min_tokens:,}")
    with refusals():
        several = check_several(*options(body, max(most, 1)))
        model.prompting.check_vocabulary(several.asked)
    settings = several.settings() if several.asked.samples else [several.asked] * n
    if body.stream and len(settings) > n:
        raise invalid(
            "best_of",
            f"best_of must be n, {n:,}, in a stream, as nothing is the best before it ends, got {len(settings):,}",
        )
    return Asked(
        prompts,
        [replace(each, max_new_tokens=most) for each in settings],
        several,
        n,
        echo=bool(body.echo),
        streams=bool(body.stream),
        tells_usage=bool(body.stream_options and body.stream_options.include_usage),
    )


def check_limits(body: CompletionBody, limits: ServerSettings) -> None:
    for name, most in (
        ("n", limits.max_n),
        ("best_of", limits.max_n),
        ("max_tokens", limits.max_tokens),
        ("logprobs", limits.max_logprobs),
    ):
        value = getattr(body, name)
        if value is not None and most is not None and value > most:
            raise invalid(name, f"{name} must be at most {most:,} on this server, got {value:,}")
    if body.temperature and body.temperature < LEAST_TEMPERATURE:
        allowed = f"0 (greedy) or a number from {LEAST_TEMPERATURE:g} to 2"
        raise invalid("temperature", f"temperature must be {allowed}, got {body.temperature}")
    if body.best_of is not None and body.best_of < (body.n or 1):
        raise invalid("best_of", f"best_of must be at least n, {body.n or 1:,}, got {body.best_of:,}")


def read_prompts(value: Any, name: str, model: Model, most: int) -> list[list[int]]:
    """Ids of each prompt: of a text, of each text of a list, or given as they are."""
    parts = value if isinstance(value, list) else [value]
    kinds = {type(part) for part in parts}
    if kinds == {int} and parts is value:
        return [ids_of(parts, name, model)]
    if kinds not in ({str}, {list}) or [] in parts or (kinds == {list} and parts is not value):
        raise invalid(name, f"{name} must be {FORMS}, got {shown(value)}")
    if len(parts) > most:
        raise invalid(name, f"{name} must be at most {most:,} prompts on this server, got {len(parts):,}")
    read = ids_of if kinds == {list} else encode
    return [read(part, f"{name}[{number}]" if parts is value else name, model) for number, part in enumerate(parts)]


def ids_of(ids: Sequence[int], name: str, model: Model) -> list[int]:
    with refusals(name):
        return check_ids(ids, model.bundle.manifest.architecture.vocab_size, name)


def encode(text: str, name: str, model: Model) -> list[int]:
    with refusals(name):
        return model.prompting.encode_any(check_text(name, text), name)


def check_room(prompts: Sequence[Sequence[int]], asked: int | None, context: int) -> int:
    """How many tokens to generate: as many as were asked for, if all prompts leave room for them."""
    longest = max(map(len, prompts))
    if asked is None:
        if longest >= context:
            raise too_long("prompt", context, f"the prompt has {longest:,} and leaves none to generate")
        return min(MAX_TOKENS, context - longest)
    if longest + asked > context:
        param = "prompt" if longest + min(asked, 1) > context else "max_tokens"
        raise too_long(param, context, f"the prompt has {longest:,}, and max_tokens asks for {asked:,} more")
    return asked


def options(body: CompletionBody, max_new_tokens: int) -> tuple[int | None, dict[str, Any]]:
    """`n` and the options of `Model.complete`. OpenAI's default is to sample at temperature 1."""
    given = {name: getattr(body, name) for name in SAME_NAMES}
    given["temperature"] = 1.0 if body.temperature is None else body.temperature
    given["max_new_tokens"] = max_new_tokens
    given["min_new_tokens"] = body.min_tokens
    given["eos_token_id"] = body.stop_token_ids
    given["stop"] = body.stop or None
    given["seed"] = None if body.seed is None else body.seed % 2**64
    given["top_k"] = body.top_k if body.top_k and body.top_k > 0 else None
    given["ignore_eos"] = bool(body.ignore_eos)
    given["prompt_logprobs"] = body.logprobs if body.echo else None
    sampled = given["temperature"] != 0
    return body.n if sampled else None, given | {"best_of": body.best_of if sampled else None}


@contextmanager
def refusals(param: str | None = None) -> Iterator[None]:
    """Turn what `runtime` finds wrong with an option into a refusal, under the name that the request has for it.

    Args:
        param: The parameter, or a part of it such as `prompt[1]`; by default the first that the message names.
    """
    try:
        yield
    except ApiError:
        raise
    except (ValueError, TypeError) as error:
        message = str(error)
        for ours, theirs in OTHER_NAMES.items():
            message = message.replace(ours, theirs)
        message = PYTHONS.sub(lambda found: found[1] + JSONS[found[2]], message)
        words = WORD.findall(param or message)
        name = next((word for word in words if param or word in CompletionBody.__struct_fields__), None)
        raise invalid(name, shortened(message, 400)) from None
    except ImportError as error:  # an extra that is not installed
        raise ApiError(501, str(error), kind="server_error", code="not_installed") from None
