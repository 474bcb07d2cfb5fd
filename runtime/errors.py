"""The one exception of our own, and the commands that messages give, to be pasted into a shell."""

import os
import shlex
from pathlib import PurePath


class BundleError(ValueError):
    """A bundle that is missing, damaged, made by a newer version, or not a bundle at all."""


def command(*words: str | PurePath) -> str:
    """The words of a command, each quoted where it must be; a path never looks like an option."""
    return " ".join(map(quote, words))


def quote(word: str | PurePath) -> str:
    """What is not to be seen is spelled out in bash's and zsh's $'…', so that it stays in one line."""
    text = str(word)
    if isinstance(word, PurePath) and text.startswith("-"):
        text = f"./{text}"
    return shlex.quote(text) if text.isprintable() else f"$'{''.join(map(spelled, text))}'"


def spelled(character: str) -> str:
    if character.isprintable():
        return f"\\{character}" if character in "\\'" else character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
