"""Values as SQLite keeps them: integers for times, text for decimals, JSON and arrays."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from featurestore.types import (
    EPOCH,
    ArrayType,
    Bool,
    Bytes,
    Date,
    DecimalType,
    FeatureType,
    Float32,
    Json,
    Timestamp,
    from_micros,
    micros,
)

_EPOCH_DAY = EPOCH.date().toordinal()


def physical(kind: FeatureType, column: pa.Array) -> list[Any]:
    """A column as the list of values that SQLite keeps."""
    if isinstance(kind, DecimalType):
        return [None if value is None else format(value, "f") for value in column.to_pylist()]
    if isinstance(kind, ArrayType):
        item = kind.item
        return [None if row is None else _dump_array(item, row) for row in column.to_pylist()]
    if kind == Timestamp:
        column = column.cast(pa.int64())
    elif kind == Date:
        column = column.cast(pa.int32())
    elif kind == Float32:
        column = column.cast(pa.float64())
    return column.to_pylist()  # type: ignore[no-any-return]


def encode(kind: FeatureType, value: Any) -> Any:
    """A Python value (not null, as ``kind.python`` gives it) as SQLite keeps it."""
    if kind == Timestamp:
        return micros(value)
    if kind == Date:
        return value.toordinal() - _EPOCH_DAY
    if kind == Bool:
        return int(value)
    if isinstance(kind, DecimalType):
        return format(value, "f")
    return _dump_array(kind.item, value) if isinstance(kind, ArrayType) else value


def _dump_array(item: FeatureType, values: Sequence[Any]) -> str:
    if item == Bytes:
        values = [None if v is None else base64.b64encode(v).decode() for v in values]
    elif item in (Timestamp, Date) or isinstance(item, DecimalType):
        values = [None if v is None else encode(item, v) for v in values]
    return json.dumps(values, ensure_ascii=False)


def _element(item: FeatureType, value: Any) -> Any:
    if item == Bytes:
        return base64.b64decode(value)
    if item == Timestamp:
        return from_micros(value)
    if item == Date:
        return dt.date.fromordinal(value + _EPOCH_DAY)
    return decimal.Decimal(value) if isinstance(item, DecimalType) else value


def decode(kind: FeatureType, value: Any) -> Any:
    """A value (not null) as SQLite keeps it, as the Python value of ``kind``."""
    if isinstance(kind, ArrayType):
        return [None if v is None else _element(kind.item, v) for v in json.loads(value)]
    if kind == Timestamp:
        return from_micros(value)
    if kind == Date:
        return dt.date.fromordinal(value + _EPOCH_DAY)
    if kind == Bool:
        return bool(value)
    if kind == Json:
        return json.loads(value)
    return decimal.Decimal(value) if isinstance(kind, DecimalType) else value


def arrow(kind: FeatureType, values: Sequence[Any]) -> pa.Array:
    """A column as SQLite keeps it, nulls among it, as an Arrow array of ``kind``."""
    if kind == Timestamp:
        return pa.array(values, pa.int64()).cast(kind.arrow)
    if kind == Date:
        return pa.array(values, pa.int32()).cast(kind.arrow)
    if isinstance(kind, DecimalType | ArrayType) or kind == Bool:
        decoded = [None if value is None else decode(kind, value) for value in values]
        return pa.array(decoded, kind.arrow)
    return pa.array(values, kind.arrow)
