"""What is wrong with a body, in words: which field, what it may be, and what it is, in one line."""

import json
import re
from difflib import get_close_matches
from typing import Any

from msgspec import Struct, inspect

PLACE = r"(?: - at `\$\.?(?P<path>.*)`)?"
UNKNOWN = re.compile(rf"Object contains unknown field `(?P<field>.*?)`{PLACE}", re.DOTALL)
MISSING = re.compile(rf"Object missing required field `(?P<field>.*?)`{PLACE}", re.DOTALL)
WRONG = re.compile(rf".*?{PLACE}", re.DOTALL)
STEP = re.compile(r"\[(\d+)\]|(\w+)")
KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
LONG = 60  # characters of a value, or of a name


def told(problem: str, value: Any, kind: type[Struct]) -> tuple[str | None, str]:
    """(the parameter's name, what is wrong with it), from what msgspec says."""
    if found := UNKNOWN.fullmatch(problem):
        name = joined(found["path"], named(found["field"]))
        near = [] if found["path"] else get_close_matches(name, kind.__struct_fields__, 1)
        return name, f"{name} is not supported{f'; did you mean {near[0]}?' if near else ''}"
    if found := MISSING.fullmatch(problem):
        name = joined(found["path"], found["field"])
        return name, f"{name} is missing"
    found = WRONG.fullmatch(problem)
    path = (found and found["path"]) or None
    if path is None:
        return None, f"the body must be a JSON object, got {kind_of(value)}"
    steps = [int(number) if number else name for number, name in STEP.findall(path)]
    return str(
        steps[0]
    ), f"{path} must be {allowed(type_at(inspect.type_info(kind), steps))}, got {shown(value, steps)}"


def joined(path: str | None, field: str) -> str:
    return f"{path}.{field}" if path else field


def named(key: str) -> str:
    """A key for a message: one line, and not too long."""
    return key if key.isprintable() and len(key) <= LONG else shortened(json.dumps(key))


def kind_of(value: Any) -> str:
    return KINDS.get(type(value), "a number")


def type_at(kind: inspect.Type, steps: list[int | str]) -> inspect.Type:
    """The type of what lies at a path such as ["stop", 0]."""
    for step in steps:
        kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
        if isinstance(step, int):
            kind = next(each.item_type for each in kinds if isinstance(each, inspect.ListType))
        else:
            fields = next(each.fields for each in kinds if isinstance(each, inspect.StructType))
            kind = next(field.type for field in fields if field.name == step)
    return kind


def allowed(kind: inspect.Type) -> str:
    """What a value may be; that it may also be null is left unsaid."""
    match kind:
        case inspect.Metadata(type=inner):
            return allowed(inner)
        case inspect.UnionType(types=kinds):
            return " or ".join(allowed(each) for each in kinds if not isinstance(each, inspect.NoneType))
        case inspect.IntType(ge=least, le=most):
            return f"an integer{between(least, most)}"
        case inspect.FloatType(ge=least, le=most):
            return f"a number{between(least, most)}"
        case inspect.StrType(min_length=least):
            return "a string of at least one character" if least else "a string"
        case inspect.ListType(item_type=item, min_length=least, max_length=most):
            count = f" of at most {most:,}" if most else " of at least one" if least else ""
            return f"a list{count} in which each is {allowed(item)}"
        case inspect.LiteralType(values=values):
            return " or ".join(map(json.dumps, values))
    return {inspect.BoolType: "true or false", inspect.NoneType: "null, as it is not supported"}.get(
        type(kind), "an object"
    )


def between(least: float | None, most: float | None) -> str:
    if most is None:
        return "" if least is None else f" of at least {least:,g}"
    return f" from {least:,} to {most:,}" if isinstance(most, int) else f" from {least:g} to {most:g}"


def shown(value: Any, steps: list[int | str] | None = None) -> str:
    """A value, or what lies in it at a path, for a message."""
    for step in steps or ():
        value = value[step]
    return shortened(json.dumps(value))


def shortened(text: str, most: int = LONG) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
