"""Rows given as mappings, read the fast way: a row of ten columns takes a few microseconds.

What this refuses is not yet wrong: ``conform.py`` looks at it again and finds the reason. Values
that it takes are those that :meth:`FeatureType.python` takes, and come out the same.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from featurestore.ingest.layout import Layout
from featurestore.types import (
    MAX_ENTITY_BYTES,
    MAX_KEY_BYTES,
    ArrayType,
    Bool,
    Bytes,
    Date,
    FeatureType,
    Float64,
    Int32,
    Int64,
    Json,
    String,
    Timestamp,
    ValueMismatch,
    dump_json,
    key_bytes,
)

Convert = Callable[[Any], Any]

_UTF8_BYTES = 4  # of a character, at the most


class RowReader:
    """Reads rows for one definition of a view.

    ``columns`` are the names in history and the types of the values of each row that it gives,
    the join keys first.
    """

    def __init__(self, layout: Layout) -> None:
        incoming = layout.incoming
        self.columns = {layout.stored_name(name): kind for name, kind in incoming.items()}
        names = list(incoming)
        self._width = len(names)
        self._get = itemgetter(*names)  # two of them at least: the time and a feature
        self._converts = [_convert(layout, name, kind) for name, kind in incoming.items()]
        created = layout.view.created_timestamp_field
        self._created = None if created is None else names.index(created)
        given = [name for name in names if name != created]
        self._get_given = itemgetter(*given) if len(given) > 1 else None
        self._sized = [index for index, kind in enumerate(incoming.values()) if _varies(kind)]
        texts = [kind in (String, Bytes) for kind in layout.view.join_keys.values()]
        longest = sum(MAX_KEY_BYTES if text else key_bytes(None) for text in texts)
        self._keys = len(texts) if longest > MAX_ENTITY_BYTES else 0

    def read(self, rows: Sequence[Any]) -> list[tuple[Any, ...]] | None:
        """The rows as tuples of checked values, Json as its text; None where one does not fit."""
        converts, width, get = self._converts, self._width, self._get
        read: list[tuple[Any, ...]] = []
        try:
            for row in rows:
                if type(row) is not dict:
                    if not isinstance(row, Mapping):
                        return None
                    row = dict(row)
                if len(row) == width:
                    values = get(row)
                elif len(row) == width - 1 and self._created is not None and self._get_given:
                    given = self._get_given(row)
                    values = (*given[: self._created], None, *given[self._created :])
                else:
                    return None
                read.append(
                    tuple(
                        [convert(value) for convert, value in zip(converts, values, strict=False)]
                    )
                )
        except (KeyError, TypeError, ValueError):
            return None
        if self._keys and any(map(self._too_long, read)):
            return None
        return read

    def _too_long(self, row: tuple[Any, ...]) -> bool:
        return sum(key_bytes(value) for value in row[: self._keys]) > MAX_ENTITY_BYTES

    def size(self, rows: Sequence[tuple[Any, ...]]) -> int:
        """About how many bytes the rows take on their way."""
        size = 8 * self._width * len(rows)
        for index in self._sized:
            for row in rows:
                value = row[index]
                if value is not None:
                    size += sum(map(_length, value)) if type(value) is list else len(value)
        return size


def _varies(kind: FeatureType) -> bool:
    return kind in (String, Bytes, Json) or isinstance(kind, ArrayType)


def _length(item: Any) -> int:
    return len(item) if isinstance(item, str | bytes) else 8


def _convert(layout: Layout, name: str, kind: FeatureType) -> Convert:
    """The check of one column's values: what is not plainly right goes the slow way."""
    if layout.required(name):
        check = _check(kind, object())
        text = name in layout.view.join_keys and kind in (String, Bytes)
        return _short(check) if text else check
    return _check(kind, None)


def _short(check: Convert) -> Convert:
    def short(value: Any) -> Any:
        checked = check(value)
        if len(checked) > MAX_KEY_BYTES // _UTF8_BYTES and key_bytes(checked) > MAX_KEY_BYTES:
            raise ValueMismatch
        return checked

    return short


def _check(kind: FeatureType, empty: object) -> Convert:
    """The check of a type; ``empty`` passes as it is: None where a value may be missing."""
    python = kind.python
    if kind in (Int32, Int64):
        low, high = (-(2**31), 2**31 - 1) if kind == Int32 else (-(2**63), 2**63 - 1)
        return lambda v: v if (type(v) is int and low <= v <= high) or v is empty else python(v)
    if kind == String:
        return lambda v: (
            v if (type(v) is str and v.isascii() and "\0" not in v) or v is empty else python(v)
        )
    if kind == Timestamp:
        return lambda v: (
            v if (type(v) is dt.datetime and v.tzinfo is dt.UTC) or v is empty else python(v)
        )
    if kind == Json:
        return lambda v: v if v is empty else dump_json(python(v))
    plain = {Float64: float, Bool: bool, Bytes: bytes, Date: dt.date}.get(kind)
    if plain is None:
        return lambda v: v if v is empty else python(v)
    return lambda v: v if type(v) is plain or v is empty else python(v)
