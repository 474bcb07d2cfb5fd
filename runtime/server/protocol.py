"""Protocol: uvicorn's HTTP over httptools, with a limit on the line and the headers of a request, which it lacks."""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST: Final = 65_536  # bytes of a request before its body


class Protocol(HttpToolsProtocol):
    """A connection; what begins a request with too much gets a 400, and is closed."""

    _head = 0  # bytes of a request whose headers are not complete yet

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._head > MOST and not self.transport.is_closing():
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MOST:
            raise ValueError  # httptools turns it into an error that uvicorn answers with a 400
        self._head = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        long = self._head > MOST
        super().send_400_response(f"A request's line and headers must be at most {MOST:,} bytes." if long else msg)
