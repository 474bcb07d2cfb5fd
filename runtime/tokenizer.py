"""Text to ids and back, with the bundle's own tokenizer.json."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from runtime.errors import BundleError


class Tokenizer:
    """The byte-level BPE of one bundle."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path} is not a tokenizer: {error}") from None
        self._tokenizer.no_truncation()  # a checkpoint may have saved the setting of its training
        self._tokenizer.no_padding()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; a character whose bytes are not all there becomes U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text
