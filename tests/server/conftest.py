"""A live server over a real socket, and the model that it serves."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

import runtime
from runtime.server import ServerSettings, create_app
from runtime.server.serving import Server, configured


@dataclass(frozen=True)
class Live:
    """A server that answers at `url`; `model` is what it serves."""

    url: str
    app: Starlette
    client: httpx.Client

    @property
    def model(self) -> runtime.Model:
        return self.app.state.service.model

    def complete(self, **body) -> httpx.Response:
        return self.client.post("/v1/completions", json=body)


@contextmanager
def live(app: Starlette) -> Iterator[Live]:
    """Serve an app from a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**14)  # so that who reads slowly is noticed early
    server = Server(configured(app, 10), app.state.service)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        with httpx.Client(base_url=url, timeout=60) as client:
            yield Live(url, app, client)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def model(bundle: Path) -> runtime.Model:
    return runtime.load(bundle, device="cpu", slots=8)


@pytest.fixture(scope="session")
def server(model: runtime.Model) -> Iterator[Live]:
    """A server with the default limits, which all tests share; none may leave anything running in it."""
    with live(create_app(model, ServerSettings(served_name="novelist"))) as found:
        yield found


@pytest.fixture
def serve(bundle: Path) -> Iterator[Callable[..., Live]]:
    """Make servers with limits of their own, over a model of their own."""
    with ExitStack() as stack:

        def make(*, slots: int = 2, **limits) -> Live:
            loaded = runtime.load(bundle, device="cpu", slots=slots)
            return stack.enter_context(live(create_app(loaded, ServerSettings(served_name="novelist", **limits))))

        yield make
