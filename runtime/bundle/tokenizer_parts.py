"""The parts of tokenizer.json that are read: those that GPT-2's family uses, within bounds.

The tokenizers library trusts its file: some parts abort the process or take any time and memory. An allow-list keeps
out what is not known to end.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from runtime.bundle.json_files import Bounds, shown

Part = Mapping[str, Any]
MOST_PARTS, DEEPEST = 32, 4
MOST_GROWTH = 64.0  # how many times as long normalizers may make a text
LONGEST = 1024  # characters of a token, and of what replaces a pattern
LONGEST_PREPENDED = 16  # characters before each part of a text
LONGEST_WORD = 1000  # characters, of WordPiece, which takes their square of steps
MOST_PIECES = 256  # of a template, and ids of its special tokens

# Regular expressions in which nothing follows what repeats without bound, so that no match is tried again: alternatives
# of a few characters or classes, of which the last may repeat. Those of GPT-2's descendants that look ahead are named.
ESCAPED = r"\\[sSdDwWnrtvf]|\\[pP]\{\^?[A-Za-z_]{1,20}\}|\\[^A-Za-z0-9]"
ATOM = rf"(?:{ESCAPED}|[^\\\[\](){{}}|*+?^$.&]|\[\^?(?:{ESCAPED}|[^\\\[\]&]){{1,64}}\])"
ALTERNATIVE = rf"(?:{ATOM}\??){{0,8}}{ATOM}(?:\+|\{{[1-9]\d?,?\d{{0,2}}\}})?"
SIMPLE = re.compile(rf"{ALTERNATIVE}(?:\|{ALTERNATIVE}){{0,31}}")
LONGEST_PATTERN = 2048
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
NAMED = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    *(f"{WORDS}|{digits}|{REST}" for digits in (r"\p{N}", r"\p{N}{1,3}")),
}


def bounds_for(vocab_size: int) -> Bounds:
    """What a tokenizer.json for a vocabulary may hold: an id and a merge of two for each token, and what is around."""
    return Bounds(2**20 + 512 * vocab_size, 2**14 + 8 * vocab_size)


def check_tokenizer(content: Part, vocab_size: int | None = None) -> None:
    """Raise ValueError for a part of tokenizer.json that is not read, or out of its bounds.

    Args:
        vocab_size: How many ids there are; by default as many as the file names.
    """
    check_model(content.get("model"))
    for name, kinds in KINDS.items():
        check_parts(name, content.get(name), kinds)
    growth = math.prod(growth_of(part) for part in parts(content.get("normalizer"), "normalizers"))
    growth = max(growth, math.prod(growth_of(part) for part in parts(content.get("decoder"), "decoders")))
    if growth > MOST_GROWTH:
        raise ValueError(f"its parts make a text {growth:,.0f} times as long, more than {MOST_GROWTH:.0f}")
    check_vocabulary(content, vocab_size)


def check_parts(name: str, part: Any, kinds: Mapping[str, Callable[[Part], None]]) -> None:
    """Check a normalizer, pre-tokenizer, post-processor or decoder, and the parts that it is a sequence of."""
    if part is None:
        return
    for one in parts(part, MEMBERS[name]):
        kind = one.get("type")
        if not isinstance(kind, str) or kind not in {*kinds, "Sequence"}:
            raise ValueError(f"its {name} {shown(kind)} is not one of {', '.join(kinds)}")
        if kind != "Sequence":
            kinds[kind](one)


def parts(part: Any, members: str) -> list[Part]:
    """A part and all that it is a sequence of."""
    return list(walk(part, members, DEEPEST, [MOST_PARTS])) if part is not None else []


def walk(part: Any, members: str, depth: int, left: list[int]) -> Iterator[Part]:
    if not isinstance(part, Mapping):
        raise ValueError(f"{shown(part)} is not a part of a tokenizer")
    left[0] -= 1
    if depth == 0 or left[0] < 0:
        raise ValueError(f"its {members} are more than {MOST_PARTS}, or nested deeper than {DEEPEST}")
    yield part
    if part.get("type") == "Sequence":
        inner = part.get(members)
        if not isinstance(inner, list):
            raise ValueError(f"a sequence without a list of {members}")
        for one in inner:
            yield from walk(one, members, depth - 1, left)


def anything(_part: Part) -> None:
    """Of a kind without settings that matter."""


def check_pattern(part: Part) -> None:
    """Check the pattern of a Split or a Replace."""
    pattern = part.get("pattern")
    if not isinstance(pattern, Mapping) or len(pattern) != 1:
        raise ValueError(f"{part['type']} has no pattern")
    text, regex = pattern.get("String"), pattern.get("Regex")
    if isinstance(text, str) and 0 < len(text) <= LONGEST:
        return
    known = isinstance(regex, str) and (regex in NAMED or (len(regex) <= LONGEST_PATTERN and SIMPLE.fullmatch(regex)))
    if not known:
        raise ValueError(f"{part['type']} has the pattern {shown(text if regex is None else regex)}, which may not end")


def check_replace(part: Part) -> None:
    check_pattern(part)
    check_text(part, "content", least=0)


def check_text(part: Part, name: str, *, least: int = 1, most: int = LONGEST) -> None:
    value = part.get(name)
    if not isinstance(value, str) or not least <= len(value) <= most:
        raise ValueError(f"{part['type']} has {shown(value)} for {name}, not {least} to {most:,} characters")


def check_prepend(part: Part) -> None:
    check_text(part, "prepend", least=0, most=LONGEST_PREPENDED)


def check_delimiter(part: Part) -> None:
    check_text(part, "delimiter", most=1)


def check_strip(part: Part) -> None:
    """A decoder's: what it takes off the end of a token is counted from its start, so that none may be shorter."""
    if part.get("stop") != 0 or type(part.get("start")) is not int or not 0 <= part["start"] <= LONGEST:
        raise ValueError(
            f"Strip takes {shown(part.get('start'))} and {shown(part.get('stop'))} characters, not N and 0"
        )


def check_template(part: Part) -> None:
    """The pieces are few; the ids are checked with the vocabulary."""
    for name in ("single", "pair"):
        pieces = part.get(name)
        if not isinstance(pieces, list) or len(pieces) > MOST_PIECES:
            raise ValueError(f"TemplateProcessing has no list of at most {MOST_PIECES} pieces for {name}")
    if sum(1 for _ in template_ids(part)) > MOST_PIECES:
        raise ValueError(f"TemplateProcessing has more than {MOST_PIECES} ids")


def template_ids(part: Part) -> Iterator[Any]:
    special = part.get("special_tokens") or {}
    for token in special.values() if isinstance(special, Mapping) else special:
        yield from token["ids"]


def pair_ids(part: Part) -> Iterator[Any]:
    for name in ("sep", "cls"):
        _, token = part[name]
        yield token


def growth_of(part: Part) -> float:
    """How many times as long a part may make a text, but for Unicode's own forms."""
    content = part.get("content")
    if part.get("type") != "Replace" or not isinstance(content, str):
        return 1.0
    pattern = part["pattern"].get("String") or "x"
    return max(1.0, len(content) / len(pattern))


def check_model(model: Any) -> None:
    """Check the model's kind and settings."""
    if not isinstance(model, Mapping):
        raise ValueError("it has no model")
    kind, vocab = model.get("type", "BPE" if "merges" in model else None), model.get("vocab")
    if kind not in MODELS:
        raise ValueError(f"its model {shown(kind)} is not one of {', '.join(MODELS)}")
    if not isinstance(vocab, list if kind == "Unigram" else Mapping) or not vocab:
        raise ValueError(f"its model {kind} has no vocabulary")
    if model.get("dropout"):
        raise ValueError(f"its BPE has a dropout of {shown(model['dropout'])}, by which a text's ids are random")
    if kind == "WordPiece" and not 0 < whole(model.get("max_input_chars_per_word", 100)) <= LONGEST_WORD:
        raise ValueError(f"WordPiece's max_input_chars_per_word is not 1 to {LONGEST_WORD}")
    unknown = model.get("unk_token")
    if kind == "Unigram":
        unknown_id = model.get("unk_id")
        if unknown_id is not None and not 0 <= whole(unknown_id) < len(vocab):
            raise ValueError(f"its unk_id {shown(unknown_id)} is not in its vocabulary")
    elif kind != "BPE" and not (isinstance(unknown, str) and unknown in vocab):
        raise ValueError(f"its unk_token {shown(unknown)} is not in its vocabulary")


def check_vocabulary(content: Part, vocab_size: int | None) -> None:
    """Check every token's length and id, those of added tokens and post-processors too."""
    model, added = content["model"], content.get("added_tokens") or []
    vocab = model["vocab"]
    listed = isinstance(vocab, list)
    tokens = [entry[0] for entry in vocab] if listed else list(vocab)
    ids = list(range(len(vocab))) if listed else list(vocab.values())
    tokens += [token["content"] for token in added]
    ids += [token["id"] for token in added]
    for part in parts(content.get("post_processor"), "processors"):
        ids += template_ids(part) if part["type"] == "TemplateProcessing" else ()
        ids += pair_ids(part) if part["type"] in ("BertProcessing", "RobertaProcessing") else ()
    if not all(type(token) is str for token in tokens):
        raise ValueError("a token is no text")
    if (longest := max(map(len, tokens))) > LONGEST:
        raise ValueError(f"a token has {longest:,} characters, more than {LONGEST:,}")
    check_ids(ids, vocab_size if vocab_size is not None else 2**31)


def check_ids(ids: Iterable[Any], vocab_size: int) -> None:
    kinds = {*map(type, ids)}
    if kinds != {int}:
        raise ValueError("an id is no integer")
    for found in (min(ids), max(ids)):
        if not 0 <= found < vocab_size:
            raise ValueError(f"its id {shown(found)} is not one of 0 to {vocab_size - 1:,}, the vocabulary")


def whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{shown(value)} is no integer")
    return value


MODELS = ("BPE", "WordPiece", "WordLevel", "Unigram")
MEMBERS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
KINDS: dict[str, dict[str, Callable[[Part], None]]] = {
    "normalizer": {
        **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "Strip", "StripAccents"), anything),
        **dict.fromkeys(("BertNormalizer", "ByteLevel"), anything),
        "Prepend": check_prepend,
        "Replace": check_replace,
    },
    "pre_tokenizer": {
        **dict.fromkeys(("ByteLevel", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Digits"), anything),
        **dict.fromkeys(("Punctuation", "Metaspace", "UnicodeScripts"), anything),
        "CharDelimiterSplit": check_delimiter,
        "Split": check_pattern,
    },
    "post_processor": {
        **dict.fromkeys(("ByteLevel", "BertProcessing", "RobertaProcessing"), anything),
        "TemplateProcessing": check_template,
    },
    "decoder": {
        **dict.fromkeys(("ByteLevel", "WordPiece", "Metaspace", "BPEDecoder", "ByteFallback", "Fuse"), anything),
        "Replace": check_replace,
        "Strip": check_strip,
    },
}
