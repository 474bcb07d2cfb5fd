"""Clients that offer another protocol with their request, as Java's own does with each, are answered in HTTP/1.1."""

import json
import re
import socket
import time

import pytest

H2C = {
    "Connection": "Upgrade, HTTP2-Settings",
    "Upgrade": "h2c",
    "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
}
WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
BODY = {"prompt": "It was a bright cold day", "max_tokens": 5, "temperature": 0}
SENT = json.dumps(BODY).encode()


@pytest.fixture
def expected(server):
    return server.model.complete(BODY["prompt"], max_new_tokens=5).text


def head(path="/v1/completions", **headers):
    lines = {"Host": "x", "Content-Type": "application/json", **H2C, **headers}
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items()), "", ""]
    ).encode()


def said(live, *parts):
    """What a server says to bytes that come bit by bit, until it closes the connection."""
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.05)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
def test_a_body_is_read_whatever_is_offered(server, expected, offer):
    for _ in range(3):  # on one connection
        answer = server.client.post("/v1/completions", json=BODY, headers=offer)
        assert (answer.status_code, answer.http_version) == (200, "HTTP/1.1")
        assert answer.json()["choices"][0]["text"] == expected
    assert server.client.get("/v1/models", headers=offer).status_code == 200
    assert server.client.get("/v1/completions", headers=offer).json()["error"]["code"] == "method_not_allowed"


def test_a_stream_begins_whatever_is_offered(server, expected):
    answer = server.client.post("/v1/completions", json={**BODY, "stream": True}, headers=H2C)
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]) == expected


LENGTH = {"Content-Length": len(SENT)}
CHUNKS = b"5\r\n" + SENT[:5] + b"\r\n%x\r\n" % (len(SENT) - 5) + SENT[5:] + b"\r\n0\r\n\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        [head(**LENGTH), SENT + LAST],
        [head(**LENGTH)[:40], head(**LENGTH)[40:] + SENT[:7], SENT[7:], LAST],
        [head(**LENGTH) + SENT + LAST],
        [head(**{"Transfer-Encoding": "chunked"}) + CHUNKS + LAST],
        [head(**{"Transfer-Encoding": "chunked"}), CHUNKS[:9], CHUNKS[9:], LAST],
    ],
    ids=["the body by itself", "in pieces", "at once", "in chunks", "in chunks and pieces"],
)
def test_a_body_may_come_in_any_pieces(server, expected, parts):
    answer = said(server, *parts)
    assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)] == [200, 200]
    assert json.dumps(expected).encode() in answer


def test_a_thousand_offers_at_once(server):
    one = head(path="/nope", **{"Content-Length": 0})
    assert said(server, one * 1000 + LAST).count(b" 404 Not Found") == 1000


def test_an_offer_does_not_lift_a_limit(server):
    assert b"400 Bad Request" in said(server, head(**{"Content-Length": 5, "Transfer-Encoding": "chunked"}) + SENT)
    assert b"413 " in said(server, head(**{"Content-Length": 2**40}).replace(b"Upgrade,", b"close, Upgrade,"))
    assert b"must be at most 65,536 bytes" in said(server, head(**{"X-A": "y" * 70_000}))
