"""Logs: a line for each request, for people or as JSON, without prompts unless they are asked for."""

import json
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from runtime.engine.texts import GeneratedText
from runtime.server.bodies import CompletionBody
from runtime.server.metrics import reason_of

logger = logging.getLogger("runtime.server")


class Record:
    """What is logged of a request.

    Attributes:
        name: The request's id, which its answer carries as `X-Request-Id`.
    """

    def __init__(self, name: str, *, prompts: bool) -> None:
        self.name = name
        self._prompts = prompts
        self._texts: Sequence[GeneratedText] = ()
        self._asked: dict[str, Any] = {}

    def asks(self, texts: Sequence[GeneratedText], body: CompletionBody) -> None:
        """Remember what is asked for; `texts` is filled later."""
        self._texts = texts
        self._asked = {"user": body.user} if body.user else {}
        self._asked |= {"prompt": body.prompt} if self._prompts else {}

    def fields(self) -> dict[str, Any]:
        if not self._texts:
            return self._asked
        return {
            "texts": len(self._texts),
            "prompt_tokens": sum(len(text.generation.prompt_ids) for text in self._texts),
            "cached_tokens": sum(text.reused or 0 for text in self._texts),
            "completion_tokens": sum(len(text.generation.token_ids) for text in self._texts),
            "finish_reasons": sorted(set(map(reason_of, self._texts))),
            **self._asked,
        }


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Lines(logging.Formatter):
    """The same as a line for people."""

    def format(self, record: logging.LogRecord) -> str:
        begun = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        told = " ".join(f"{name}={json.dumps(value)}" for name, value in getattr(record, "fields", {}).items())
        line = f"{begun} {record.levelname.lower():7} {record.getMessage()} {told}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(form: str) -> None:
    """Send the logs of this package and of uvicorn to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else Lines())
    for name in ("runtime", "uvicorn"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO if name == "runtime" else logging.WARNING)
