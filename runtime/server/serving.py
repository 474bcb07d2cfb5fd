"""Runs the server with uvicorn: SIGTERM and SIGINT end it in peace, SIGHUP reads the API keys again."""

import asyncio
import math
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from runtime.server.logs import logger
from runtime.server.protocol import Protocol
from runtime.server.service import Service

KEEP_ALIVE = 75  # seconds; longer than proxies and clients keep a connection, so that none is closed under a request


def serve(app: Starlette, *, host: str, port: int, grace: float) -> None:
    """Serve until a signal ends it.

    Args:
        port: 0 takes a free one, which the log tells.
        grace: Seconds that requests under way have to end after SIGTERM or SIGINT.

    Raises:
        OSError: The address is not to be had.
    """
    config = configured(app, grace)
    sockets = [bound(config, host, port)]
    name, number = sockets[0].getsockname()[:2]
    shown = f"[{name}]" if ":" in name else name
    service: Service = app.state.service
    logger.info(
        "serving %s at http://%s:%d with %d slots%s",
        service.name,
        shown,
        number,
        service.admission.slots,
        "" if service.keys.needed else ", without API keys",
    )
    Server(config, service).run(sockets)


def configured(app: Starlette, grace: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(grace),
    )


def bound(config: uvicorn.Config, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=config.backlog)


class Server(uvicorn.Server):
    """uvicorn's server, with an exit code of 0 where a signal ends it."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        events = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            events.add_signal_handler(number, self._end, number)
        events.add_signal_handler(signal.SIGHUP, self._reload)
        yield

    def _end(self, number: int) -> None:
        """The first signal ends in peace; a second SIGINT at once."""
        if not self.should_exit:
            logger.info(
                "%s: no new requests; %d texts under way may end",
                signal.Signals(number).name,
                self._service.admission.under_way,
            )
        self._service.admission.draining = True
        self.handle_exit(number, None)

    def _reload(self) -> None:
        try:
            logger.info("SIGHUP: %d API keys", self._service.keys.reload())
        except (OSError, ValueError) as error:
            logger.error("SIGHUP: the API keys stay as they were: %s", error)
