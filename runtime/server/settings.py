"""ServerSettings: the limits of a server, each from a flag or from an environment variable."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from runtime.checks import check_count, check_flag, check_number

PREFIX = "GPT2_ONNX_"
TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What a server allows.

    Attributes:
        max_queue: Texts that may wait for a slot, 0 to 100,000; a request that would make them more gets a 429.
        max_body: Bytes of a request's body, 1,024 to 2**30.
        max_prompts: Prompts in a request, 1 to 1,024.
        max_n: `n` and `best_of` of a request, 1 to 128.
        max_tokens: Tokens that a request may ask for, for each text, 1 or more; by default what the context holds.
        max_logprobs: `logprobs` of a request, 0 to 100.
        timeout: Seconds from a request's arrival to the end of its answer, 0.1 to 86,400.
        served_name: The name under which clients ask for the model; by default that of the bundle's folder.
        api_key_env: An environment variable that holds the API keys, separated by commas or spaces.
        api_key_file: A file of API keys, one a line; it is read again on SIGHUP. Without either, no key is needed.
        log_prompts: Whether prompts are logged.

    Raises:
        ValueError, TypeError: A value out of its range.

    Example:
        >>> from runtime.server import ServerSettings
        >>> ServerSettings(max_queue=8).max_queue
        8
    """

    max_queue: int = 64
    max_body: int = 2**20
    max_prompts: int = 128
    max_n: int = 16
    max_tokens: int | None = None
    max_logprobs: int = 20
    timeout: float = 600.0
    served_name: str | None = None
    api_key_env: str | None = None
    api_key_file: str | None = None
    log_prompts: bool = False

    def __post_init__(self) -> None:
        check_count("max_queue", self.max_queue, least=0, most=100_000)
        check_count("max_body", self.max_body, least=1024, most=2**30)
        check_count("max_prompts", self.max_prompts, most=1024)
        check_count("max_n", self.max_n, most=128)
        check_count("max_logprobs", self.max_logprobs, least=0, most=100)
        check_number("timeout", self.timeout, "a number of seconds from 0.1 to 86,400", least=0.1, most=86_400)
        check_flag("log_prompts", self.log_prompts)
        if self.max_tokens is not None:
            check_count("max_tokens", self.max_tokens)
        for name in ("served_name", "api_key_env", "api_key_file"):
            if getattr(self, name) == "":  # of a variable that was meant to hold something
                raise ValueError(f"{name} must be a name, got ''")


def from_environment(environment: Mapping[str, str] = os.environ, **given: Any) -> ServerSettings:
    """The settings of variables such as GPT2_ONNX_MAX_QUEUE, but for those that are given; the rest has its default."""
    for field in fields(ServerSettings):
        text = environment.get(f"{PREFIX}{field.name.upper()}")
        if text is not None and field.name not in given:
            given[field.name] = parsed(field.name, str(field.type), text)
    return ServerSettings(**given)


def parsed(name: str, kind: str, text: str) -> Any:
    variable = f"{PREFIX}{name.upper()}"
    if "bool" in kind:
        if text.lower() not in TRUE + FALSE:
            raise ValueError(f"{variable} must be 1 or 0, got {text!r}")
        return text.lower() in TRUE
    if "str" in kind:
        return text
    try:
        return float(text) if "float" in kind else int(text)
    except ValueError:
        wanted = "a number" if "float" in kind else "an integer"
        raise ValueError(f"{variable} must be {wanted}, got {text!r}") from None
