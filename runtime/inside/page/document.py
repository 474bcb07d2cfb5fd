"""Assembles the page from HTML, style, script and data, with a Content-Security-Policy that allows only these."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

FOLDER = Path(__file__).parent
SCRIPTS = ("unpack", "colours", "spelling", "picture", "overview", "head", "text", "lens_list", "lens_table", "page")


def document(contents: Mapping[str, Any], *, model: str) -> str:
    return Template(source("page.html")).substitute(
        model=html.escape(model),
        policy=policy(style(), script()),
        style=style(),
        script=script(),
        contents=as_json(contents),
    )


def style() -> str:
    return source("base.css") + source("page.css")


def script() -> str:
    return "\n".join(source(f"{name}.js") for name in SCRIPTS)


def source(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def policy(style: str, script: str) -> str:
    return f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; base-uri 'none'"


def digest(code: str) -> str:
    """The hash of `code`, as a Content-Security-Policy writes it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


def as_json(contents: Mapping[str, Any]) -> str:
    """JSON that HTML cannot take for markup."""
    return json.dumps(contents, separators=(",", ":")).replace("<", r"\u003c")
