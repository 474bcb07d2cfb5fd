"""ApiError, what a request can be refused with, and the form in which OpenAI's clients read it."""

from collections.abc import Mapping
from typing import Final

import msgspec

INVALID: Final = "invalid_request_error"


class ErrorDetail(msgspec.Struct):
    """What was wrong: in words, in which parameter, and as a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """A refusal: a status and OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        kind: str = INVALID,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(ErrorDetail(message, kind, param, code))
        self.headers = dict(headers or {})


def invalid(param: str | None, message: str, *, code: str | None = None) -> ApiError:
    """A request whose parameter is wrong; retrying it as it is makes no sense."""
    return ApiError(400, message, param=param, code=code)


def too_long(param: str, context: int, asked: str) -> ApiError:
    return invalid(
        param, f"This model's maximum context length is {context:,} tokens; {asked}", code="context_length_exceeded"
    )


def overloaded(status: int, message: str, retry_after: int, *, kind: str, code: str) -> ApiError:
    """A request that may be sent again after so many seconds."""
    return ApiError(status, message, kind=kind, code=code, headers={"Retry-After": str(retry_after)})


def out_of_memory() -> ApiError:
    message = "the server is out of memory for this request; others go on. Send it again later, or a shorter one"
    return overloaded(503, message, 5, kind="server_error", code="out_of_memory")


def shutting_down() -> ApiError:
    return overloaded(503, "the server is shutting down", 1, kind="server_error", code="shutting_down")


def timed_out(seconds: float) -> ApiError:
    return ApiError(504, f"the request took longer than the {seconds:g} s allowed", kind="server_error", code="timeout")
