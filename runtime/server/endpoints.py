"""The endpoints: where each is, what it takes, and what it answers. Routes and the OpenAPI document come from here."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from runtime.server import answers, bodies
from runtime.server.completions import completions
from runtime.server.embeddings import embeddings
from runtime.server.inside import inside
from runtime.server.page import page
from runtime.server.status import healthz, metrics, model, models, readyz
from runtime.server.tokens import detokenize, tokenize, tokenizer_info

BAD_BODY = (400, 401, 413, 415)
UNDER_PRESSURE = (404, 429, 500, 503, 504)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint.

    Attributes:
        answer: The body of a success, or its media type if that is not JSON.
        refusals: The statuses of its other answers, all of which are OpenAI's error object.
        streams: Whether a success may be a stream of events.
    """

    method: str
    path: str
    run: Callable[[Request], Awaitable[Response]]
    answer: type[msgspec.Struct] | str
    body: type[msgspec.Struct] | None = None
    refusals: tuple[int, ...] = ()
    streams: bool = False


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/completions",
        completions,
        answers.CompletionAnswer,
        bodies.CompletionBody,
        (*BAD_BODY, *UNDER_PRESSURE, 501),
        streams=True,
    ),
    Endpoint(
        "POST",
        "/v1/embeddings",
        embeddings,
        answers.EmbeddingAnswer,
        bodies.EmbeddingBody,
        (*BAD_BODY, *UNDER_PRESSURE),
    ),
    Endpoint("POST", "/inside", inside, "text/html", bodies.InsideBody, (*BAD_BODY, *UNDER_PRESSURE)),
    Endpoint("GET", "/v1/models", models, answers.ModelList, refusals=(401,)),
    Endpoint("GET", "/v1/models/{model}", model, answers.ModelCard, refusals=(401, 404)),
    Endpoint("POST", "/tokenize", tokenize, answers.Tokens, bodies.TokenizeBody, (*BAD_BODY, 404)),
    Endpoint("POST", "/detokenize", detokenize, answers.Detokenized, bodies.DetokenizeBody, (*BAD_BODY, 404)),
    Endpoint("GET", "/tokenizer_info", tokenizer_info, answers.TokenizerInfo, refusals=(401,)),
    Endpoint("GET", "/", page, "text/html"),
    Endpoint("GET", "/healthz", healthz, answers.Status),
    Endpoint("GET", "/readyz", readyz, answers.Status, refusals=(503,)),
    Endpoint("GET", "/metrics", metrics, "text/plain"),
)
