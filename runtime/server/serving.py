"""Runs the server with uvicorn: SIGTERM and SIGINT end it in peace, SIGHUP reads the API keys again."""

import asyncio
import errno
import ipaddress
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from runtime.server.logs import logger
from runtime.server.protocol import Protocol
from runtime.server.service import Service

LAST = 1  # seconds after the grace, for clients to read that their texts have ended; then connections are cut off
KEEP_ALIVE = 75  # seconds; longer than proxies and clients keep a connection, so that none is closed under a request


def serve(app: Starlette, address: socket.socket, *, grace: float) -> None:
    """Serve until a signal ends it.

    Args:
        address: What `bound` gave.
        grace: Seconds that requests under way have to end after SIGTERM or SIGINT.

    Raises:
        RuntimeError: Another process listens there by now.
    """
    config = configured(app, grace)
    name, number = address.getsockname()[:2]
    with told_advice(name, number):
        address.listen(config.backlog)
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
    if not (service.keys.needed or is_loopback(name)):
        logger.warning(
            "whoever reaches %s:%d may use the server, as it has no API keys and listens beyond this machine",
            shown,
            number,
        )
    Server(config, service).run([address])


def configured(app: Starlette, grace: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(grace) + LAST,
    )


def bound(host: str, port: int) -> socket.socket:
    """An address that is this process's; connections are refused until `serve` listens there.

    Args:
        port: 0 takes a free one, which the log tells.

    Raises:
        RuntimeError: The address is not to be had.
    """
    if not host:  # all addresses, for the socket
        raise ValueError("host must be a name or an address, got ''")
    with told_advice(host, port):
        address = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            if os.name == "posix":  # not held up by connections that have ended; elsewhere it would take a port in use
                address.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address.family == socket.AF_INET6:
                address.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            address.bind((host, port))
        except BaseException:
            address.close()
            raise
    return address


@contextmanager
def told_advice(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RuntimeError(f"cannot listen at port {port} of {host}: {advice(error)}") from None


def advice(error: OSError) -> str:
    """Why an address is not to be had, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return "it is in use; end what listens there, or take another port (0 is any that is free)"
    if error.errno == errno.EACCES:
        return "this user may not; take a port from 1,024 on"
    if error.errno in (errno.EADDRNOTAVAIL, socket.EAI_NONAME, socket.EAI_AGAIN):
        return "this machine has no such address; take 127.0.0.1, or 0.0.0.0 for all that it has"
    return os.strerror(error.errno or 0)


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


@contextmanager
def end_at_once() -> Iterator[None]:
    """Let SIGTERM end the process, with exit code 0, until `serve` has handlers of its own.

    Process 1 of a container would not hear it without a handler. SIGHUP, which has nothing to read again yet, would
    end other processes.
    """

    def end(*_: object) -> None:
        sys.exit(0)

    before = signal.signal(signal.SIGTERM, end)
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_IGN) if sys.platform != "win32" else None
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if sys.platform != "win32":
            signal.signal(signal.SIGHUP, hung_up)


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
            grace = (self.config.timeout_graceful_shutdown or LAST) - LAST
            asyncio.get_running_loop().call_later(grace, self._service.end_all)
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
