"""`POST /inside`: the page that looks inside a text, for a browser to show."""

import asyncio

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from runtime.inside.inspection import inspect_ids
from runtime.inside.lens import lens_ids
from runtime.inside.page import make_page
from runtime.model import Model
from runtime.server.asked import encode, ids_of
from runtime.server.bodies import InsideBody
from runtime.server.errors import invalid
from runtime.server.requests import body_of, while_there
from runtime.server.service import Service, service_of

MOST = 256  # tokens; the page grows with their square, to 5 MB for GPT-2 small
CHOICES = 5  # likeliest tokens of each layer
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


async def inside(request: Request) -> Response:
    """Look inside a text: its attention maps and its lens, as an HTML page."""
    service = service_of(request)
    body = await body_of(request, InsideBody)
    ids = check_length(await asyncio.to_thread(read, body, service.model), most_tokens(service.model))
    return HTMLResponse(await while_there(request, looked_at(service, ids)), headers=HEADERS)


def most_tokens(model: Model) -> int:
    return min(MOST, model.prompting.context)


def read(body: InsideBody, model: Model) -> list[int]:
    if isinstance(body.prompt, str):
        return encode(body.prompt, "prompt", model)
    return ids_of(body.prompt, "prompt", model)


def check_length(ids: list[int], most: int) -> list[int]:
    if len(ids) > most:
        raise invalid("prompt", f"prompt must be at most {most:,} tokens to look inside, got {len(ids):,}")
    return ids


async def looked_at(service: Service, ids: list[int]) -> str:
    async with service.admitted(1):
        return await service.inspected(lambda: look(service.model, ids, service.name))


def look(model: Model, ids: list[int], name: str) -> str:
    """The page of ids: those of the end of a long text may begin in the midst of a character."""
    inspector, pieces, sizes = model.inspector, model.prompting.tokenizer, model.bundle.manifest.architecture
    reference, layers = inspector.reference(), range(sizes.n_layer)
    seen = inspect_ids(reference, pieces, ids, sizes, outputs=["attentions"], layers=layers)
    lens = lens_ids(reference, inspector.lens_graph(), pieces, ids, sizes, k=CHOICES, progress=lambda _: None)
    return make_page(seen, lens, model=name)
