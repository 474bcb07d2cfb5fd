"""Answers of an ASGI application, message by message: they cross from one process of a cluster to another."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive

CARRIED = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "client")
FRAMING = (b"content-length", b"transfer-encoding")


def carried(scope: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """What of a request's scope another process is told: the rest belongs to the server that took the request."""
    headers = [(name, value) for name, value in scope["headers"] if name not in FRAMING]
    headers += [(b"content-length", str(len(body)).encode())] if body else []
    return {name: scope[name] for name in CARRIED if name in scope} | {"headers": headers, "root_path": ""}


async def answered(app: ASGIApp, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
    """The messages of an application's answer; a caller that takes no more of them is a client that has left."""
    messages, gone = asyncio.Queue[Message | None](), asyncio.Event()

    async def run() -> None:
        try:
            await app(scope, receiving(body, gone), messages.put)
        finally:
            await messages.put(None)

    running = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
        await running
    finally:
        gone.set()
        await asyncio.wait([running])


def receiving(body: bytes, gone: asyncio.Event) -> Receive:
    """What an application receives: the body, and later that the client has left."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if parts:
            return parts.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


async def read_body(receive: Receive, most: int) -> bytes:
    """A request's body; of a longer one only so much that it is seen to be too long."""
    body = bytearray()
    while len(body) <= most:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body", False):
            break
    return bytes(body[: most + 1])
