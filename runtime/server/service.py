"""Service: what all endpoints of one server share."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import time
from typing import TypeVar

from starlette.requests import Request

from runtime.model import Model
from runtime.server.admission import Admission
from runtime.server.errors import ApiError, out_of_memory, shutting_down, timed_out
from runtime.server.keys import Keys
from runtime.server.metrics import Metrics
from runtime.server.settings import ServerSettings

T = TypeVar("T")


class Service:
    """A model, the limits within which it is served, and the counts of what it does.

    Attributes:
        name: The name under which clients ask for the model.
        inspecting: Held while the reference graph runs.
        endings: What ends a request's texts with an error, of each request that generates.
        fingerprint: Changes when the weights or their precision do, and with them what a seed gives.
    """

    def __init__(self, model: Model, settings: ServerSettings) -> None:
        self.model, self.settings = model, settings
        self.name = settings.served_name or model.bundle.folder.name
        self.fingerprint = f"fp_{model.bundle.manifest.source.weights_sha256[:10]}_{model.precision}"
        self.began = int(time())
        self.inspecting = asyncio.Lock()
        self.endings = set[Callable[[ApiError], None]]()
        self.keys = Keys(settings.api_key_env, settings.api_key_file)
        self.admission = Admission(model.loop.slots, settings.max_queue)
        self.metrics = Metrics(self.admission, slots=model.loop.slots, model=self.name)

    @asynccontextmanager
    async def admitted(self, texts: int) -> AsyncIterator[None]:
        """Let a request look inside so many texts, if there is room for them, for so long as it may."""
        try:
            with self.admission.admit(texts):
                async with asyncio.timeout(self.settings.timeout):
                    yield
        except TimeoutError:
            raise timed_out(self.settings.timeout) from None

    async def inspected(self, look: Callable[[], T]) -> T:
        """Run the reference graph in a thread, one at a time, as each run takes all threads.

        A client that leaves does not end its run: until it has ended by itself, no other begins.
        """
        await self.inspecting.acquire()
        running = asyncio.ensure_future(asyncio.to_thread(look))
        running.add_done_callback(self._inspected)
        return await asyncio.shield(running)

    def _inspected(self, run: asyncio.Future[T]) -> None:
        self.inspecting.release()
        if not run.cancelled():
            run.exception()  # asked for, so that asyncio does not report one whose client has left

    def check_model(self, name: str | None) -> None:
        if name not in (None, self.name):
            raise ApiError(
                404,
                f"the model {name[:100]!r} does not exist here; this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def end_all(self) -> None:
        """End what is still generated, as the server shuts down; clients are told so."""
        for end in self.endings:
            end(shutting_down())

    def told(self, error: Exception, request: str) -> ApiError:
        """What a client is told of an error; of one that nobody has foreseen, only the request's id."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, MemoryError):
            return out_of_memory()
        message = f"the server failed at this request; its log has why, under the id {request}"
        return ApiError(500, message, kind="server_error", code="internal_error")


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
