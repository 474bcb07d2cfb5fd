"""What every endpoint does with a request: read its body, run while the client is there, answer in JSON."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from runtime.server.bodies import Body, read_body
from runtime.server.errors import ApiError, invalid
from runtime.server.service import service_of

T = TypeVar("T")
S = TypeVar("S", bound=Body)
JSON = "application/json"
CLIENT_GONE = 499  # nginx's status of a request whose client has left; nobody reads it but the log
encoder = msgspec.json.Encoder()


class JSONAnswer(Response):
    """A body of JSON."""

    media_type = JSON

    def __init__(self, body: msgspec.Struct | dict[str, Any], status_code: int = 200, **options: Any) -> None:
        super().__init__(encoder.encode(body), status_code, **options)


def refusal(error: ApiError) -> Response:
    return JSONAnswer(error.body, error.status, headers=error.headers)


async def body_of(request: Request, kind: type[S]) -> S:
    """The body as an endpoint's fields.

    Raises:
        ApiError: It is too large, not JSON, not as declared, or asks for another model.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != JSON:  # which other sites' pages cannot send without asking
        raise ApiError(
            415, f"Content-Type must be {JSON}, got {media_type[:60] or 'none'}", code="unsupported_media_type"
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise ApiError(415, f"Content-Encoding must be identity, got {encoding[:60]}", code="unsupported_encoding")
    service = service_of(request)
    body = read_body(kind, await bytes_of(request, service.settings.max_body))
    service.check_model(body.model)
    return body


async def bytes_of(request: Request, most: int) -> bytes:
    too_large = ApiError(413, f"the body must be at most {most:,} bytes on this server", code="body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > most:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_large
    if not body:
        raise invalid(None, "the body must be a JSON object, got nothing")
    return bytes(body)


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """Run work until its client leaves, which cancels it: ClientDisconnect."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
