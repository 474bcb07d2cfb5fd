"""`POST /v1/embeddings`: hidden states of a text, pooled to one vector.

By default the mean over all tokens of the last layer's hidden states, after `ln_f`, scaled to length 1.
"""

import asyncio
import base64
from functools import partial

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from runtime.arrays import Floats
from runtime.server.answers import Embedding, EmbeddingAnswer, EmbeddingUsage
from runtime.server.asked import read_prompts
from runtime.server.bodies import EmbeddingBody
from runtime.server.errors import invalid, too_long
from runtime.server.requests import JSONAnswer, body_of, while_there
from runtime.server.service import Service, service_of


async def embeddings(request: Request) -> Response:
    """Embed texts, one after the other."""
    service = service_of(request)
    body = await body_of(request, EmbeddingBody)
    check(body, service)
    inputs = await asyncio.to_thread(read_prompts, body.input, "input", service.model, service.settings.max_prompts)
    check_lengths(inputs, service)
    return JSONAnswer(await while_there(request, embedded(service, body, inputs)))


def check(body: EmbeddingBody, service: Service) -> None:
    sizes = service.model.bundle.manifest.architecture
    if body.dimensions not in (None, sizes.n_embd):
        raise invalid(
            "dimensions", f"dimensions must be {sizes.n_embd:,}, this model's n_embd, got {body.dimensions:,}"
        )
    if body.layer is not None and body.layer > sizes.n_layer:
        raise invalid("layer", f"layer must be at most {sizes.n_layer}, this model's n_layer, got {body.layer:,}")


def check_lengths(inputs: list[list[int]], service: Service) -> None:
    context, most = service.model.prompting.context, service.admission.most
    if len(inputs) > most:
        raise invalid("input", f"input must be at most {most:,} texts on this server, got {len(inputs):,}")
    for number, ids in enumerate(inputs):
        if len(ids) > context:
            raise too_long("input", context, f"input[{number}] has {len(ids):,}")


async def embedded(service: Service, body: EmbeddingBody, inputs: list[list[int]]) -> EmbeddingAnswer:
    async with service.admitted(len(inputs)):
        vectors = [await service.inspected(partial(vector, service, body, ids)) for ids in inputs]
    tokens = sum(map(len, inputs))
    data = [Embedding("embedding", number, each) for number, each in enumerate(vectors)]
    return EmbeddingAnswer("list", data, service.name, EmbeddingUsage(tokens, tokens))


def vector(service: Service, body: EmbeddingBody, ids: list[int]) -> list[float] | str:
    layer = service.model.bundle.manifest.architecture.n_layer if body.layer is None else body.layer
    states = service.model.inspector.hidden_states(ids, layer)
    found = pooled(states, body.pooling or "mean", normalize=body.normalize is not False)
    if body.encoding_format == "base64":
        return base64.b64encode(found.astype("<f4").tobytes()).decode()
    return [float(value) for value in found]


def pooled(states: Floats, pooling: str, *, normalize: bool) -> Floats:
    """Hidden states [S, C] as one vector [C]; worked out in float64, as float32's errors grow with a text's length."""
    precise = states.astype(np.float64)
    found: NDArray[np.float64] = precise[-1] if pooling == "last" else precise.mean(axis=0)
    return (found / np.linalg.norm(found) if normalize else found).astype(np.float32)
