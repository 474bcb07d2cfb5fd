"""A live server over a real socket."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from starlette.applications import Starlette

import runtime
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
