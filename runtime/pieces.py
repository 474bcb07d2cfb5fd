"""Tokens as pieces of text."""

from typing import NamedTuple, Protocol


class Pieces(Protocol):
    """Knows the text of an id."""

    def piece(self, token_id: int) -> str:
        """One id's text; bytes that make no character by themselves as \\xNN."""


class NextToken(NamedTuple):
    """What may come next."""

    text: str
    token_id: int
    probability: float


def escaped(character: str) -> str:
    r"""As Python writes it; from U+0080 up never as \xNN, which stands for a byte."""
    code = ord(character)
    return f"\\u{code:04x}" if 0x80 <= code < 0x100 else character.encode("unicode_escape").decode()
