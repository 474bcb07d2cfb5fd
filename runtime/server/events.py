"""Server-sent events: an answer that is told piece by piece, each as one line of JSON."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would hold events back
encoder = msgspec.json.Encoder()


class EventStream(StreamingResponse):
    """Sends events as they come, and closes their source at once when the client leaves.

    Args:
        first: The first event, and `events` those after it.
        seconds: How long a client may take to read all of them.
    """

    def __init__(self, first: bytes, events: AsyncGenerator[bytes], seconds: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers=HEADERS)
        self._first, self._events, self._seconds = first, events, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        async def tell(body: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        async with asyncio.timeout(self._seconds):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await tell(self._first)
            async for event in self._events:
                await tell(event)
            await tell(b"", more=False)


def event(body: msgspec.Struct) -> bytes:
    return b"data: " + encoder.encode(body) + b"\n\n"
