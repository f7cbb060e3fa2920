"""Single values, by type, between Python and JSON."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import decimal
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from featurestore.definitions import FeatureView
from featurestore.errors import InvalidRow, InvalidRowsError, SchemaMismatchError
from featurestore.types import (
    ArrayType,
    DecimalType,
    FeatureType,
    Timestamp,
    TypeMismatch,
    ValueMismatch,
    dump_json,
)

Convert = Callable[[Any], Any]

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_LISTED = 10
"""Invalid rows that an error lists; it says how many more there are."""


def encoder(kind: FeatureType) -> Convert | None:
    """What makes a value of ``kind`` that is not None ready for JSON; None where it is so."""
    if isinstance(kind, ArrayType):
        return _array(encoder(kind.item))
    return str if isinstance(kind, DecimalType) else _ENCODERS.get(kind.name)


def decoder(kind: FeatureType) -> Convert | None:
    """The way back of :func:`encoder`; None where JSON's value is the value.

    What comes from elsewhere may not be of the type: text that cannot be read raises
    :class:`ValueMismatch`; anything else of a wrong type is left as it is, for the checks that
    all input goes through.
    """
    if isinstance(kind, ArrayType):
        return _array(decoder(kind.item))
    return _decimal if isinstance(kind, DecimalType) else _DECODERS.get(kind.name)


def encode(kind: FeatureType, value: Any) -> Any:
    """A value of ``kind``, or None, as JSON has it."""
    convert = None if value is None else encoder(kind)
    return value if convert is None else convert(value)


def decode(kind: FeatureType, value: Any) -> Any:
    """The value of ``kind`` that JSON's ``value`` stands for. Raises :class:`ValueMismatch`."""
    convert = None if value is None else decoder(kind)
    return value if convert is None else convert(value)


def _array(item: Convert | None) -> Convert | None:
    if item is None:
        return None

    def convert(values: Any) -> Any:
        if not isinstance(values, list | tuple):
            return values
        return [None if value is None else item(value) for value in values]

    return convert


# --- one type each ------------------------------------------------------------------------


def _from_float(value: float) -> Any:
    if math.isfinite(value):
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def _to_float(value: Any) -> Any:
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _from_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _to_bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueMismatch(f"{value!r:.60} is no base64") from None


def _from_timestamp(value: dt.datetime) -> str:
    return value.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _to_timestamp(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        moment = dt.datetime.fromisoformat(value)
    except ValueError:
        raise ValueMismatch(f"{value!r:.60} is no ISO 8601 time") from None
    return moment if moment.tzinfo is dt.UTC else Timestamp.python(moment)


def _to_date(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return dt.date.fromisoformat(value)
    except ValueError:
        raise ValueMismatch(f"{value!r:.60} is no ISO 8601 date") from None


def _decimal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return decimal.Decimal(value)
    except decimal.InvalidOperation:
        raise ValueMismatch(f"{value!r:.60} is no decimal") from None


_ENCODERS: dict[str, Convert] = {
    "float32": _from_float,
    "float64": _from_float,
    "bytes": _from_bytes,
    "timestamp": _from_timestamp,
    "date": dt.date.isoformat,
}
_DECODERS: dict[str, Convert] = {
    "float32": _to_float,
    "float64": _to_float,
    "bytes": _to_bytes,
    "timestamp": _to_timestamp,
    "date": _to_date,
}


# --- rows ---------------------------------------------------------------------------------


def view_types(view: FeatureView) -> dict[str, FeatureType]:
    """The columns of rows that are pushed to ``view``, and their types."""
    times = {view.timestamp_field: Timestamp}
    if view.created_timestamp_field is not None:
        times[view.created_timestamp_field] = Timestamp
    return {**view.join_keys, **times, **view.types}


def decode_rows(rows: Any, types: Mapping[str, FeatureType], where: str) -> list[dict[str, Any]]:
    """Rows of a request (a list of objects) with the values that ``types`` says they are.

    Columns that ``types`` does not name stay as they came. Raises :class:`SchemaMismatchError`
    for what is no list of objects, and :class:`InvalidRowsError` (``where`` names the rows, as in
    "the entity rows") for text that cannot be read.
    """
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        raise SchemaMismatchError(
            f"{where} must be an array of objects, not {type(rows).__name__}."
        )
    decoders = {name: convert for name, kind in types.items() if (convert := decoder(kind))}
    decoded, bad = [], []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise SchemaMismatchError(
                f"{where}: row {index} is {type(row).__name__}, not an object of column names "
                f"and values."
            )
        values, reasons = dict(row), []
        for name, convert in decoders.items():
            if values.get(name) is None:
                continue
            try:
                values[name] = convert(values[name])
            except ValueMismatch as error:
                reasons.append(f"{name} {error}")
        if reasons:
            bad.append(InvalidRow(index, "; ".join(reasons)))
        decoded.append(values)
    if bad:
        raise InvalidRowsError(where, bad[:_LISTED], count=len(bad))
    return decoded


def encode_untyped(value: Any) -> Any:
    """Any Python value as JSON has it, by its own type: where the view's is not known.

    Raises :class:`TypeMismatch` for what no type of features holds, and :class:`ValueMismatch`
    for text and Json values that JSON cannot hold. pandas' NA and NaT are null.
    """
    if value is None or isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        nanoseconds = type(value).__name__ == "datetime64"  # floored, as all times are
        value = (value.astype("datetime64[us]") if nanoseconds else value).tolist()
        if value is None or isinstance(value, bool):
            return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _from_float(float(value))
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, dt.datetime):
        return _from_timestamp(Timestamp.python(value))
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return _number(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _from_bytes(bytes(value))
    if isinstance(value, Mapping):
        dump_json(value)
        return value
    if isinstance(value, list | tuple):
        return _list(value)
    raise TypeMismatch(f"{type(value).__name__} is of no type that features have")


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueMismatch("text with a lone surrogate") from None
    return str.__str__(value)


def _number(value: decimal.Decimal) -> Any:
    """A whole number that is one in JSON, too, fits integer columns as it does without a wire."""
    if value.is_finite() and value.adjusted() < 18 and value == value.to_integral_value():
        return int(value)
    return str(value)


def _list(values: Sequence[Any]) -> list[Any]:
    if any(isinstance(value, list | tuple | Mapping) for value in values):
        dump_json(values)  # arrays do not nest: it is a Json value
        return list(values)
    return [encode_untyped(value) for value in values]
