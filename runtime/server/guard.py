"""Guard: what stands around all endpoints. It names a request, asks for a key, counts, logs, and catches errors."""

import asyncio
import re
import secrets
from time import monotonic

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.errors import ApiError, shutting_down
from runtime.server.logs import Record, logger
from runtime.server.requests import CLIENT_GONE, refusal
from runtime.server.service import Service

OPEN = frozenset({"/", "/healthz", "/readyz", "/metrics", "/openapi.json"})  # need no key: they tell no text
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})  # asked so often that a log would hold nothing else
GIVEN_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Guard:
    """ASGI middleware around the endpoints of one service."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, headers, status = monotonic(), Headers(scope=scope), 0
        record = Record(name_of(headers), prompts=self._service.settings.log_prompts)
        scope.setdefault("state", {})["record"] = record

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = record.name
            await send(message)

        try:
            self._check_key(scope["path"], headers)
            await self._app(scope, receive, tell)
        except ClientDisconnect:
            status = CLIENT_GONE
        except asyncio.CancelledError:  # uvicorn cancels what takes longer than its grace; the log has a line of that
            if not self._service.admission.draining:
                raise
            if not status:
                await refusal(shutting_down())(scope, receive, tell)
        except Exception as error:
            told = self._service.told(error, record.name)
            if told.status == 500:
                logger.exception("request %s failed", record.name)
            if not status:
                await refusal(told)(scope, receive, tell)
        finally:
            self._note(scope, record, status or CLIENT_GONE, monotonic() - began)

    def _check_key(self, path: str, headers: Headers) -> None:
        keys = self._service.keys
        if keys.needed and path not in OPEN and not keys.accept(headers.get("authorization")):
            raise ApiError(
                401,
                "an API key is needed: send the header Authorization: Bearer KEY with one that this server knows",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _note(self, scope: Scope, record: Record, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._service.metrics.answered(route, status, seconds)
        if scope["path"] not in QUIET:
            fields = {"id": record.name, "status": status, "seconds": round(seconds, 4), **record.fields()}
            path = scope["path"].encode("unicode_escape").decode()[:200]
            logger.info("%s %s", scope["method"], path, extra={"fields": fields})


def name_of(headers: Headers) -> str:
    """The id that a client or a proxy gave, if it is fit for a log, else a new one."""
    given = headers.get("x-request-id", "")
    return given if GIVEN_NAME.fullmatch(given) else secrets.token_hex(12)
