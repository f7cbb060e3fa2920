"""Text and JSON into values of a view's types, and back."""

from __future__ import annotations

import datetime as dt
import json
import math
from decimal import Decimal
from typing import Any

import pytest

from featurestore import types
from featurestore.cli import values

MOMENT = dt.datetime(2024, 1, 31, 12, 30, 0, 123456, tzinfo=dt.UTC)

ROUND_TRIPS: list[tuple[types.FeatureType, Any]] = [
    (types.Bool, True),
    (types.Int32, -7),
    (types.Int64, 2**53 + 1),
    (types.Float64, 0.1),
    (types.Float64, math.inf),
    (types.Float64, -math.inf),
    (types.Float32, 0.5),
    (types.String, "NaN"),
    (types.String, "2024-01-31"),
    (types.String, ""),
    (types.Bytes, b""),
    (types.Bytes, bytes(range(256))),
    (types.Timestamp, MOMENT),
    (types.Timestamp, dt.datetime(1, 1, 1, tzinfo=dt.UTC)),
    (types.Date, dt.date(9999, 12, 31)),
    (types.Decimal(38, 10), Decimal("1234567890123456789012345678.0123456789")),
    (types.Decimal(10, 2), Decimal("1.50")),
    (types.Json, {"a": [1, 2.5, None, "NaN"], "b": "2024-01-31"}),
    (types.Json, "text"),
    (types.Array(types.Timestamp), [MOMENT, None]),
    (types.Array(types.Decimal(5, 2)), [Decimal("1.10"), None]),
    (types.Array(types.Bytes), [b"\x00", None]),
    (types.Array(types.String), []),
]


def read(kind: types.FeatureType, text: str) -> Any:
    """What a push would make of JSON `text` for a column of `kind`."""
    row = values.read_json_row({"x": values.parse_json(text)}, {"x": values.json_reader(kind)})
    return row["x"]


@pytest.mark.parametrize(("kind", "value"), ROUND_TRIPS, ids=lambda one: str(one)[:30])
def test_what_is_printed_as_json_reads_back_the_same(kind: types.FeatureType, value: Any) -> None:
    text = json.dumps(values.to_json(value), allow_nan=False)
    assert kind.python(read(kind, text)) == value


@pytest.mark.parametrize(
    "text",
    ['{"a": 1}\n{"a": 2}\n', '{"a": 1} {"a": 2}', '\n{\n  "a": 1\n}\n\n{\r\n "a": 2}'],
)
def test_objects_may_stand_on_lines_or_not(text: str) -> None:
    assert list(values.parse_json_stream(text)) == [{"a": 1}, {"a": 2}]


def test_nan_travels_as_text() -> None:
    text = json.dumps(values.to_json([math.nan]), allow_nan=False)
    assert text == '["NaN"]'
    assert math.isnan(read(types.Array(types.Float64), text)[0])


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ('"2024-01-31T12:30:00.123456Z"', MOMENT),
        ('"2024-01-31 13:30:00.123456+01:00"', MOMENT),
        ('"2024-01-31T12:30:00.123456"', MOMENT),
        ('"2024-01-31T12:30:00.123456789Z"', MOMENT),
        ('"2024-01-31"', dt.datetime(2024, 1, 31, tzinfo=dt.UTC)),
        ("null", None),
    ],
)
def test_times_are_iso_and_utc_without_a_zone(text: str, moment: dt.datetime | None) -> None:
    assert read(types.Timestamp, text) == moment


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1.50", "1.50"),
        ('"1.50"', "1.50"),
        ("7", "7"),
        ("0.1234567890123456789", "0.1234567890123456789"),
    ],
)
def test_decimals_come_through_no_float(text: str, number: str) -> None:
    kind = types.Decimal(30, 20)
    assert kind.python(read(kind, text)) == Decimal(number)


def test_numbers_for_json_and_floats_stay_floats() -> None:
    assert types.Json.python(read(types.Json, '{"a": 1.50}')) == {"a": 1.5}
    assert types.Float64.python(read(types.Float64, "1.50")) == 1.5


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        (types.Timestamp, '"yesterday"', "x: 'yesterday' is no time such as 2024-01-31T12:00:00Z"),
        (types.Date, '"31.1.2024"', "x: '31.1.2024' is no date such as 2024-01-31"),
        (types.Decimal(5, 2), '"1,50"', "x: '1,50' is no decimal such as 1.50"),
        (types.Bytes, '"é"', "x: 'é' is no base64"),
        (types.Array(types.Date), '["x"]', "x: 'x' is no date such as 2024-01-31"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_column(
    kind: types.FeatureType, text: str, reason: str
) -> None:
    with pytest.raises(ValueError) as caught:
        read(kind, text)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("kind", "text", "key"),
    [
        (types.Bool, "True", True),
        (types.Bool, "false", False),
        (types.Int32, "-7", -7),
        (types.Int64, "9007199254740993", 2**53 + 1),
        (types.String, " 007 ", " 007 "),
        (types.Bytes, "AP8=", b"\x00\xff"),
        (types.Date, "2024-01-31", dt.date(2024, 1, 31)),
        (types.Timestamp, "2024-01-31T12:30:00.123456Z", MOMENT),
        (types.Decimal(5, 2), "1.5", Decimal("1.5")),
    ],
)
def test_keys_of_the_command_line(kind: types.FeatureType, text: str, key: Any) -> None:
    found = values.key_reader(kind)(text)
    assert found == key
    assert type(found) is type(key)


@pytest.mark.parametrize("kind", [types.Bool, types.Int32, types.Date, types.Decimal(5, 2)])
def test_keys_that_are_none_are_refused(kind: types.FeatureType) -> None:
    with pytest.raises(ValueError, match="'many' is "):
        values.key_reader(kind)("many")
