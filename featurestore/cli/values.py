"""Text and JSON into values of a view's types, and back.

JSON has neither times nor decimals nor bytes, and the command line has text alone:

===========  ======================================================================
Timestamp    ISO 8601, ``"2024-01-31T12:00:00Z"``; without a zone it is UTC
Date         ``"2024-01-31"``
Decimal      ``"1.50"`` or ``1.50``: both exact, no float comes between
Bytes        base64
Float32, 64  a number; ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` for what JSON lacks
Json         the value itself
===========  ======================================================================

What a reader cannot make sense of is a :class:`ValueError` that says why. Values that need no
reading pass as they are: the store knows best whether they fit.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import decimal
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.types import FeatureType

Reader = Callable[[Any], Any]

_FLOATS = {"nan": math.nan, "infinity": math.inf, "-infinity": -math.inf}


class ExactFloat(float):
    """A JSON number that remembers its digits, for columns that turn out to be decimals."""

    text: str

    def __new__(cls, text: str) -> ExactFloat:
        number = super().__new__(cls, text)
        number.text = text
        return number


_DECODER = json.JSONDecoder(parse_float=ExactFloat)
_SPACE = re.compile(r"[ \t\n\r]*")


def parse_json(text: str) -> Any:
    """The value of JSON ``text``; its floats keep their digits."""
    return _DECODER.decode(text)


def parse_json_stream(text: str) -> Iterator[Any]:
    """The values of ``text``, with only white space between them: JSON Lines, or any layout."""
    position = _end_of_space(text, 0)
    while position < len(text):
        value, end = _DECODER.raw_decode(text, position)
        yield value
        position = _end_of_space(text, end)


def _end_of_space(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    return space.end() if space else position


# --- one value ----------------------------------------------------------------------------


def read_timestamp(value: str) -> dt.datetime:
    """ISO 8601, a date alone being its midnight; without a zone it is UTC."""
    try:
        moment = dt.datetime.fromisoformat(value.strip())
    except ValueError:
        raise ValueError(f"{value!r} is no time such as 2024-01-31T12:00:00Z") from None
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment


def _read_date(value: str) -> dt.date:
    try:
        return dt.date.fromisoformat(value.strip())
    except ValueError:
        raise ValueError(f"{value!r} is no date such as 2024-01-31") from None


def _read_decimal(value: str) -> decimal.Decimal:
    try:
        return decimal.Decimal(value.strip())
    except decimal.InvalidOperation:
        raise ValueError(f"{value!r} is no decimal such as 1.50") from None


def _read_bytes(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{value!r} is no base64") from None


def _read_special_float(value: str) -> Any:
    return _FLOATS.get(value.lower(), value)


def _read_int(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{value!r} is no integer") from None


def _read_bool(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ValueError(f"{value!r} is neither true nor false")
    return value.lower() == "true"


_FROM_JSON_TEXT: dict[str, Reader] = {
    "timestamp": read_timestamp,
    "date": _read_date,
    "bytes": _read_bytes,
    "float32": _read_special_float,
    "float64": _read_special_float,
}
_KEY_FROM_TEXT: dict[str, Reader] = {
    "bool": _read_bool,
    "int32": _read_int,
    "int64": _read_int,
    "string": str,
    "bytes": _read_bytes,
    "date": _read_date,
    "timestamp": read_timestamp,
}


# --- readers of a type --------------------------------------------------------------------


def key_reader(kind: FeatureType) -> Reader:
    """What turns text of the command line into a join key of ``kind``."""
    return _read_decimal if kind.name.startswith("decimal") else _KEY_FROM_TEXT[kind.name]


def json_reader(kind: FeatureType) -> Reader | None:
    """What turns a JSON value into one of ``kind``; None where it is one already."""
    if kind.name.startswith("array("):
        return _array_reader(json_reader(kind.item))  # type: ignore[attr-defined]
    if kind.name.startswith("decimal"):
        return _decimal_of_json
    read = _FROM_JSON_TEXT.get(kind.name)
    return None if read is None else lambda value: read(value) if isinstance(value, str) else value


def _decimal_of_json(value: Any) -> Any:
    if isinstance(value, ExactFloat):
        value = value.text
    return _read_decimal(value) if isinstance(value, str) else value


def _array_reader(read: Reader | None) -> Reader | None:
    if read is None:
        return None
    return lambda value: [read(item) for item in value] if isinstance(value, list) else value


def read_json_row(row: Mapping[str, Any], readers: Mapping[str, Reader | None]) -> dict[str, Any]:
    """``row`` with its values read; a :class:`ValueError` names the column."""
    typed = {}
    for name, value in row.items():
        try:
            read = readers.get(name)
            typed[name] = value if read is None else read(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return typed


# --- back ---------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """``value`` as JSON can hold it: what :func:`json_reader` reads back."""
    match value:
        case dt.datetime():
            return iso(value)
        case dt.date():
            return value.isoformat()
        case decimal.Decimal():
            return format(value, "f")
        case bytes():
            return base64.b64encode(value).decode()
        case float() if not math.isfinite(value):
            return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
        case Mapping():
            return {str(key): to_json(item) for key, item in value.items()}
        case list() | tuple():
            return [to_json(item) for item in value]
    return value


def iso(moment: dt.datetime, sep: str = "T") -> str:
    """ISO 8601, with the Z that most tools write for UTC."""
    return moment.isoformat(sep).replace("+00:00", "Z")
