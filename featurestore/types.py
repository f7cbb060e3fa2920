"""The one table of types: every path between Python, Arrow and SQL goes by it.

A type is a frozen value. Its :attr:`~FeatureType.arrow` is how columns of it travel, and its
:meth:`~FeatureType.python` is the one place that decides which Python values it accepts. How
the two databases keep it stands in ``storage/postgresql.py`` and ``storage/sqlite_values.py``; what
Arrow input it accepts in ``ingest/casts.py``.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from featurestore.errors import DefinitionError

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MIN_TIMESTAMP = dt.datetime(1, 1, 1, tzinfo=dt.UTC)
MAX_TIMESTAMP = dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC)
MICROSECOND = dt.timedelta(microseconds=1)

MAX_KEY_BYTES = 1_000
"""The longest text or bytes that a join key may hold."""

MAX_ENTITY_BYTES = 2_400
"""The longest composite key in all: a PostgreSQL b-tree entry ends at 2,704 bytes."""


class TypeMismatch(TypeError):
    """A Python value's type can never fit (text for a number)."""


class ValueMismatch(ValueError):
    """A Python value's type may fit, this value does not (2**40 for an Int32)."""


@dataclass(frozen=True)
class FeatureType:
    """A type of the table: ``name`` is how the registry and messages spell it."""

    name: str

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type that columns of this type have on their way out."""
        return _ARROW[self.name]

    def python(self, value: Any) -> Any:
        """``value`` as this type keeps it.

        Raises :class:`TypeMismatch` or :class:`ValueMismatch`. Nulls are the caller's.
        """
        return _PYTHON[self.name](_unwrap(value))

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"fs.{_SPELLING.get(self.name, self.name)}"


@dataclass(frozen=True, repr=False)
class DecimalType(FeatureType):
    """Exact decimals of ``precision`` digits (1 to 38), ``scale`` of them after the point."""

    precision: int
    scale: int

    @property
    def arrow(self) -> pa.DataType:
        return pa.decimal128(self.precision, self.scale)

    def python(self, value: Any) -> decimal.Decimal:
        value = _unwrap(value)
        if isinstance(value, bool) or not isinstance(value, int | decimal.Decimal):
            raise TypeMismatch(f"{type(value).__name__} is no decimal")
        number = decimal.Decimal(value)
        if not number.is_finite():
            raise ValueMismatch(f"{number} is not finite")
        if number and number.adjusted() >= self.precision - self.scale:
            raise ValueMismatch(f"{number} does not fit {self.name}")
        with decimal.localcontext(prec=80):
            exact = number.quantize(decimal.Decimal(1).scaleb(-self.scale))
            if exact != number:
                raise ValueMismatch(f"{number} does not fit {self.name}")
            # Arrow and PostgreSQL know no negative zero.
            return exact if exact else abs(exact)

    def __repr__(self) -> str:
        return f"fs.Decimal({self.precision}, {self.scale})"


@dataclass(frozen=True, repr=False)
class ArrayType(FeatureType):
    """Lists of one type; nulls inside are kept, and null differs from empty."""

    item: FeatureType

    @property
    def arrow(self) -> pa.DataType:
        return pa.list_(self.item.arrow)

    def python(self, value: Any) -> list[Any]:
        if hasattr(value, "tolist"):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            raise TypeMismatch(f"{type(value).__name__} is no list")
        return [None if item is None else self.item.python(item) for item in value]

    def __repr__(self) -> str:
        return f"fs.Array({self.item!r})"


Bool = FeatureType("bool")
Int32 = FeatureType("int32")
Int64 = FeatureType("int64")
Float32 = FeatureType("float32")
Float64 = FeatureType("float64")
String = FeatureType("string")
Bytes = FeatureType("bytes")
Timestamp = FeatureType("timestamp")
Date = FeatureType("date")
Json = FeatureType("json")


def Decimal(precision: int, scale: int) -> DecimalType:
    """Exact decimals: ``precision`` digits in all (1 to 38), ``scale`` after the point."""
    if not (_is_int(precision) and _is_int(scale) and 1 <= precision <= 38):
        raise DefinitionError(f"Decimal({precision}, {scale}): precision must be 1 to 38.")
    if not 0 <= scale <= precision:
        raise DefinitionError(f"Decimal({precision}, {scale}): scale must be 0 to {precision}.")
    return DecimalType(f"decimal({precision},{scale})", precision, scale)


def Array(item: FeatureType) -> ArrayType:
    """Lists of ``item``. Arrays do not nest and hold no Json."""
    if not isinstance(item, FeatureType):
        raise DefinitionError(f"Array({item!r}): give it a type such as fs.Float64.")
    if isinstance(item, ArrayType) or item == Json:
        raise DefinitionError(f"Array({item}): arrays do not nest and hold no Json.")
    return ArrayType(f"array({item.name})", item)


_PLAIN = (Bool, Int32, Int64, Float32, Float64, String, Bytes, Timestamp, Date, Json)
_BY_NAME = {plain.name: plain for plain in _PLAIN}
_SPELLING = {
    "bool": "Bool",
    "int32": "Int32",
    "int64": "Int64",
    "float32": "Float32",
    "float64": "Float64",
    "string": "String",
    "bytes": "Bytes",
    "timestamp": "Timestamp",
    "date": "Date",
    "json": "Json",
}
_ARROW = {
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "bytes": pa.binary(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(),
    "json": pa.string(),
}


def parse_type(name: str) -> FeatureType:
    """The type that ``name`` spells, as the registry keeps it (``"array(float64)"``)."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    if match := re.fullmatch(r"decimal\((\d+),(\d+)\)", name):
        return Decimal(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"array\((.+)\)", name):
        return Array(parse_type(match[1]))
    raise DefinitionError(f"{name!r} is no type of this version of featurestore.")


def is_key_type(kind: FeatureType) -> bool:
    """Whether a join key may have this type: floats, Json and arrays do not compare exactly."""
    return isinstance(kind, DecimalType) or kind in (
        Bool,
        Int32,
        Int64,
        String,
        Bytes,
        Date,
        Timestamp,
    )


def key_bytes(value: Any) -> int:
    """How many bytes a key's value takes in an index, as the limits count it."""
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 16


def micros(moment: dt.datetime) -> int:
    """Microseconds since 1970-01-01 UTC; a naive ``moment`` is UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return (moment - EPOCH) // MICROSECOND


def from_micros(value: int) -> dt.datetime:
    """The aware UTC datetime of ``value`` microseconds since 1970-01-01."""
    return EPOCH + dt.timedelta(microseconds=value)


# --- JSON ---------------------------------------------------------------------------------

# Strings are matched first, so that digits inside them are left alone.
_EXPONENT = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?[eE][+-]?\d+')


def _plain_number(match: re.Match[str]) -> str:
    token = match[0]
    if token.startswith('"'):
        return token
    digits = format(decimal.Decimal(token), "f")
    return digits if "." in digits else digits + ".0"


def dump_json(value: Any) -> str:
    """``value`` as JSON text that both databases give back equal.

    jsonb keeps numbers as numerics: 1e23 would come back as the integer 10**23, which is
    another number than the float, so exponents are written out and keep their point. Raises
    :class:`ValueMismatch` for what JSON or PostgreSQL cannot hold: NaN, infinities, NUL, lone
    surrogates, keys that are not text.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_refuse)
        text.encode()
        if "\\u0000" in text:
            _refuse_nul(value)
        _refuse_keys(value)
    except UnicodeEncodeError:
        raise ValueMismatch("text with a lone surrogate") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueMismatch(f"no JSON value: {error}") from None
    return _EXPONENT.sub(_plain_number, text)


def load_json(text: str) -> Any:
    """The value of JSON ``text``; raises :class:`ValueMismatch` where it is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueMismatch(f"no JSON: {error}") from None


def _refuse(value: Any) -> Any:
    raise TypeError(f"{value if isinstance(value, str) else type(value).__name__} is not JSON")


def _refuse_nul(value: Any) -> None:
    if isinstance(value, str) and "\0" in value:
        raise ValueError("text with NUL (U+0000)")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_nul(key)
            _refuse_nul(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_nul(item)


def _refuse_keys(value: Any) -> None:
    """json.dumps turns the key 1 into "1": the value would come back unequal."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is no text")
            _refuse_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_keys(item)


# --- Python values ------------------------------------------------------------------------


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _unwrap(value: Any) -> Any:
    """NumPy scalars as Python values."""
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        if type(value).__name__ == "datetime64":
            return value.astype("datetime64[us]").item()  # floors, as our Arrow casts do
        return value.item()
    return value


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeMismatch(f"{type(value).__name__} is no bool")
    return value


def _integer(value: Any, bits: int) -> int:
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueMismatch(f"{value} is not whole")
        value = int(value)
    elif isinstance(value, decimal.Decimal):
        if not value.is_finite() or value.adjusted() > 20 or value != value.to_integral_value():
            raise ValueMismatch(f"{value} is no whole number that fits int{bits}")
        value = int(value)
    elif not _is_int(value):
        raise TypeMismatch(f"{type(value).__name__} is no integer")
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise ValueMismatch(f"{value} does not fit int{bits}")
    return int(value)


def _float64(value: Any) -> float:
    if isinstance(value, float):
        return float(value)
    if not _is_int(value):
        raise TypeMismatch(f"{type(value).__name__} is no number")
    try:
        number = float(value)
    except OverflowError:
        raise ValueMismatch(f"{value} does not fit float64") from None
    if int(number) != value:
        raise ValueMismatch(f"{value} does not fit float64 exactly")
    return number


def _float32(value: Any) -> float:
    number = _float64(value)
    try:
        rounded: float = struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        raise ValueMismatch(f"{value} does not fit float32") from None
    if math.isinf(rounded) and not math.isinf(number):
        raise ValueMismatch(f"{value} does not fit float32")
    return rounded


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeMismatch(f"{type(value).__name__} is no text")
    if "\0" in value:
        raise ValueMismatch("text with NUL (U+0000)")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueMismatch("text with a lone surrogate") from None
    return str(value)


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeMismatch(f"{type(value).__name__} is no bytes")
    return bytes(value)


def _timestamp(value: Any) -> dt.datetime:
    if not isinstance(value, dt.datetime):
        raise TypeMismatch(f"{type(value).__name__} is no datetime")
    if value != value:  # pandas' NaT is a datetime that is no time
        raise ValueMismatch("not a time (NaT)")
    pandas_time: Any = value
    if hasattr(value, "to_pydatetime"):  # pandas: nanoseconds are floored, and silently
        value = pandas_time.floor("us").to_pydatetime()
    try:
        return from_micros(micros(value))
    except OverflowError:
        raise ValueMismatch(f"{value} is outside the years 1 to 9999") from None


def _date(value: Any) -> dt.date:
    if isinstance(value, dt.datetime) or not isinstance(value, dt.date):
        raise TypeMismatch(f"{type(value).__name__} is no date")
    return value


_PYTHON: dict[str, Callable[[Any], Any]] = {
    "bool": _bool,
    "int32": lambda value: _integer(value, 32),
    "int64": lambda value: _integer(value, 64),
    "float32": _float32,
    "float64": _float64,
    "string": _string,
    "bytes": _bytes,
    "timestamp": _timestamp,
    "date": _date,
    "json": lambda value: load_json(dump_json(value)),
}
