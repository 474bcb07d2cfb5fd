"""Told: what a client has been told of an answer, so that another replica can go on with it."""

import json

from starlette.datastructures import Headers
from starlette.types import Message, Send

from runtime.cluster.events import DATA, END, DiffersError, Events

EVENTS = "text/event-stream"


class Told:
    """Passes an answer's messages on: those of a stream as they come, all others once they are whole."""

    def __init__(self, send: Send) -> None:
        self._send, self._held, self._events = send, list[Message](), Events()
        self.begun = self.streams = False

    def begin_again(self) -> None:
        """Another replica gives the answer, from its beginning."""
        self._held.clear()
        self._events.begin_again()

    async def __call__(self, message: Message) -> None:
        """Pass a message on; DiffersError if it is of another answer than that which has begun."""
        if message["type"] == "http.response.start":
            self.streams = Headers(raw=message["headers"]).get("content-type", "").startswith(EVENTS)
            if not self.begun:
                self._held.append(message)
            elif not self.streams:  # the other replica refuses it
                raise DiffersError
            return
        if self.streams:
            message = {**message, "body": self._events.lacking(message.get("body", b""))}
        self._held.append(message)
        if self.streams or not message.get("more_body", False):
            self.begun = True
            while self._held:
                await self._send(self._held.pop(0))

    async def refuse(self, status: int, message: str) -> None:
        """Say in OpenAI's form why there is no answer, or no more of it, and that it may be had in a second."""
        error = as_error(message, status)
        if self.begun:  # the last event of a stream
            await self._send({"type": "http.response.body", "body": DATA + error + END})
            return
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": error})


def as_error(message: str, status: int) -> bytes:
    kind, code = ("rate_limit_error", "rate_limit_exceeded") if status == 429 else ("server_error", "replica_ended")
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
