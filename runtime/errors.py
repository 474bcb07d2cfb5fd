"""BundleError, and shell-quoted commands for error messages."""

import os
import shlex
from pathlib import PurePath


class BundleError(ValueError):
    """A bundle that is missing, damaged, made by a newer version, or not a bundle at all."""


def command(*words: str | PurePath) -> str:
    """A command line to paste into a shell: words quoted where needed; a path never looks like an option."""
    return " ".join(map(quote, words))


def quote(word: str | PurePath) -> str:
    """Quote one word; unprintable characters are escaped in bash's and zsh's $'…', so that it stays on one line."""
    text = str(word)
    if isinstance(word, PurePath) and text.startswith("-"):
        text = f"./{text}"
    return shlex.quote(text) if text.isprintable() else f"$'{''.join(map(spelled, text))}'"


def spelled(character: str) -> str:
    if character.isprintable():
        return f"\\{character}" if character in "\\'" else character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
