"""Labels for tokens: spaces visible, undrawable characters escaped, long ones shortened."""

import unicodedata
from collections.abc import Iterator
from itertools import groupby

from runtime.inside.plots.fonts import has_glyph
from runtime.text.tokenizer import escaped

MARKS = {" ": "·", "\n": "↵", "\t": "⇥"}
LONG_RUN = 4  # of one mark; longer runs are counted
STEPS = (1, 2, 5)  # times powers of ten, as readers count


def label(token: str, most: int) -> str:
    """`token` on one line, in at most `most` characters."""
    parts = list(visible(token))
    if len("".join(parts)) <= most:
        return "".join(parts)
    kept = ""
    for part in parts:  # an escape is kept whole or not at all
        if len(kept + part) >= most:
            break
        kept += part
    return f"{kept}…"


def visible(token: str) -> Iterator[str]:
    """The token's characters, each in a visible form."""
    for character, run in groupby(token):
        count = len(tuple(run))
        if character in MARKS and count > LONG_RUN:
            yield f"{MARKS[character]}×{count}"
        else:
            yield from [MARKS.get(character) or drawable(character)] * count


def drawable(character: str) -> str:
    """The character; escaped if it is one of MARKS, has no glyph, or would join or reorder its neighbours."""
    joins = unicodedata.category(character)[0] == "M"
    if character.isprintable() and has_glyph(character) and not joins and character not in MARKS.values():
        return character
    return escaped(character)


def label_step(fitting: float) -> int:
    """The smallest of 1, 2, 5, 10, 20 and so on that is at least `fitting`."""
    tens = 1
    while True:
        for step in STEPS:
            if step * tens >= fitting:
                return step * tens
        tens *= 10


def thinned(count: int, step: int) -> str:
    """A note on labels left out; empty if none are."""
    return "" if step == 1 else f"; of {counted(count)} every {ordinal(step)} is named, from the first"


def counted(count: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'}"


def ordinal(number: int) -> str:
    return f"{number}{'nd' if number == 2 else 'th'}"
