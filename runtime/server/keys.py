"""API keys: read from a variable and from a file, compared in constant time."""

import hmac
import os
from hashlib import sha256
from pathlib import Path

LEAST = 8  # characters; shorter ones can be guessed


class Keys:
    """The keys that requests may carry; without any, every request may.

    Args:
        variable: An environment variable that holds keys, separated by commas or spaces.
        file: One key a line; empty lines and those that begin with # are left out.

    Raises:
        ValueError: A source that was named holds no key, or one that is too short.
        OSError: The file cannot be read.
    """

    def __init__(self, variable: str | None, file: str | None) -> None:
        self._variable, self._file = variable, file
        self._digests = [digest(key) for key in self._read()]

    def reload(self) -> int:
        """Read the file again; how many keys there are. What it raises leaves the keys as they were."""
        self._digests = [digest(key) for key in self._read()]
        return len(self._digests)

    @property
    def needed(self) -> bool:
        return bool(self._digests)

    def accept(self, authorization: str | None) -> bool:
        """Whether a header such as `Bearer KEY` has one of the keys; takes equally long for every wrong one."""
        scheme, _, key = (authorization or "").partition(" ")
        given = digest(key.strip())
        found = [hmac.compare_digest(given, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(found)

    def _read(self) -> list[str]:
        keys = list[str]()
        if self._variable is not None:
            keys += checked(
                os.environ.get(self._variable, "").replace(",", " ").split(), f"the variable {self._variable}"
            )
        if self._file is not None:
            lines = (line.strip() for line in Path(self._file).read_text(encoding="utf-8").splitlines())
            keys += checked([line for line in lines if line and not line.startswith("#")], self._file)
        return keys


def checked(keys: list[str], source: str) -> list[str]:
    if not keys:
        raise ValueError(f"{source} must hold at least one API key, got none")
    for number, key in enumerate(keys, 1):
        if len(key) < LEAST or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"key {number} of {source} must be at least {LEAST} printable ASCII characters without spaces"
            )
    return keys


def digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", errors="surrogateescape")).digest()
