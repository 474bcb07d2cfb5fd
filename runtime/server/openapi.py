"""The OpenAPI document, made from the endpoints and from the structs that read and write their bodies."""

import re
from http import HTTPStatus
from typing import Any

import msgspec

import runtime
from runtime.server.endpoints import ENDPOINTS, Endpoint
from runtime.server.errors import ErrorBody
from runtime.server.service import Service

PARAMETER = re.compile(r"\{(\w+)\}")


def document(service: Service) -> dict[str, Any]:
    """The document of one server: its limits are in the fields' ranges."""
    structs = {each.body for each in ENDPOINTS} | {each.answer for each in ENDPOINTS} | {ErrorBody}
    kinds = sorted((kind for kind in structs if isinstance(kind, type)), key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    refs = dict(zip(kinds, schemas, strict=True))
    put_limits(components["CompletionBody"]["properties"], service)
    paths: dict[str, Any] = {}
    for each in ENDPOINTS:
        paths.setdefault(each.path, {})[each.method.lower()] = operation(each, refs, secured=service.keys.needed)
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
    """Write a server's own limits over those of the struct."""
    limits, context = service.settings, service.model.prompting.context
    most = {"n": limits.max_n, "best_of": limits.max_n, "logprobs": limits.max_logprobs}
    most["max_tokens"] = min(limits.max_tokens or context, context)
    for name, value in most.items():
        for kind in fields[name]["anyOf"]:
            if kind["type"] == "integer":
                kind["maximum"] = value


def operation(each: Endpoint, refs: dict[Any, Any], *, secured: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": (each.run.__doc__ or "").splitlines()[0],
        "operationId": each.run.__name__,
        "responses": responses(each, refs),
    }
    if names := PARAMETER.findall(each.path):
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if each.body:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": refs[each.body]}}}
    if secured and 401 in each.refusals:
        found["security"] = [{"key": []}]
    return found


def responses(each: Endpoint, refs: dict[Any, Any]) -> dict[str, Any]:
    if isinstance(each.answer, str):
        content: dict[str, Any] = {each.answer: {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": refs[each.answer]}}
    if each.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    refused = {"application/json": {"schema": refs[ErrorBody]}}
    return {
        "200": {"description": "What was asked for.", "content": content},
        **{str(code): {"description": HTTPStatus(code).phrase, "content": refused} for code in sorted(each.refusals)},
    }
