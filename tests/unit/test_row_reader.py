"""Pushed rows that are read the fast way are those that fit, and come out the same."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import zoneinfo
from collections import UserDict, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

import featurestore as fs
from featurestore.ingest.conform import conform_rows
from featurestore.ingest.layout import Layout
from featurestore.ingest.read import RowReader
from featurestore.types import FeatureType

AT = dt.datetime(2024, 5, 6, 7, 8, 9, 123_456, tzinfo=dt.UTC)
ZONE = zoneinfo.ZoneInfo("Asia/Kolkata")


class Colour(enum.StrEnum):
    RED = "red"


KINDS: list[FeatureType] = [
    fs.Bool,
    fs.Int32,
    fs.Int64,
    fs.Float32,
    fs.Float64,
    fs.String,
    fs.Bytes,
    fs.Timestamp,
    fs.Date,
    fs.Json,
    fs.Decimal(8, 2),
    fs.Array(fs.Int64),
    fs.Array(fs.String),
]

VALUES: list[Any] = [
    None, True, False, 0, -1, 2**31 - 1, 2**31, 2**53 + 1, 2**63, -(2**63), 0.0, -0.0, 0.1, 1.0,
    1e300, float("inf"), "", "text", "é\U0010ffff", "a\0b", "\ud83d", "3", Colour.RED, b"", b"\xff",
    bytearray(b"x"), AT, AT.replace(tzinfo=None), AT.astimezone(ZONE), dt.datetime.max,
    dt.datetime.min.replace(tzinfo=ZONE), dt.date(9999, 12, 31), decimal.Decimal("1.50"),
    decimal.Decimal("1.555"), decimal.Decimal("NaN"), [], [1, None], ["a", None], (1,), [1.5],
    {"a": [1]}, {1: 2}, np.int64(7), np.float32(0.1), np.bool_(True), np.str_("x"),
    np.datetime64("2024-01-01"),
    pd.Timestamp(AT), pd.NaT, pd.NA, object(),
]  # fmt: skip


def view(kind: FeatureType, **changes: Any) -> fs.FeatureView:
    options: dict[str, Any] = {
        "entities": [fs.Entity("thing", join_keys={"id": fs.Int64})],
        "fields": [fs.Field("value", kind)],
        "timestamp_field": "at",
    }
    return fs.FeatureView("things", **(options | changes))


def slowly(layout: Layout, rows: list[Any]) -> list[tuple[Any, ...]] | None:
    """The same rows the way that decides: None where not all of them fit."""
    try:
        conformed = conform_rows(rows, layout)
    except fs.SchemaMismatchError:
        return None
    if conformed.rejected:
        return None
    return list(zip(*(column.to_pylist() for column in conformed.batch.columns), strict=True))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_it_takes_fits_and_comes_out_the_same(kind: FeatureType):
    layout = Layout(view(kind))
    reader = RowReader(layout)
    taken = 0
    for value in VALUES:
        row = {"id": 1, "at": AT, "value": value}
        read, decided = reader.read([row]), slowly(layout, [row])
        if read is None:
            # It may refuse what fits, but nothing of the plain kind.
            assert decided is None or type(value).__module__.startswith("pandas"), repr(value)
            continue
        assert decided == read, repr(value)
        assert [type(one) for one in decided[0]] == [type(one) for one in read[0]], repr(value)
        taken += 1
    assert taken >= 2


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"id": 1, "at": AT},
        {"id": 1, "at": AT, "value": 1, "more": 2},
        {"id": 1, "at": AT, "valeu": 1},
        {"id": None, "at": AT, "value": 1},
        {"id": 1, "at": None, "value": 1},
        defaultdict(int, {"id": 1, "at": AT, "valeu": 1}),
        ["id", "at", "value"],
        None,
    ],
)
def test_rows_with_missing_or_unknown_names_are_left_to_the_other_way(row: Any):
    layout = Layout(view(fs.Int64))
    before = dict(row) if isinstance(row, Mapping) else row
    assert RowReader(layout).read([{"id": 1, "at": AT, "value": 1}, row]) is None
    assert slowly(layout, [{"id": 1, "at": AT, "value": 1}, row]) is None
    assert row == before, "the caller's own mapping was changed"


def test_any_mapping_is_read_and_names_stand_in_any_order():
    reader = RowReader(Layout(view(fs.Int64)))
    rows = [UserDict({"value": 3, "at": AT, "id": 1}), {"at": AT, "id": 2, "value": None}]
    assert reader.read(rows) == [(1, AT, 3), (2, AT, None)]
    assert list(reader.columns) == ["id", "__event_time", "value"]


def test_the_created_time_may_be_missing_row_by_row():
    reader = RowReader(Layout(view(fs.Int64, created_timestamp_field="made")))
    rows: list[dict[str, Any]] = [
        {"id": 1, "at": AT, "made": AT, "value": 1},
        {"id": 1, "at": AT, "value": 2},
        {"id": 1, "at": AT, "made": None, "value": 3},
    ]
    assert reader.read(rows) == [(1, AT, AT, 1), (1, AT, None, 2), (1, AT, None, 3)]
    assert reader.read([{"id": 1, "at": AT, "made": AT}]) is None


@pytest.mark.parametrize(
    ("sizes", "fits"),
    [
        ((1000, 1000, 400), True),
        ((1000, 1000, 401), False),
        ((1001, 0, 0), False),
        ((800, 800, 800), True),
        ((900, 900, 900), False),
    ],
)
def test_keys_are_as_long_as_an_index_holds(sizes: tuple[int, int, int], fits: bool):
    entity = fs.Entity("thing", join_keys=dict.fromkeys(("a", "b", "c"), fs.String))
    layout = Layout(view(fs.Int64, entities=[entity]))
    for letter in "aé":
        keys = (letter * (size // len(letter.encode())) for size in sizes)
        row = {**dict(zip("abc", keys, strict=True)), "at": AT, "value": 1}
        if letter == "é" and any(size % 2 for size in sizes):
            continue
        assert (RowReader(layout).read([row]) is not None) == fits
        assert (slowly(layout, [row]) is not None) == fits


def test_the_size_of_rows_is_about_what_they_hold():
    reader = RowReader(Layout(view(fs.Array(fs.String))))
    rows = reader.read([{"id": 1, "at": AT, "value": ["x" * 1000, None]}] * 10)
    assert rows is not None
    assert 10_000 <= reader.size(rows) <= 12_000
    plain = RowReader(Layout(view(fs.Float64)))
    rows = plain.read([{"id": 1, "at": AT, "value": None}] * 10)
    assert rows is not None
    assert 100 <= plain.size(rows) <= 1_000
