"""Replica: a model in a process of its own, and the server's own routes over it."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.types import Message

import runtime
from runtime.cluster.asgi import answered
from runtime.server import ServerSettings, create_app


class Replica:
    """What Ray makes as many of as are needed.

    Args:
        model: The bundle's folder.
        load: Options of `runtime.load`.
        limits: Options of `ServerSettings`.
        release: Another text makes Ray put new replicas in the place of all.
    """

    def __init__(self, model: str, load: Mapping[str, Any], limits: Mapping[str, Any], release: str = "") -> None:
        self.release, self._name = release, serve.get_replica_context().replica_id.unique_id
        self._app = create_app(runtime.load(model, **load), ServerSettings(**limits))

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """The messages of the server's answer to a request; cancelled, the request gives back its slots."""
        async for message in answered(self._app, scope, body):
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Replica"] = self._name
            yield message

    async def check_health(self) -> None:
        """Raise RuntimeError unless the server answers; Ray then makes another replica in its place."""
        scope = {"type": "http", "method": "GET", "path": "/healthz", "headers": [], "query_string": b""}
        async for message in self.answer(scope, b""):
            if message.get("status", 200) != 200:
                raise RuntimeError(f"/healthz answers {message['status']}")
