"""What input a view takes: casts where every value fits, and nothing else."""

from __future__ import annotations

import datetime as dt
import math
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from builders import UTC, Cases, driver_stats, hour, parquet, stats, table_of, write_parquet

import featurestore as fs
from featurestore.types import FeatureType

THING = fs.Entity("thing", join_keys={"id": fs.Int64})


def view_of(fields: Mapping[str, FeatureType], name: str = "casts", **more: Any) -> fs.FeatureView:
    return fs.FeatureView(
        name,
        entities=[THING],
        fields=[fs.Field(field, kind) for field, kind in fields.items()],
        timestamp_field="event_timestamp",
        **more,
    )


def field_of(kind: FeatureType) -> str:
    """A field's name for a type: array(decimal(5,2)) gives of_array_decimal_5_2."""
    words = "".join(letter if letter.isalnum() else " " for letter in kind.name).split()
    return "_".join(["of", *words])


def view_of_kinds(kinds: Iterable[FeatureType]) -> fs.FeatureView:
    """A view with a field for each of the types."""
    return view_of({field_of(kind): kind for kind in kinds})


def alone(view: fs.FeatureView, field: str, column: pa.Array) -> pa.Table:
    """A table for ``view`` in which ``field`` has ``column`` and the others have nulls."""
    nulls = {other.name: pa.nulls(len(column)) for other in view.fields}
    return with_keys(nulls | {field: column}, len(column))


def with_keys(columns: Mapping[str, Any], count: int) -> pa.Table:
    times = pa.array([hour(0)] * count, fs.Timestamp.arrow)
    return pa.table({"id": range(count), "event_timestamp": times, **columns})


async def values_of(store: fs.FeatureStore, view: fs.FeatureView, count: int) -> dict[str, list]:
    answer = await store.get_online_features([view], [{"id": number} for number in range(count)])
    rows = answer.to_dicts()
    return {field.name: [row[field.name] for row in rows] for field in view.fields}


# --- what fits --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fits:
    """A column of three values that a field takes, and what it gives back."""

    field: FeatureType
    column: pa.Array
    back: list[Any]


def ints(kind: pa.DataType, *values: int | None) -> pa.Array:
    return pa.array(values, kind)


def moments(kind: pa.DataType, *ticks: int | None) -> pa.Array:
    return pa.array(ticks, pa.int64()).cast(kind)


def f32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


EPOCH = dt.datetime(1970, 1, 1, tzinfo=UTC)
TICK = dt.timedelta(microseconds=1)

FITTING: dict[str, Fits] = {
    "int8_int32": Fits(fs.Int32, ints(pa.int8(), -128, None, 127), [-128, None, 127]),
    "uint16_int32": Fits(fs.Int32, ints(pa.uint16(), 0, None, 65535), [0, None, 65535]),
    "int64_int32": Fits(fs.Int32, ints(pa.int64(), -(2**31), None, 7), [-(2**31), None, 7]),
    "uint32_int64": Fits(fs.Int64, ints(pa.uint32(), 0, None, 2**32 - 1), [0, None, 2**32 - 1]),
    "uint64_int64": Fits(fs.Int64, ints(pa.uint64(), 0, None, 2**63 - 1), [0, None, 2**63 - 1]),
    "double_int64": Fits(fs.Int64, pa.array([-0.0, None, 2.0**53]), [0, None, 2**53]),
    "double_int32": Fits(fs.Int32, pa.array([-5.0, None, 5.0]), [-5, None, 5]),
    "float_int32": Fits(fs.Int32, pa.array([-5.0, None, 2.0**24], pa.float32()), [-5, None, 2**24]),
    "int8_float64": Fits(fs.Float64, ints(pa.int8(), -1, None, 1), [-1.0, None, 1.0]),
    "int64_float64": Fits(
        fs.Float64, ints(pa.int64(), 2**53, None, 2**60), [2.0**53, None, 2.0**60]
    ),
    "uint64_float64": Fits(fs.Float64, ints(pa.uint64(), 2**63, None, 0), [2.0**63, None, 0.0]),
    "float_float64": Fits(
        fs.Float64, pa.array([0.5, None, math.inf], pa.float32()), [0.5, None, math.inf]
    ),
    "half_float64": Fits(
        fs.Float64,
        pa.array([np.float16(0.5), None, np.float16(-2)], pa.float16()),
        [0.5, None, -2.0],
    ),
    "double_float32": Fits(fs.Float32, pa.array([0.1, None, 1e-60]), [f32(0.1), None, 0.0]),
    "dictionary_string": Fits(
        fs.String, pa.array(["a", None, ""]).dictionary_encode(), ["a", None, ""]
    ),
    "large_string": Fits(
        fs.String, pa.array(["a", None, "é"], pa.large_string()), ["a", None, "é"]
    ),
    "string_view": Fits(
        fs.String, pa.array(["a", None, "x" * 20], pa.string_view()), ["a", None, "x" * 20]
    ),
    "large_binary": Fits(
        fs.Bytes, pa.array([b"a", None, b""], pa.large_binary()), [b"a", None, b""]
    ),
    "fixed_binary": Fits(
        fs.Bytes, pa.array([b"ab", None, b"\0\0"], pa.binary(2)), [b"ab", None, b"\0\0"]
    ),
    "dictionary_int": Fits(fs.Int64, pa.array([5, None, 6]).dictionary_encode(), [5, None, 6]),
    "seconds": Fits(
        fs.Timestamp,
        moments(pa.timestamp("s"), 0, None, -1),
        [EPOCH, None, EPOCH - dt.timedelta(seconds=1)],
    ),
    "millis": Fits(
        fs.Timestamp,
        moments(pa.timestamp("ms", "UTC"), 0, None, 1),
        [EPOCH, None, EPOCH + 1000 * TICK],
    ),
    "zoned": Fits(
        fs.Timestamp,
        moments(pa.timestamp("us", "Asia/Kolkata"), 0, None, 1),
        [EPOCH, None, EPOCH + TICK],
    ),
    "nanos": Fits(
        fs.Timestamp,
        moments(pa.timestamp("ns"), 1999, None, -1),
        [EPOCH + TICK, None, EPOCH - TICK],
    ),
    "nanos_zoned": Fits(
        fs.Timestamp,
        moments(pa.timestamp("ns", "America/New_York"), 999, None, -1001),
        [EPOCH, None, EPOCH - 2 * TICK],
    ),
    "decimals": Fits(
        fs.Decimal(12, 4),
        pa.array([Decimal("1.50"), None, Decimal("-9.99")], pa.decimal128(5, 2)),
        [Decimal("1.5"), None, Decimal("-9.99")],
    ),
    "decimals_narrower": Fits(
        fs.Decimal(4, 1),
        pa.array([Decimal("1.50"), None, Decimal("999.9")], pa.decimal128(20, 6)),
        [Decimal("1.5"), None, Decimal("999.9")],
    ),
    "decimal256": Fits(
        fs.Decimal(5, 2),
        pa.array([Decimal("1.5"), None, Decimal("-999.99")], pa.decimal256(50, 9)),
        [Decimal("1.5"), None, Decimal("-999.99")],
    ),
    "large_list": Fits(
        fs.Array(fs.Int64),
        pa.array([[1, None], None, []], pa.large_list(pa.int8())),
        [[1, None], None, []],
    ),
    "fixed_list": Fits(
        fs.Array(fs.Float64),
        pa.array([[1, 2], None, [3, None]], pa.list_(pa.float32(), 2)),
        [[1.0, 2.0], None, [3.0, None]],
    ),
    "list_of_dictionary": Fits(
        fs.Array(fs.String),
        pa.array([["a"], None, [None]], pa.list_(pa.large_string())),
        [["a"], None, [None]],
    ),
    "list_of_nanos": Fits(
        fs.Array(fs.Timestamp),
        pa.array([[-1, 1000], None, [None]], pa.list_(pa.int64())).cast(
            pa.list_(pa.timestamp("ns"))
        ),
        [[EPOCH - TICK, EPOCH + TICK], None, [None]],
    ),
    "nulls_int": Fits(fs.Int32, pa.nulls(3), [None] * 3),
    "nulls_string": Fits(fs.String, pa.nulls(3), [None] * 3),
    "nulls_array": Fits(fs.Array(fs.Bool), pa.nulls(3), [None] * 3),
    "large_json": Fits(
        fs.Json, pa.array(["[1]", None, '"a"'], pa.large_string()), [[1], None, "a"]
    ),
}

FITTING_VIEW = view_of({name: case.field for name, case in FITTING.items()})
FITTING_TABLE = with_keys({name: case.column for name, case in FITTING.items()}, 3)
BACK = {name: case.back for name, case in FITTING.items()}


async def test_columns_that_fit_are_cast(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([FITTING_VIEW])
    one_by_one = pa.Table.from_batches(FITTING_TABLE.to_batches(1))
    path = write_parquet(tmp_path / "casts.parquet", FITTING_TABLE, row_group_size=2)
    ways = {
        "push": lambda: store.push("casts", FITTING_TABLE),
        "ingest": lambda: store.ingest("casts", FITTING_TABLE),
        "batches": lambda: store.ingest("casts", one_by_one),
        "parquet": lambda: store.ingest("casts", path),
    }
    with Cases() as cases:
        for way, call in ways.items():
            with cases.case(way):
                await call()
                found = await values_of(store, FITTING_VIEW, 3)
                assert {name: found[name] for name in BACK if found[name] != BACK[name]} == {}


async def test_keys_and_times_are_cast_as_features_are(store: fs.FeatureStore):
    view = driver_stats(created_timestamp_field="created")
    await store.apply([view])
    columns = {
        "driver_id": pa.array([7], pa.uint8()),
        "event_timestamp": moments(pa.timestamp("ns", "Asia/Kolkata"), -1),
        "created": moments(pa.timestamp("s"), 0),
        "conv_rate": pa.array([1]),
        "trips": pa.array([2.0]),
    }
    await store.ingest("driver_stats", pa.table(columns))
    answer = await store.get_online_features([view], [{"driver_id": 7}])
    assert answer.to_dicts() == [{"driver_id": 7, "conv_rate": 1.0, "trips": 2}]
    assert answer.event_timestamps == [{"driver_stats": EPOCH - TICK}]


PYTHON_FITTING: list[tuple[FeatureType, Any, Any]] = [
    (fs.Int32, 5.0, 5),
    (fs.Int64, np.int8(5), 5),
    (fs.Int64, Decimal(7), 7),
    (fs.Float64, 5, 5.0),
    (fs.Float64, np.float32(0.5), 0.5),
    (fs.Float32, 0.1, f32(0.1)),
    (fs.Bool, np.True_, True),
    (fs.Decimal(5, 2), 7, Decimal(7)),
    (fs.Timestamp, dt.datetime(1970, 1, 1), EPOCH),
    (fs.Timestamp, dt.datetime(1970, 1, 1, 5, tzinfo=dt.timezone(dt.timedelta(hours=5))), EPOCH),
    (fs.Timestamp, pd.Timestamp(-1, unit="ns", tz="UTC"), EPOCH - TICK),
    (fs.Timestamp, np.datetime64(-1, "ns"), EPOCH - TICK),
    (fs.Bytes, bytearray(b"a"), b"a"),
    (fs.Array(fs.Int64), (1, None, 2.0), [1, None, 2]),
    (fs.Array(fs.Float64), np.array([1.5, 2.5]), [1.5, 2.5]),
    (fs.Json, (1, 2), [1, 2]),
]


async def test_python_values_that_fit_are_taken(store: fs.FeatureStore):
    view = view_of({f"f{number}": kind for number, (kind, *_) in enumerate(PYTHON_FITTING)})
    await store.apply([view])
    row = {f"f{number}": value for number, (_, value, _) in enumerate(PYTHON_FITTING)}
    await store.push("casts", [{"id": 0, "event_timestamp": hour(0)} | row])
    found = await values_of(store, view, 1)
    assert found == {f"f{number}": [back] for number, (*_, back) in enumerate(PYTHON_FITTING)}


STATS = table_of(driver_stats(), [stats(1, hour(0), 0.5, 3), stats(2, hour(0), None, 4)])
LIBRARIES: dict[str, Callable[[], Any]] = {
    "pandas": STATS.to_pandas,
    "polars": lambda: pl.from_arrow(STATS),
    "record batch": lambda: STATS.to_batches()[0],
    "reader": STATS.to_reader,
}


async def test_any_arrow_compatible_table_is_taken(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    with Cases() as cases:
        for library, make in LIBRARIES.items():
            with cases.case(library):
                await store.push("driver_stats", make())
                await store.ingest("driver_stats", make())
    repository = store.repository("driver_stats")
    found = [await repository.history(driver_id=number) for number in (1, 2)]
    assert [table["trips"].to_pylist() for table in found] == [[3] * 8, [4] * 8]
    assert [table["conv_rate"].to_pylist() for table in found] == [[0.5] * 8, [None] * 8]


# --- what does not fit ------------------------------------------------------------------------

WRONG_TYPES: list[tuple[FeatureType, pa.Array]] = [
    (fs.Int64, pa.array([True, None])),
    (fs.Float64, pa.array([True, None])),
    (fs.Decimal(5, 2), pa.array([True, None])),
    (fs.Bool, pa.array([1, 0])),
    (fs.Int32, pa.array(["1", None])),
    (fs.Float64, pa.array(["1.5", None])),
    (fs.Decimal(5, 2), pa.array(["1.5", None])),
    (fs.Int64, pa.array(["1", None]).dictionary_encode()),
    (fs.String, pa.array([1, None])),
    (fs.String, pa.array([1.5, None])),
    (fs.String, pa.array([[b"a"], None])),
    (fs.Timestamp, pa.array(["2024-01-01", None])),
    (fs.Timestamp, pa.array([1, None])),
    (fs.Timestamp, pa.array([1, None], pa.time64("us"))),
    (fs.Int64, pa.array([1, None], pa.timestamp("us"))),
    (fs.Int64, pa.array([1, None], pa.duration("us"))),
    (fs.Date, pa.array(["2024-01-01", None])),
    (fs.Date, pa.array([1, None])),
    (fs.Array(fs.Int64), pa.array([1, None])),
    (fs.Array(fs.Int64), pa.array([["1"], None])),
    (fs.Array(fs.Int64), pa.array([[True], None])),
    (fs.Array(fs.Int64), pa.array([[[1]], None])),
    (fs.Int64, pa.array([[1], None])),
    (fs.Float64, pa.array([{"a": 1.0}, None])),
    (fs.Json, pa.array([1, None])),
]


async def test_a_type_that_cannot_fit_is_a_schema_mismatch(store: fs.FeatureStore, tmp_path: Path):
    view = view_of_kinds(kind for kind, _ in WRONG_TYPES)
    await store.apply([view])
    with Cases() as cases:
        for kind, column in WRONG_TYPES:
            table = alone(view, field_of(kind), column)
            for way, call in ways_in(store, view, table, tmp_path).items():
                with cases.case(way, column.type, kind):
                    with pytest.raises(fs.SchemaMismatchError, match=view.name) as caught:
                        await call()
                    text = str(caught.value)
                    assert field_of(kind) in text
                    assert kind.name in text.lower()
                    assert spelling(column.type, way) in text
    assert await store.repository(view.name).count() == 0
    assert await store.loads() == []


def ways_in(
    store: fs.FeatureStore, view: fs.FeatureView, table: pa.Table, folder: Path
) -> dict[str, Callable[[], Awaitable[Any]]]:
    """The calls that take Arrow or Parquet."""
    path = write_parquet(folder / f"{view.name}.parquet", table, row_group_size=1)
    return {
        "push": lambda: store.push(view.name, table),
        "ingest": lambda: store.ingest(view.name, table),
        "parquet": lambda: store.ingest(view.name, path),
    }


def spelling(kind: pa.DataType, way: str) -> str:
    """How an error may spell the type of a column, by its beginning."""
    if pa.types.is_duration(kind) and way == "parquet":
        return "int64"  # Parquet has no durations
    if pa.types.is_dictionary(kind):
        return "string"
    return str(kind).split("<")[0]


WRONG_VALUES: dict[str, tuple[FeatureType, pa.Array]] = {
    "too large": (fs.Int32, pa.array([1, 2**31, 2])),
    "too small": (fs.Int32, pa.array([1, -(2**31) - 1, 2])),
    "unsigned": (fs.Int64, pa.array([1, 2**63, 2], pa.uint64())),
    "fraction": (fs.Int64, pa.array([1.0, 1.5, 2.0])),
    "nan for a number": (fs.Int64, pa.array([1.0, math.nan, 2.0])),
    "infinity for a number": (fs.Int32, pa.array([1.0, math.inf, 2.0])),
    "too large a float": (fs.Int64, pa.array([1.0, 2.0**63, 2.0])),
    "inexact float": (fs.Float64, pa.array([1, 2**53 + 1, 2])),
    "over float32": (fs.Float32, pa.array([1.0, 1e39, 2.0])),
    "too many digits": (fs.Decimal(4, 2), pa.array([Decimal("1.00"), Decimal("100.00"), None])),
    "too fine": (fs.Decimal(4, 1), pa.array([Decimal("1.00"), Decimal("1.25"), None])),
    "year 10000": (fs.Timestamp, moments(pa.timestamp("s"), 0, 253402300800, None)),
    "year 0": (fs.Timestamp, moments(pa.timestamp("ms"), 0, -62135596800001, None)),
    "date in year 10000": (fs.Date, pa.array([0, 2932897, None], pa.int32()).cast(pa.date32())),
    "date in year 0": (fs.Date, pa.array([0, -719163, None], pa.int32()).cast(pa.date32())),
    "nul": (fs.String, pa.array(["a", "a\0b", None])),
    "nul in an array": (fs.Array(fs.String), pa.array([["a"], [None, "a\0b"], None])),
    "value in an array": (fs.Array(fs.Int32), pa.array([[1], [None, 2**31], None])),
    "year in an array": (
        fs.Array(fs.Timestamp),
        pa.array([[0], [None, 253402300800], None]).cast(pa.list_(pa.timestamp("s"))),
    ),
    "not json": (fs.Json, pa.array(["1", "{", None])),
    "json with nan": (fs.Json, pa.array(["1", "[NaN]", None])),
    "json with infinity": (fs.Json, pa.array(["1", "-Infinity", None])),
    "json with nul": (fs.Json, pa.array(["1", '{"a\\u0000": 1}', None])),
    "json with half a pair": (fs.Json, pa.array(["1", '["\\ud83d"]', None])),
    "empty json": (fs.Json, pa.array(["1", "", None])),
    "not utf-8": (fs.String, pa.array([b"a", b"\xff", None], pa.binary()).view(pa.string())),
    "a lone surrogate": (
        fs.String,
        pa.array([b"a", b"\xed\xa0\x80", None], pa.binary()).view(pa.string()),
    ),
}


async def test_a_value_that_does_not_fit_is_an_invalid_row(store: fs.FeatureStore, tmp_path: Path):
    view = view_of_kinds(kind for kind, _ in WRONG_VALUES.values())
    await store.apply([view])
    with Cases() as cases:
        for story, (kind, column) in WRONG_VALUES.items():
            table = alone(view, field_of(kind), column)
            for way, call in ways_in(store, view, table, tmp_path).items():
                with cases.case(story, way):
                    with pytest.raises(fs.InvalidRowsError, match=field_of(kind)) as caught:
                        await call()
                    assert [row.row for row in caught.value.rows] == [1]
                    assert caught.value.count == 1
    assert await store.repository(view.name).count() == 0
    assert await store.loads() == []


PYTHON_WRONG_TYPES: list[tuple[FeatureType, Any]] = [
    (fs.Int64, True),
    (fs.Float64, False),
    (fs.Bool, 1),
    (fs.Bool, "true"),
    (fs.Int64, "1"),
    (fs.Float64, "1.5"),
    (fs.String, 1),
    (fs.String, b"a"),
    (fs.Bytes, "a"),
    (fs.Timestamp, "2024-01-01"),
    (fs.Timestamp, dt.date(2024, 1, 1)),
    (fs.Date, dt.datetime(2024, 1, 1)),
    (fs.Decimal(5, 2), "1.5"),
    (fs.Array(fs.Int64), 1),
    (fs.Array(fs.Int64), ["1"]),
    (fs.Array(fs.String), "abc"),
]
PYTHON_WRONG_VALUES: list[tuple[FeatureType, Any]] = [
    (fs.Int32, 2**31),
    (fs.Int64, 2**63),
    (fs.Int64, 1.5),
    (fs.Int64, math.nan),
    (fs.Float64, 2**53 + 1),
    (fs.Float64, 10**400),
    (fs.Float32, 1e39),
    (fs.Decimal(5, 2), Decimal("1.234")),
    (fs.Decimal(5, 2), Decimal("NaN")),
    (fs.String, "a\0b"),
    (fs.String, "\ud83d"),
    (fs.Timestamp, dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1)))),
    (fs.Array(fs.Int32), [1, 2**31]),
    (fs.Array(fs.String), ["a", "\0"]),
    (fs.Json, {"a": math.nan}),
    (fs.Json, "\0"),
    (fs.Json, ["\udc00"]),
    (fs.Json, {1: 2}),
]


async def test_pushed_values_that_do_not_fit(store: fs.FeatureStore):
    tried = [(fs.SchemaMismatchError, *case) for case in PYTHON_WRONG_TYPES]
    tried += [(fs.InvalidRowsError, *case) for case in PYTHON_WRONG_VALUES]
    view = view_of_kinds(kind for _, kind, _ in tried)
    await store.apply([view])
    good = {"id": 0, "event_timestamp": hour(0)} | dict.fromkeys(view.types)
    with Cases() as cases:
        for error, kind, value in tried:
            with cases.case(kind, f"{value!r:.40}"):
                with pytest.raises(error, match=field_of(kind)) as caught:
                    await store.push(view.name, [good, good | {field_of(kind): value}])
                if isinstance(caught.value, fs.InvalidRowsError):
                    assert [row.row for row in caught.value.rows] == [1]
    assert await store.repository(view.name).count() == 0
    assert await store.loads() == []


# --- columns ----------------------------------------------------------------------------------


async def test_extra_columns_of_a_file_or_table_are_ignored(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([driver_stats()])
    table = table_of(driver_stats(), [stats(1, hour(0), trips=5)])
    odd = {
        "struct": pa.array([{"a": 1}]),
        "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        "Driver_ID": pa.array([99]),
        "": pa.array(["no name"]),
        "bad": pa.array(["a\0b"]),
    }
    for name, column in odd.items():
        table = table.append_column(name, column)
    await store.push("driver_stats", table)
    await store.ingest("driver_stats", table)
    await store.ingest("driver_stats", write_parquet(tmp_path / "wide.parquet", table))
    assert await store.repository("driver_stats").count() == 3
    assert (await store.repository("driver_stats").get(driver_id=1))["trips"] == 5


async def test_columns_may_stand_in_any_order(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([driver_stats()])
    table = table_of(driver_stats(), [stats(1, hour(0), 0.5, 5)])
    turned = table.select(table.column_names[::-1])
    await store.ingest("driver_stats", turned)
    await store.ingest("driver_stats", write_parquet(tmp_path / "turned.parquet", turned))
    history = await store.repository("driver_stats").history(driver_id=1)
    assert (
        history.select(["conv_rate", "trips"]).to_pylist() == [{"conv_rate": 0.5, "trips": 5}] * 2
    )


async def test_a_missing_column_is_a_schema_mismatch(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([driver_stats()])
    with Cases() as cases:
        for column in ("driver_id", "event_timestamp", "trips"):
            short = {name: value for name, value in stats(1, hour(0)).items() if name != column}
            table = table_of(driver_stats(), [stats(1, hour(0))]).drop_columns([column])
            calls = ways_in(store, driver_stats(), table, tmp_path) | {
                "row": lambda short=short: store.push("driver_stats", [short]),
                "second row": lambda short=short: store.push(
                    "driver_stats", [stats(2, hour(0)), short]
                ),
            }
            for way, call in calls.items():
                with cases.case(way, column), pytest.raises(fs.SchemaMismatchError, match=column):
                    await call()
            path = tmp_path / "driver_stats.parquet"
            with pytest.raises(fs.SchemaMismatchError, match=column):
                await store.ingest("driver_stats", path, on_invalid="quarantine")
    assert await store.repository("driver_stats").count() == 0
    assert await store.loads() == []


async def test_an_unknown_name_in_a_pushed_mapping_is_a_schema_mismatch(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    rows = [stats(1, hour(0)), stats(2, hour(0), trip=5)]
    with pytest.raises(fs.SchemaMismatchError, match="trip"):
        await store.push("driver_stats", rows)
    assert await store.repository("driver_stats").count() == 0


MAPPED = driver_stats(
    created_timestamp_field="created",
    source=fs.ParquetSource(
        "unused.parquet",
        field_mapping={
            "DriverId": "driver_id",
            "ts": "event_timestamp",
            "ct": "created",
            "Conv Rate": "conv_rate",
        },
    ),
)


def foreign_table(driver: int) -> pa.Table:
    """A row of ``MAPPED`` under the names of its source."""
    row = stats(driver, hour(0), 0.25, 5, created=hour(1))
    names = {new: old for old, new in MAPPED.source.field_mapping.items()}
    table = table_of(MAPPED, [row])
    return table.rename_columns([names.get(name, name) for name in table.column_names])


async def test_field_mapping_applies_to_all_parquet_read_for_the_view(
    store: fs.FeatureStore, tmp_path: Path
):
    await store.apply([MAPPED])
    write_parquet(tmp_path / "a.parquet", foreign_table(1))
    write_parquet(tmp_path / "b.parquet", foreign_table(2))
    await store.ingest("driver_stats", tmp_path / "a.parquet")
    await store.ingest("driver_stats", str(tmp_path / "*.parquet"))
    rows = await store.repository("driver_stats").get_many([{"driver_id": 1}, {"driver_id": 2}])
    assert [(row["conv_rate"], row["trips"]) for row in rows] == [(0.25, 5)] * 2


async def test_field_mapping_never_applies_to_arrow_objects_or_pushed_rows(
    store: fs.FeatureStore,
):
    await store.apply([MAPPED])
    for call in (store.ingest, store.push):
        with pytest.raises(fs.SchemaMismatchError):
            await call("driver_stats", foreign_table(1))
    with pytest.raises(fs.SchemaMismatchError):
        await store.push("driver_stats", foreign_table(1).to_pylist())
    plain = stats(1, hour(0), 0.25, 5, created=None)
    await store.push("driver_stats", [plain])
    await store.ingest("driver_stats", table_of(MAPPED, [plain]))
    assert await store.repository("driver_stats").count() == 2


async def test_a_source_of_its_own_is_read_when_none_is_given(
    store: fs.FeatureStore, tmp_path: Path
):
    path = parquet(tmp_path, driver_stats(), [stats(1, hour(0), trips=4)])
    view = driver_stats(source=fs.ParquetSource(path))
    await store.apply([view, driver_stats("sourceless")])
    report = await store.ingest("driver_stats")
    assert report.rows_written == 1
    assert (await store.repository("driver_stats").get(driver_id=1))["trips"] == 4
    with pytest.raises(fs.FeatureStoreError, match="sourceless"):
        await store.ingest("sourceless")
