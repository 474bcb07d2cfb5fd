"""The tokenizer: text to ids and back with the bundle's tokenizer.json, and incremental decoding."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import tokenizers

from runtime.bundle.json_files import parse_object, read_bounded
from runtime.bundle.tokenizer_parts import bounds_for, check_tokenizer
from runtime.errors import BundleError
from runtime.exits import native

MOST_IDS = 2**18  # where nobody says how many there are
LONGEST_REASON = 500  # characters
END = "\0end\0"  # no tokenizer has it, and no text
BYTE = re.compile("<0x[0-9A-F]{2}>")
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(0x100) if byte not in PRINTABLE]
# GPT-2's alphabet: a byte is the character with its number, or one from 256 up if that character is not printable
BYTES = {chr(byte): byte for byte in PRINTABLE} | {chr(0x100 + n): byte for n, byte in enumerate(OTHERS)}


class Tokenizer:
    """The tokenizer of one bundle, mostly a byte-level BPE.

    Args:
        vocab_size: How many ids there are; by default as many as the file has.
    """

    def __init__(self, path: Path, vocab_size: int | None = None) -> None:
        self._path = path
        with self._errors("is not a tokenizer"):
            self._tokenizer = read_tokenizer(path, vocab_size)
        self._tokenizer.no_truncation()  # a checkpoint may have saved its training setting
        self._tokenizer.no_padding()
        self.start = self.encode("")  # ids that a template in tokenizer.json puts before every text
        self.joins = isinstance(self._tokenizer.decoder, tokenizers.decoders.ByteLevel)

    def with_end(self) -> tuple[str, int]:
        """What tokenizer.json would say of it with one more special token, and the id of that one."""
        longer = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        longer.add_special_tokens([END])
        return longer.to_str(), longer.token_to_id(END)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; other threads run meanwhile, which `encode` of the library does not let them."""
        with native(), self._errors("cannot encode a text"):
            (encoding,) = self._tokenizer.encode_batch_fast([text])
        ids: list[int] = encoding.ids
        return ids

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Say the library's errors, which are bare Exceptions and panics, in one line that names the file."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BundleError(f"{self._path} {what}: {reason[:LONGEST_REASON]}") from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; a character with missing bytes becomes U+FFFD."""
        with self._errors("cannot decode ids"):
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def decode_after_start(self, ids: Sequence[int]) -> str:
        """The text that `encode` would turn into `ids`: without the ids that begin every text."""
        begun = list(ids[: len(self.start)]) == self.start
        return self.decode(ids[len(self.start) :] if begun else ids)

    def piece(self, token_id: int) -> str:
        """One id's text; bytes that make no character by themselves as \\xNN."""
        token = self._tokenizer.id_to_token(token_id) or ""
        if not self.joins or not all(character in BYTES for character in token):
            return self.decode([token_id])
        return bytes(BYTES[character] for character in token).decode("utf-8", errors="backslashreplace")

    def is_byte(self, token_id: int) -> bool:
        """Whether an id is a byte like <0xC3>, which some tokenizers decode together with its neighbours."""
        return BYTE.fullmatch(self._tokenizer.id_to_token(token_id) or "") is not None


def read_tokenizer(path: Path, vocab_size: int | None) -> tokenizers.Tokenizer:
    """The tokenizer in a file; any exception if that holds no tokenizer of known parts."""
    bounds = bounds_for(vocab_size or MOST_IDS)
    content = read_bounded(path, bounds.size)
    check_tokenizer(parse_object(content, bounds), vocab_size)
    return tokenizers.Tokenizer.from_str(content.decode("utf-8"))


class IncrementalDecoder:
    """Decodes ids one at a time: a character comes out once all its bytes are there."""

    REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0  # characters of the text of `_ids` already given

    def push(self, token_id: int) -> str:
        """The text that this id makes final."""
        self._ids.append(token_id)
        if not self._tokenizer.joins and self._tokenizer.is_byte(token_id):
            return ""
        text = self._tokenizer.decode(self._ids)
        certain = text.rstrip(self.REPLACEMENT)
        piece, self._given = certain[self._given :], len(certain)
        if self._tokenizer.joins and len(certain) == len(text):  # byte-level texts of whole characters join
            self._ids, self._given = [], 0
        return piece

    def flush(self) -> str:
        """The rest, when no more ids come: U+FFFD for bytes that make no character."""
        rest = self._tokenizer.decode(self._ids)[self._given :] if self._ids else ""
        self._ids, self._given = [], 0
        return rest


class Pieces(Protocol):
    """Gives the text of an id."""

    def piece(self, token_id: int) -> str:
        """One id's text; bytes that make no character by themselves as \\xNN."""


class NextToken(NamedTuple):
    """A candidate for the next token."""

    text: str
    token_id: int
    probability: float


def escaped(character: str) -> str:
    r"""A character escaped as in Python, but never as \xNN from U+0080 up, which stands for a byte."""
    code = ord(character)
    return f"\\u{code:04x}" if 0x80 <= code < 0x100 else character.encode("unicode_escape").decode()
