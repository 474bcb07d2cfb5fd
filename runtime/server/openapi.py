"""The OpenAPI document, made from the endpoints and from the structs that read and write their bodies."""

import re
from copy import deepcopy
from http import HTTPStatus
from typing import Any

import msgspec

import runtime
from runtime.server.endpoints import ENDPOINTS, Endpoint
from runtime.server.errors import ErrorBody
from runtime.server.service import Service

PROMPTS = ("prompt", "input")
PARAMETER = re.compile(r"\{(\w+)\}")


def document(service: Service) -> dict[str, Any]:
    """The document of one server: its limits are in the fields' ranges."""
    structs = {each.body for each in ENDPOINTS} | {each.answer for each in ENDPOINTS} | {ErrorBody}
    kinds = sorted((kind for kind in structs if isinstance(kind, type)), key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    refs = dict(zip(kinds, schemas, strict=True))
    components = deepcopy(components)  # parts of it are constants of `bodies`
    for kind in {each.body for each in ENDPOINTS if each.body}:
        put_limits(components[kind.__name__]["properties"], service)
    paths: dict[str, Any] = {}
    for each in ENDPOINTS:
        paths.setdefault(each.path, {})[each.method.lower()] = operation(each, refs, service)
    return {
        "openapi": "3.1.0",
        "info": {"title": "gpt2-onnx", "version": runtime.__version__, "description": runtime.server.__doc__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def put_limits(fields: dict[str, Any], service: Service) -> None:
    """Write what this server and its model allow over what the struct does."""
    limits, sizes = service.settings, service.model.bundle.manifest.architecture
    most = {"n": limits.max_n, "best_of": limits.max_n, "logprobs": limits.max_logprobs, "layer": sizes.n_layer}
    most["max_tokens"] = min(limits.max_tokens or sizes.n_positions, sizes.n_positions)
    for name, field in fields.items():
        for kind in field.get("anyOf", [field]):
            if name in most and kind["type"] == "integer":
                kind["maximum"] = most[name]
            elif name == "dimensions" and kind["type"] == "integer":
                kind |= {"minimum": sizes.n_embd, "maximum": sizes.n_embd}
            elif name == "model" and kind["type"] == "string":
                kind["enum"] = [service.name]
            elif name in PROMPTS and kind["type"] == "array" and kind["items"]["type"] != "integer":
                kind["maxItems"] = limits.max_prompts
            put_vocabulary(kind, sizes.vocab_size)


def put_vocabulary(kind: dict[str, Any], vocab_size: int) -> None:
    """All integers in lists are ids."""
    if items := kind.get("items"):
        if items.get("type") == "integer":
            items |= {"minimum": 0, "maximum": vocab_size - 1}
        put_vocabulary(items, vocab_size)


def operation(each: Endpoint, refs: dict[Any, Any], service: Service) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": (each.run.__doc__ or "").splitlines()[0],
        "operationId": each.run.__name__,
        "responses": responses(each, refs),
    }
    if names := PARAMETER.findall(each.path):
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": [service.name]}}
            for name in names
        ]
    if each.body:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": refs[each.body]}}}
    if service.keys.needed and 401 in each.refusals:
        found["security"] = [{"key": []}]
    return found


def responses(each: Endpoint, refs: dict[Any, Any]) -> dict[str, Any]:
    if isinstance(each.answer, str):
        content: dict[str, Any] = {each.answer: {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": refs[each.answer]}}
    if each.streams:
        content["text/event-stream"] = {}  # OpenAPI 3.1 has no words for events; each one's data is the same JSON
    refused = {"application/json": {"schema": refs[ErrorBody]}}
    return {
        "200": {"description": "What was asked for.", "content": content},
        **{str(code): {"description": HTTPStatus(code).phrase, "content": refused} for code in sorted(each.refusals)},
    }
