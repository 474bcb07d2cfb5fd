"""Load: requests that arrive at random times, or from callers that each wait for their answer; and what came of them.

A client of its own, as the machine that measures is the one that serves: it parses no more of a stream than it needs.
"""

import asyncio
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

from benchmarks.callers import text

PROMPT = 16, 128  # tokens
NEW_TOKENS = 64
EVENT, END = b"data: {", b"[DONE]"


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt that arrives `at` so many seconds after the begin, and is answered with `new_tokens` sampled ones."""

    at: float
    ids: list[int]
    seed: int
    new_tokens: int = NEW_TOKENS


@dataclass(slots=True)
class Outcome:
    """What a request got: the seconds from its arrival to each piece of its answer, and how many tokens those are."""

    status: int = 0
    arrived: float = 0.0
    pieces: list[float] = field(default_factory=list)
    tokens: int = 0


def arrivals(rate: float, seconds: float, encode: Any, seed: int) -> list[Request]:
    """As many a second as `rate`, on average: Poisson's process."""
    source, at, found = random.Random(seed), 0.0, list[Request]()
    while (at := at + source.expovariate(rate)) < seconds:
        found.append(request(source, at, encode))
    return found


def request(source: random.Random, at: float, encode: Any) -> Request:
    length = source.randint(*PROMPT)
    return Request(at, encode(text(source, length))[:length], source.randrange(2**31))


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go, and what its API calls sampling from all tokens past any end of text."""

    host: str
    port: int
    options: dict[str, Any]

    async def ask(self, asked: Request, began: float, *, stream: bool = True) -> Outcome:
        """Send one request, and note when each piece of its answer comes."""
        outcome = Outcome(arrived=perf_counter() - began)
        body = json.dumps(
            {"prompt": asked.ids, "max_tokens": asked.new_tokens, "seed": asked.seed, "stream": stream, **self.options}
        ).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=2**20)
        try:
            writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            outcome.status = int((await reader.readline()).split()[1])
            while line := await reader.readline():
                if line.startswith(EVENT) or (not stream and line.startswith(b"{")):
                    outcome.pieces.append(perf_counter() - began - outcome.arrived)
        finally:
            writer.close()
        outcome.tokens = asked.new_tokens if outcome.status == 200 else 0
        return outcome


async def open_loop(server: Server, requests: Sequence[Request]) -> list[Outcome]:
    """Send each request when it arrives, whatever has become of those before."""
    began = perf_counter()

    async def one(asked: Request) -> Outcome:
        await asyncio.sleep(asked.at - (perf_counter() - began))
        return await server.ask(asked, began)

    return await asyncio.gather(*map(one, requests))


async def closed_loop(
    server: Server, requests: Sequence[Request], callers: int, *, stream: bool = True
) -> list[Outcome]:
    """Callers that send the next request when they have the answer to their last."""
    began, left = perf_counter(), iter(requests)

    async def caller() -> list[Outcome]:
        return [await server.ask(asked, began, stream=stream) for asked in left]

    return [outcome for found in await asyncio.gather(*(caller() for _ in range(callers))) for outcome in found]


def speed(outcomes: Sequence[Outcome]) -> float:
    """Tokens a second, from the first arrival to the last piece."""
    done = [outcome for outcome in outcomes if outcome.tokens]
    seconds = max(each.arrived + each.pieces[-1] for each in done) - min(each.arrived for each in done)
    return sum(each.tokens for each in done) / seconds


def figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Requests and tokens a second, the share that was refused, and percentiles in milliseconds."""
    done = [outcome for outcome in outcomes if outcome.tokens]
    first = [1e3 * each.pieces[0] for each in done]
    between = [
        1e3 * (after - before) for each in done for before, after in zip(each.pieces, each.pieces[1:], strict=False)
    ]
    found = {"tokens/s": speed(outcomes), "refused": 1 - len(done) / len(outcomes)}
    found["requests/s"] = found["tokens/s"] / NEW_TOKENS
    for name, values in (("first token", first), ("between tokens", between)):
        cuts = statistics.quantiles(values, n=100) if len(values) > 1 else values * 99
        found |= {f"{name} p{share}": cuts[share - 1] for share in (50, 95, 99)}
    return found


def as_data(requests: Sequence[Request]) -> list[dict[str, Any]]:
    return [asdict(each) for each in requests]
