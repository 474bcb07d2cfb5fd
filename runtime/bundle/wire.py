"""Reads protobuf's wire format (https://protobuf.dev/programming-guides/encoding/) without a library."""

from collections.abc import Iterator

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5


def payloads(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, payload) of each length-delimited field in turn: messages, strings and bytes."""
    return ((number, payload) for number, wire, payload in fields(message) if wire == LENGTH_DELIMITED)


def fields(message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """(field number, wire type, payload) of each field in turn; ValueError or IndexError for what is no message."""
    position = 0
    while position < len(message):
        tag, position = varint(message, position)
        number, wire = tag >> 3, tag & 7
        if tag >> 32 or wire not in (VARINT, FIXED64, LENGTH_DELIMITED, FIXED32):
            raise ValueError("not protobuf")
        size, position = field_size(message, position, wire)
        if position + size > len(message):
            raise ValueError("not protobuf")
        yield number, wire, message[position : position + size]
        position += size


def field_size(message: memoryview, position: int, wire: int) -> tuple[int, int]:
    """(bytes in the field, where they begin)."""
    if wire == VARINT:
        return varint(message, position)[1] - position, position
    if wire == LENGTH_DELIMITED:
        return varint(message, position)
    return (8 if wire == FIXED64 else 4), position


def varint(message: memoryview, position: int) -> tuple[int, int]:
    """(value, position after it) of a base-128 number of at most ten bytes, least significant group first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("not protobuf")


def signed(payload: memoryview) -> int:
    """A varint as int64."""
    value = varint(payload, 0)[0] & (2**64 - 1)
    return value - 2**64 if value >> 63 else value
