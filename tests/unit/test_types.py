"""The table of types: names, Arrow types, and the Python values that each accepts."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
import struct
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featurestore.types as t
from featurestore.errors import DefinitionError

TABLE = {
    t.Bool: pa.bool_(),
    t.Int32: pa.int32(),
    t.Int64: pa.int64(),
    t.Float32: pa.float32(),
    t.Float64: pa.float64(),
    t.String: pa.string(),
    t.Bytes: pa.binary(),
    t.Timestamp: pa.timestamp("us", tz="UTC"),
    t.Date: pa.date32(),
    t.Decimal(12, 3): pa.decimal128(12, 3),
    t.Json: pa.string(),
    t.Array(t.Float64): pa.list_(pa.float64()),
    t.Array(t.Decimal(5, 2)): pa.list_(pa.decimal128(5, 2)),
}


@pytest.mark.parametrize("kind", TABLE, ids=str)
def test_each_type_has_its_arrow_type_and_a_name_that_spells_it(kind):
    assert kind.arrow == TABLE[kind]
    assert t.parse_type(kind.name) == kind
    assert str(kind) == kind.name
    assert repr(kind).startswith("fs.")
    assert len({kind, t.parse_type(kind.name)}) == 1


def test_the_types_are_told_apart():
    assert len(set(TABLE)) == len(TABLE)
    assert t.Decimal(5, 2) != t.Decimal(5, 3)
    assert t.Array(t.Int32) != t.Array(t.Int64)


@pytest.mark.parametrize(
    "make",
    [
        lambda: t.Decimal(0, 0),
        lambda: t.Decimal(39, 0),
        lambda: t.Decimal(5, 6),
        lambda: t.Decimal(5, -1),
        lambda: t.Decimal(True, 0),
        lambda: t.Decimal(5.0, 2),  # type: ignore[arg-type]
        lambda: t.Array(t.Array(t.Int64)),
        lambda: t.Array(t.Json),
        lambda: t.Array(int),  # type: ignore[arg-type]
        lambda: t.parse_type("int128"),
        lambda: t.parse_type(""),
        lambda: t.parse_type("array(array(int64))"),
    ],
)
def test_types_that_cannot_be_are_refused(make):
    with pytest.raises(DefinitionError):
        make()


# --- Python values ----------------------------------------------------------------------------

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
TICK = dt.timedelta(microseconds=1)
INDIA = dt.timezone(dt.timedelta(hours=5, minutes=30))

TAKEN: list[tuple[t.FeatureType, Any, Any]] = [
    (t.Bool, True, True),
    (t.Bool, np.False_, False),
    (t.Int32, 2**31 - 1, 2**31 - 1),
    (t.Int32, -(2**31), -(2**31)),
    (t.Int32, 5.0, 5),
    (t.Int32, -0.0, 0),
    (t.Int64, 2**53 + 1, 2**53 + 1),
    (t.Int64, Decimal("7.00"), 7),
    (t.Int64, np.uint8(7), 7),
    (t.Int64, np.float64(7), 7),
    (t.Float64, 2**53, float(2**53)),
    (t.Float64, 2**1000, float(2**1000)),
    (t.Float64, math.inf, math.inf),
    (t.Float64, np.float32(0.5), 0.5),
    (t.Float32, 0.1, struct.unpack("f", struct.pack("f", 0.1))[0]),
    (t.Float32, -math.inf, -math.inf),
    (t.Float32, 1e-60, 0.0),
    (t.String, "", ""),
    (t.String, "\U0010ffff\u0301", "\U0010ffff\u0301"),
    (t.String, np.str_("a"), "a"),
    (t.Bytes, b"\0\xff", b"\0\xff"),
    (t.Bytes, bytearray(b"a"), b"a"),
    (t.Bytes, memoryview(b"a"), b"a"),
    (t.Timestamp, dt.datetime(1970, 1, 1), EPOCH),
    (t.Timestamp, dt.datetime(1970, 1, 1, 5, 30, tzinfo=INDIA), EPOCH),
    (t.Timestamp, dt.datetime.min, dt.datetime.min.replace(tzinfo=dt.UTC)),
    (t.Timestamp, dt.datetime.max, dt.datetime.max.replace(tzinfo=dt.UTC)),
    (t.Timestamp, pd.Timestamp(1999, unit="ns"), EPOCH + TICK),
    (t.Timestamp, pd.Timestamp(-1, unit="ns", tz="Asia/Kolkata"), EPOCH - TICK),
    (t.Timestamp, np.datetime64("1970-01-01T00:00:00", "s"), EPOCH),
    (t.Timestamp, np.datetime64("1970-01-01T00:00", "m"), EPOCH),
    (t.Timestamp, np.datetime64(-1, "ns"), EPOCH - TICK),
    (t.Date, dt.date.min, dt.date.min),
    (t.Date, dt.date.max, dt.date.max),
    (t.Decimal(5, 2), Decimal("1.5"), Decimal("1.50")),
    (t.Decimal(5, 2), 7, Decimal(7)),
    (t.Decimal(5, 2), Decimal("1E+2"), Decimal(100)),
    (t.Decimal(5, 2), Decimal("-0"), Decimal(0)),
    (t.Decimal(38, 10), Decimal("9" * 28 + "." + "9" * 10), Decimal("9" * 28 + "." + "9" * 10)),
    (t.Json, {"a": [1, None]}, {"a": [1, None]}),
    (t.Json, "text", "text"),
    (t.Json, (1, 2), [1, 2]),
    (t.Array(t.Int32), (1, None, 2.0), [1, None, 2]),
    (t.Array(t.Int32), [], []),
    (t.Array(t.Float64), np.array([1.5]), [1.5]),
]


def without_address(one: object) -> str:
    """The name of a case, the same in every process."""
    return re.sub(r" at 0x\w+", "", f"{one!r:.40}")


@pytest.mark.parametrize(("kind", "value", "kept"), TAKEN, ids=without_address)
def test_values_that_fit_are_kept(kind: t.FeatureType, value: Any, kept: Any):
    found = kind.python(value)
    assert found == kept
    assert type(found) is type(kept)
    if isinstance(found, dt.datetime):
        assert found.utcoffset() == dt.timedelta(0)


MISMATCHES: list[tuple[t.FeatureType, Any]] = [
    (t.Bool, 1),
    (t.Bool, "true"),
    (t.Bool, None),
    (t.Int32, True),
    (t.Int64, np.True_),
    (t.Int64, "1"),
    (t.Int64, dt.timedelta(1)),
    (t.Float64, True),
    (t.Float64, "1.5"),
    (t.Float64, Decimal(1)),
    (t.String, 1),
    (t.String, b"a"),
    (t.Bytes, "a"),
    (t.Bytes, 5),
    (t.Timestamp, "2024-01-01"),
    (t.Timestamp, 0),
    (t.Timestamp, dt.date(2024, 1, 1)),
    (t.Date, dt.datetime(2024, 1, 1)),
    (t.Date, "2024-01-01"),
    (t.Decimal(5, 2), "1.5"),
    (t.Decimal(5, 2), 1.5),
    (t.Decimal(5, 2), True),
    (t.Array(t.Int64), 1),
    (t.Array(t.Int64), {1: 2}),
    (t.Array(t.Int64), ["1"]),
    (t.Array(t.String), "abc"),
]


@pytest.mark.parametrize(("kind", "value"), MISMATCHES, ids=lambda one: f"{one!r:.40}")
def test_values_of_a_type_that_cannot_fit(kind: t.FeatureType, value: Any):
    with pytest.raises(t.TypeMismatch):
        kind.python(value)


MISFITS: list[tuple[t.FeatureType, Any]] = [
    (t.Int32, 2**31),
    (t.Int32, -(2**31) - 1),
    (t.Int64, 2**63),
    (t.Int64, 1.5),
    (t.Int64, math.nan),
    (t.Int64, math.inf),
    (t.Int64, 1e300),
    (t.Int64, Decimal("1.5")),
    (t.Int64, Decimal("NaN")),
    (t.Float64, 2**53 + 1),
    (t.Float64, 10**400),
    (t.Float32, 1e39),
    (t.Float32, 3.5e38),
    (t.String, "a\0"),
    (t.String, "\ud83d"),
    (t.Timestamp, pd.NaT),
    (t.Timestamp, dt.datetime(1, 1, 1, tzinfo=INDIA)),
    (t.Timestamp, dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-1)))),
    (t.Decimal(5, 2), Decimal("1.234")),
    (t.Decimal(5, 2), Decimal("1000")),
    (t.Decimal(5, 2), 1000),
    (t.Decimal(5, 2), Decimal("Infinity")),
    (t.Decimal(5, 2), Decimal("NaN")),
    (t.Decimal(38, 10), Decimal(10) ** 28),
    (t.Json, math.nan),
    (t.Json, [math.inf]),
    (t.Json, {"a": {1: 2}}),
    (t.Json, "\0"),
    (t.Json, {"\0": 1}),
    (t.Json, ["\udc00"]),
    (t.Json, {"a": {1, 2}}),
    (t.Json, dt.date(2024, 1, 1)),
    (t.Array(t.Int32), [2**31]),
    (t.Array(t.String), ["\0"]),
]


@pytest.mark.parametrize(("kind", "value"), MISFITS, ids=lambda one: f"{one!r:.40}")
def test_values_that_do_not_fit(kind: t.FeatureType, value: Any):
    with pytest.raises(t.ValueMismatch):
        kind.python(value)


def test_json_that_nests_without_end_is_refused():
    endless: list[Any] = []
    endless.append(endless)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (endless, deep):
        with pytest.raises(t.ValueMismatch):
            t.Json.python(value)


@given(st.integers(-(2**70), 2**70))
def test_an_integer_is_kept_or_refused_but_never_changed(value: int):
    for kind, bits in ((t.Int32, 32), (t.Int64, 64)):
        if -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            assert kind.python(value) == value
        else:
            with pytest.raises(t.ValueMismatch):
                kind.python(value)


@given(st.integers())
def test_an_integer_becomes_a_float_only_where_it_is_equal(value: int):
    try:
        assert t.Float64.python(value) == value
    except t.ValueMismatch:
        assert float(value) != value


@given(st.floats(allow_nan=False))
def test_a_float32_rounds_as_ieee_does(value: float):
    with np.errstate(over="ignore"):
        nearest = np.float64(value).astype(np.float32)
    try:
        assert t.Float32.python(value) == nearest
    except t.ValueMismatch:
        assert np.isinf(nearest)
        assert math.isfinite(value)


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_a_decimal_is_kept_or_refused_but_never_rounded(value: Decimal):
    kind = t.Decimal(12, 4)
    try:
        kept = kind.python(value)
    except t.ValueMismatch:
        assert abs(value) >= 10**8 or value % Decimal("0.0001") != 0
    else:
        assert kept == value
        assert kept.as_tuple().exponent == -4


@given(st.datetimes(timezones=st.timezones() | st.none()))
def test_a_timestamp_is_the_same_moment_in_utc(value: dt.datetime):
    moment = value if value.tzinfo else value.replace(tzinfo=dt.UTC)
    try:
        kept = t.Timestamp.python(value)
    except t.ValueMismatch:
        assert value.year in (1, 9999)
    else:
        assert kept == moment.astimezone(dt.UTC)  # across zones, == knows no repeated hours
        assert kept.tzinfo == dt.UTC
        assert t.from_micros(t.micros(kept)) == kept


# --- JSON -------------------------------------------------------------------------------------

json_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | json_texts,
    lambda inner: st.lists(inner) | st.dictionaries(json_texts, inner),
    max_leaves=20,
)


def as_jsonb(value: Any) -> Any:
    """What PostgreSQL's jsonb gives back: numbers are exact decimals, written out in full."""
    if isinstance(value, Decimal):
        text = format(value, "f")
        return float(text) if "." in text else int(text)
    if isinstance(value, list):
        return [as_jsonb(item) for item in value]
    if isinstance(value, dict):
        return {key: as_jsonb(item) for key, item in value.items()}
    return value


@given(json_values)
def test_json_text_comes_back_equal_through_both_databases(value: Any):
    text = t.dump_json(value)
    text.encode()
    assert json.loads(text) == value
    exact = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    assert as_jsonb(exact) == value


@pytest.mark.parametrize(
    "value", [1e23, 1e22, -1e300, 5e-324, 1.7976931348623157e308, 0.1, -0.0, 1e16], ids=repr
)
def test_json_floats_are_written_without_an_exponent(value: float):
    text = t.dump_json({"1e5": [value, '1e5"']})
    number = text.split("[")[1].split(",")[0]
    assert "e" not in number.lower()
    assert "." in number
    assert json.loads(text) == {"1e5": [value, '1e5"']}


@pytest.mark.parametrize("text", ["", "{", "[NaN]", "Infinity", "{'a': 1}", "[1,]", "[" * 100_000])
def test_text_that_is_no_json_is_refused(text: str):
    with pytest.raises(t.ValueMismatch):
        t.load_json(text)


# --- keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "size"), [("a", 1), ("é", 2), ("\U0001f695", 4), (b"\xff" * 3, 3), ("", 0)], ids=repr
)
def test_the_size_of_a_key_is_counted_in_bytes(value, size: int):
    assert t.key_bytes(value) == size
