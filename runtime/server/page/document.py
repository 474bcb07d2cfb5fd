"""Assembles the page from HTML, style and scripts, and says what a browser may do with it."""

import html
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from string import Template

from runtime.inside.page.document import as_json, digest
from runtime.inside.page.document import script as inside_script
from runtime.inside.page.document import source as inside_source
from runtime.inside.page.document import style as inside_style

FOLDER = Path(__file__).parent
SCRIPTS = ("events", "api", "pieces", "shading", "lines", "sheet", "choices", "settings", "inside", "page")


def document(model: str, limits: Mapping[str, int]) -> str:
    return Template(source("page.html")).substitute(
        model=html.escape(model), style=style(), script=script(), limits=as_json(limits)
    )


@cache
def style() -> str:
    return inside_source("base.css") + source("page.css")


@cache
def script() -> str:
    """The spelling of tokens, as the common style, is that of the page that looks inside."""
    return "\n".join([inside_source("spelling.js"), *(source(f"{name}.js") for name in SCRIPTS)])


def source(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def policy() -> str:
    """The page's Content-Security-Policy; a page that looks inside is opened by this one, and is bound by it too."""
    scripts = f"{digest(script())} {digest(inside_script())}"
    styles = f"{digest(style())} {digest(inside_style())}"
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
