"""Protocol: uvicorn's HTTP over httptools, with what it lacks.

A request's line and headers have a limit, and an offer of another protocol is left unanswered, as RFC 9110 (7.8)
allows. httptools takes such a request's body for the other protocol's; Java's own client offers h2c with each request.
"""

from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST: Final = 65_536  # bytes of a request before its body
FRAMING: Final = (b"content-length", b"transfer-encoding")  # the headers that say where a body ends


class Protocol(HttpToolsProtocol):
    """A connection; what begins a request with too much gets a 400, and is closed."""

    _head = 0  # bytes of a request whose headers are not complete yet
    _again = False  # whether a parser is told what is known of a request already

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parser: Any = Parser(self)

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._head > MOST and not self.transport.is_closing():
            self.send_400_response("")

    def begin_body(self, parser: httptools.HttpRequestParser) -> None:
        """Let a new parser go on with the body of a request whose headers another has read."""
        lines = [name + b": " + value for name, value in self.headers if name in FRAMING]
        self._again = True
        parser.feed_data(b"\r\n".join([b"POST / HTTP/1.1", *lines, b"", b""]))
        self._again = False

    def on_message_begin(self) -> None:
        if not self._again:
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._again:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._again:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._again:
            return
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MOST:
            raise ValueError  # httptools turns it into an error that uvicorn answers with a 400
        self._head = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():  # else the body is still to come
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        long = self._head > MOST
        super().send_400_response(f"A request's line and headers must be at most {MOST:,} bytes." if long else msg)


class Parser:
    """httptools' parser; where it stops at an offer of another protocol, a new one goes on."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._renew()

    def _renew(self) -> None:
        self._parser = httptools.HttpRequestParser(self._protocol)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it
        self.get_method, self.get_http_version = self._parser.get_method, self._parser.get_http_version
        self.should_upgrade, self.should_keep_alive = self._parser.should_upgrade, self._parser.should_keep_alive

    def feed_data(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                self._renew()
                self._protocol.begin_body(self._parser)
                data = data[offer.args[0] :]
