"""As much of Thrift's compact protocol as Parquet's footers and page headers need.

What is read comes from files that nobody vouches for: each read stays inside of the bytes that it
was given (``IndexError`` past their end), and structures may nest only so deep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

BOOL, I32, I64, BINARY, LIST, STRUCT = 1, 5, 6, 8, 9, 12
"""Types of fields on the wire; a false boolean is 2, and a true one 1."""

_FALSE, _BYTE, _I16, _DOUBLE, _SET, _MAP, _UUID = 2, 3, 4, 7, 10, 11, 13
_INTS = (_I16, I32, I64)

_DEPTH = 24  # Parquet's own structures nest some 6 deep

Spec = Mapping[int, Any]
"""Which fields of a structure to read: id → ``I64`` for any integer, ``BOOL``, ``BINARY``, another
spec for a structure, ``[spec]`` for a list of them, or a function that reads a list. Others are
passed over."""


class Malformed(ValueError):
    """Bytes that are no Thrift, or not what was expected."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number, and where it ends."""
    byte = data[at]
    at += 1
    if byte < 0x80:
        return byte, at
    value, shift = byte & 0x7F, 7
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
        if shift > 63:
            raise Malformed("a number has too many digits")


def integer(data: bytes, at: int, kind: int = I64) -> tuple[int, int]:
    """A signed number, and where it ends."""
    value, at = varint(data, at)
    if kind != I64:  # cut as other readers cut it
        value &= 0xFFFF_FFFF
    return (value >> 1) ^ -(value & 1), at


def binary(data: bytes, at: int) -> tuple[bytes, int]:
    """Bytes with their length before them, and where they end."""
    length, at = varint(data, at)
    if at + length > len(data):
        raise IndexError(at + length)
    return data[at : at + length], at + length


def list_head(data: bytes, at: int) -> tuple[int, int, int]:
    """Type and number of a list's elements, and where the first begins."""
    lead = data[at]
    count = lead >> 4
    at += 1
    if count == 15:
        count, at = varint(data, at)
    if count > len(data) - at:
        raise IndexError(at + count)  # each takes a byte or more
    return lead & 15, count, at


def struct(data: bytes, at: int, spec: Spec, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of a structure that ``spec`` names, and where the structure ends."""
    if depth > _DEPTH:
        raise Malformed("its structures nest too deep")
    fields: dict[int, Any] = {}
    last = 0
    while kind := data[at] & 15:
        step = data[at] >> 4
        at += 1
        if step:
            last += step
        else:
            number, at = integer(data, at, _I16)
            if number <= last:
                raise Malformed("its fields are out of order")
            last = number
        want = spec.get(last)
        if want is None:
            at = _skip(data, at, kind, depth)
        elif kind in _INTS and want == I64:
            fields[last], at = integer(data, at, kind)
        elif kind == BINARY and want == BINARY:
            fields[last], at = binary(data, at)
        elif kind <= _FALSE and want == BOOL:
            fields[last] = kind == BOOL
        elif kind == STRUCT and isinstance(want, Mapping):
            fields[last], at = struct(data, at, want, depth + 1)
        elif kind == LIST and callable(want):
            fields[last], at = want(data, at)
        elif kind == LIST and isinstance(want, Sequence):
            fields[last], at = structs(data, at, want[0], depth + 1)
        else:
            raise Malformed(f"field {last} has another type")
    return fields, at + 1


def structs(data: bytes, at: int, spec: Spec, depth: int = 0) -> tuple[list[dict[int, Any]], int]:
    """A list of structures, and where it ends."""
    kind, count, at = list_head(data, at)
    if count and kind != STRUCT:
        raise Malformed("a list holds other things")
    found = []
    for index in range(count):
        if not index & 31:
            time.sleep(0)  # in a thread: others may want the interpreter
        fields, at = struct(data, at, spec, depth)
        found.append(fields)
    return found, at


def _skip(data: bytes, at: int, kind: int, depth: int) -> int:
    """Where a value of type ``kind`` ends. A field's boolean is in its type and takes no byte."""
    if kind in _INTS:
        return varint(data, at)[1]
    if kind <= _FALSE:
        return at
    if kind == BINARY:
        return binary(data, at)[1]
    if kind == STRUCT:
        return struct(data, at, {}, depth + 1)[1]
    if kind in (LIST, _SET):
        inner, count, at = list_head(data, at)
        return _skip_all(data, at, [inner] * min(count, 1), count, depth)
    if kind == _MAP:
        count, at = varint(data, at)
        if not count:
            return at
        if count > len(data) - at:
            raise IndexError(at + count)
        return _skip_all(data, at + 1, [data[at] >> 4, data[at] & 15], count, depth)
    width = {_BYTE: 1, _DOUBLE: 8, _UUID: 16}.get(kind)
    if width is None:
        raise Malformed(f"there is no type {kind}")
    if at + width > len(data):
        raise IndexError(at + width)
    return at + width


def _skip_all(data: bytes, at: int, kinds: Iterable[int], count: int, depth: int) -> int:
    """Where ``count`` elements end, each made of values of ``kinds``."""
    if depth > _DEPTH:
        raise Malformed("its structures nest too deep")
    inner = [_BYTE if kind <= _FALSE else kind for kind in kinds]
    for _ in range(count):
        for kind in inner:
            at = _skip(data, at, kind, depth + 1)
    return at


# --- writing --------------------------------------------------------------------------------


def pack(fields: Iterable[tuple[int, int, Any]]) -> bytes:
    """A structure of fields (id, type, value), ids going up.

    A structure within is given packed, a list as ``(type, packed elements)``.
    """
    out = bytearray()
    last = 0
    for number, kind, value in fields:
        step, last = number - last, number
        if step < 16:
            out.append(step << 4 | kind)
        else:
            out.append(kind)
            out += packed_integer(number)
        out += _PACKERS[kind](value)
    out.append(0)
    return bytes(out)


def packed_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def packed_integer(value: int) -> bytes:
    return packed_varint((value << 1) ^ (value >> 63))


def packed_binary(value: bytes) -> bytes:
    return packed_varint(len(value)) + value


def _packed_list(value: tuple[int, Sequence[bytes]]) -> bytes:
    kind, elements = value
    count = len(elements)
    head = bytes([count << 4 | kind]) if count < 15 else bytes([15 << 4 | kind])
    return head + (packed_varint(count) if count >= 15 else b"") + b"".join(elements)


_PACKERS: dict[int, Callable[[Any], bytes]] = {
    I32: packed_integer,
    I64: packed_integer,
    BINARY: packed_binary,
    LIST: _packed_list,
    STRUCT: bytes,
}
