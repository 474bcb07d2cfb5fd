"""The endpoints that tell of the server itself: its model, whether it lives and takes requests, and its metrics."""

from starlette.requests import Request
from starlette.responses import Response

from runtime.server.answers import ModelCard, ModelList, Status
from runtime.server.errors import ApiError
from runtime.server.requests import JSONAnswer
from runtime.server.service import Service, service_of


async def models(request: Request) -> Response:
    """List the one model."""
    return JSONAnswer(ModelList("list", [card(service_of(request))]))


async def model(request: Request) -> Response:
    """Tell of a model by its name."""
    service = service_of(request)
    service.check_model(request.path_params["model"])
    return JSONAnswer(card(service))


def card(service: Service) -> ModelCard:
    return ModelCard(service.name, "model", service.began, "gpt2-onnx", service.model.prompting.context)


async def healthz(_: Request) -> Response:
    """Say that the process lives."""
    return JSONAnswer(Status("ok"))


async def readyz(request: Request) -> Response:
    """Say whether requests are taken; they are not once the server shuts down."""
    if service_of(request).admission.draining:
        raise ApiError(503, "the server is shutting down", kind="server_error", code="shutting_down")
    return JSONAnswer(Status("ok"))


async def metrics(request: Request) -> Response:
    """Tell all metrics in Prometheus' text format."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
