"""Reads a bundle's JSON files strictly and within bounds: whoever made the bundle wrote them, and their hashes."""

import json
import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import BundleError

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 100
SHORT.maxlevel = 2


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most bytes of a file that are read, and the most values in it: each is an object in memory."""

    size: int
    values: int


SETTINGS = Bounds(2**20, 2**15)  # of config.json and its like


def read_object(path: Path, bounds: Bounds = SETTINGS) -> dict[str, Any]:
    """The object in a JSON file; BundleError for a name given twice, a number that is not finite, or too much of it."""
    try:
        content = read_bounded(path, bounds.size)
        return parse_object(content, bounds)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from None
    except TypeError as error:
        raise BundleError(f"{path} is damaged: {error}") from None
    except RecursionError:
        raise BundleError(f"{path} cannot be read: it is nested too deeply") from None
    except ValueError as error:
        raise BundleError(f"{path} cannot be read: {error}") from None


def read_bounded(path: Path, most: int) -> bytes:
    """A file's bytes; ValueError if there are more than `most`, of which no more is read."""
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return content


def parse_object(content: bytes, bounds: Bounds) -> dict[str, Any]:
    """The object that `content` is, in JSON of at most so many values."""
    if content.count(b",") + content.count(b"[") + content.count(b"{") > bounds.values:
        raise ValueError(f"it holds more than {bounds.values:,} values")
    found = json.loads(
        content.decode("utf-8"),
        object_pairs_hook=named_once,
        parse_float=finite_float,
        parse_constant=refuse_constant,
    )
    if not isinstance(found, dict):
        raise TypeError("its top is not a JSON object")
    return found


def named_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = set[str]()
        twice = next(name for name, _ in pairs if name in names or names.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it names {shown(twice)} twice")
    return found


def finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text)} is more than a number can be")
    return number


def refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def shown(value: object) -> str:
    """`value` for a message: on one line, and never long."""
    try:
        return SHORT.repr(value)
    except ValueError:  # Python prints no integers of more than 4,300 digits
        return "an integer of thousands of digits"
