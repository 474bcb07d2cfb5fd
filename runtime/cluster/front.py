"""Front: takes requests, and passes each on to the replica that has read the beginning of its prompt before."""

from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from runtime.cluster.asgi import carried, read_body
from runtime.cluster.events import DiffersError
from runtime.cluster.requests import Asked
from runtime.cluster.told import Told

BUSY = "the cluster is busy: its queues are full; send it again"
TRIES = 3  # replicas that a request goes to before its client is told


class Front:
    """An ASGI application in a process of its own.

    Args:
        replicas: Ray's handle of the replicas.
        most: Bytes of a request's body.
        prefix: Characters of a prompt's beginning by which its replica is chosen; 0 takes the freer of two random ones.
    """

    def __init__(self, replicas: Any, most: int, prefix: int) -> None:
        self._replicas, self._most, self._prefix = replicas.options(method_name="answer", stream=True), most, prefix

    def __serve_build_asgi_app__(self) -> Starlette:
        return Starlette(routes=[Mount("/", app=self.relay)])

    async def relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; where its replica dies, to another one, which goes on with the answer."""
        asked, told = Asked(await read_body(receive, self._most)), Told(send)
        key = asked.beginning(self._prefix)
        replicas = self._replicas.options(session_id=key) if key else self._replicas
        for _ in range(TRIES):
            if await self._tried(replicas, carried(scope, asked.body), asked, told):
                return
            if told.begun and not asked.repeatable:
                break
            told.begin_again()
        await told.refuse(503, f"{TRIES} replicas ended with this request; send it again")

    async def _tried(self, replicas: Any, scope: dict[str, Any], asked: Asked, told: Told) -> bool:
        """Whether the client has been told how its request ended; not if a replica died before it was answered."""
        answer = replicas.remote(scope, asked.body)
        try:
            async for message in answer:
                await told(message)
        except BackPressureError:
            await told.refuse(429, BUSY)
        except (RayActorError, DeploymentUnavailableError, DiffersError):
            return False
        finally:
            answer.cancel()
        return True
