"""create_app: the server as an ASGI application, for uvicorn and others."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from runtime.model import Model
from runtime.server.endpoints import ENDPOINTS
from runtime.server.errors import ApiError
from runtime.server.guard import Guard
from runtime.server.loading import load_options, load_to_serve
from runtime.server.openapi import document
from runtime.server.requests import JSONAnswer, refusal
from runtime.server.service import Service
from runtime.server.settings import ServerSettings, from_environment
from runtime.server.told import named


def create_app(
    model: Model | str | os.PathLike[str] | None = None, settings: ServerSettings | None = None
) -> Starlette:
    """The server as an ASGI application.

    Args:
        model: A loaded model, or a bundle's folder; by default the one that `runtime.load` finds. It is loaded with
            what the variables GPT2_ONNX_PRECISION, _DEVICE, _CACHE, _THREADS and _SLOTS say.
        settings: The limits; by default those of variables such as `GPT2_ONNX_MAX_QUEUE`.

    Raises:
        BundleError: The bundle is missing, damaged, or not a bundle.
        ValueError: A setting out of its range, or a source of API keys without one.

    Example:
        >>> import runtime.server
        >>> from starlette.testclient import TestClient
        >>> app = runtime.server.create_app(model)
        >>> TestClient(app).get("/v1/models").json()["data"][0]["object"]
        'model'
    """
    settings = settings or from_environment()
    loaded = model if isinstance(model, Model) else load_to_serve(model, **load_options())
    service = Service(loaded, settings)
    routes = [Route(each.path, each.run, methods=[each.method]) for each in ENDPOINTS]
    app = Starlette(
        routes=[*routes, Route("/openapi.json", openapi, methods=["GET"])],
        middleware=[Middleware(Guard, service=service)],
        exception_handlers={ApiError: on_refusal, HTTPException: on_no_route},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def openapi(request: Request) -> Response:
    """Describe all endpoints."""
    return JSONAnswer(document(request.app.state.service))


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.service.admission.draining = False
    yield
    app.state.service.admission.draining = True


async def on_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return refusal(error)


async def on_no_route(request: Request, error: Exception) -> Response:
    """Paths and methods that the server does not have, in OpenAI's form."""
    assert isinstance(error, HTTPException)
    asked = f"{request.method[:20]} {named(request.scope['path'])}"  # its URL would need a Host that makes sense
    if error.status_code == 405:
        allowed = " or ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        message, code = f"{asked} is not possible; the method must be {allowed}", "method_not_allowed"
    else:
        message, code = f"there is no {asked}; /openapi.json lists what there is", "unknown_url"
    return refusal(ApiError(error.status_code, message, code=code, headers=error.headers))
