"""The wire: each value, answer, definition and error comes back as it went in."""

from __future__ import annotations

import datetime as dt
import json
import math
import struct
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featurestore as fs
from featurestore import wire
from featurestore.types import FeatureType, TypeMismatch, ValueMismatch
from featurestore.wire.text import dumps, loads

UTC = dt.UTC
FIRST = dt.datetime(1, 1, 1, tzinfo=UTC)
LAST = dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
MONEY = fs.Decimal(38, 10)

floats32 = st.floats(width=32, allow_nan=False)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("aé1", max_size=3), inner),
    max_leaves=6,
)

PLAIN: dict[FeatureType, st.SearchStrategy[Any]] = {
    fs.Bool: st.booleans(),
    fs.Int32: st.integers(-(2**31), 2**31 - 1),
    fs.Int64: st.integers(-(2**63), 2**63 - 1),
    fs.Float32: floats32,
    fs.Float64: st.floats(allow_nan=False),
    fs.String: st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    fs.Bytes: st.binary(max_size=20),
    fs.Timestamp: st.datetimes(timezones=st.just(UTC)) | st.sampled_from([FIRST, LAST]),
    fs.Date: st.dates(),
    fs.Decimal(12, 3): st.decimals(-(10**8), 10**8, places=3),
    MONEY: st.sampled_from([Decimal("9" * 28 + "." + "9" * 10), Decimal("-0.0000000001")]),
    fs.Json: json_values.filter(lambda value: value is not None),
}
ARRAYS: dict[FeatureType, st.SearchStrategy[Any]] = {
    fs.Array(kind): st.lists(st.none() | values, max_size=4)
    for kind, values in PLAIN.items()
    if kind != fs.Json
}
KINDS = PLAIN | ARRAYS
COLUMNS = {f"c{number}": kind for number, kind in enumerate(KINDS)}

some_rows = st.lists(
    st.fixed_dictionaries({name: st.none() | KINDS[kind] for name, kind in COLUMNS.items()}),
    max_size=3,
)


def over_the_wire(value: Any) -> Any:
    """``value`` as the other end reads it."""
    return loads(dumps(value))


def same(one: Any, other: Any) -> bool:
    """Equal and of one type all the way down: 1 is not 1.0, nor True."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# --- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(data=st.data())
def test_a_value_comes_back_as_it_went_in(kind: FeatureType, data: st.DataObject):
    value = data.draw(KINDS[kind])
    assert same(wire.decode(kind, over_the_wire(wire.encode(kind, value))), value)


@pytest.mark.parametrize("kind", PLAIN, ids=str)
@given(data=st.data())
def test_a_value_goes_out_the_same_without_its_type(kind: FeatureType, data: st.DataObject):
    """What a client sends, who does not know the types, is read by the server, who does."""
    value = data.draw(PLAIN[kind])
    found = wire.decode(kind, over_the_wire(wire.encode_untyped(value)))
    assert kind.python(found) == value


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (fs.Float64, math.inf, '"Infinity"'),
        (fs.Float32, -math.inf, '"-Infinity"'),
        (fs.Float64, math.nan, '"NaN"'),
        (fs.Array(fs.Float64), [1.0, math.nan, None], '[1.0,"NaN",null]'),
        (fs.Timestamp, FIRST, '"0001-01-01T00:00:00.000000Z"'),
        (fs.Timestamp, LAST, '"9999-12-31T23:59:59.999999Z"'),
        (fs.Date, dt.date(1, 2, 3), '"0001-02-03"'),
        (fs.Bytes, b"\x00\xff", '"AP8="'),
        (fs.Decimal(12, 2), Decimal("12.50"), '"12.50"'),
        (fs.Int64, 2**63 - 1, "9223372036854775807"),
        (fs.Json, {"a": 2**70}, '{"a":1180591620717411303424}'),
        (fs.Json, "NaN", '"NaN"'),
        (fs.String, "é\u2028", '"é\u2028"'),
        (fs.Array(fs.Int64), [], "[]"),
        (fs.Float64, None, "null"),
    ],
)
def test_how_values_look(kind: FeatureType, value: Any, text: str):
    assert dumps(wire.encode(kind, value)).decode() == text
    found = wire.decode(kind, loads(text.encode()))
    assert found == value or str(found) == str(value)  # NaN is not equal to itself


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        (fs.Timestamp, "2024-03-31T02:30:00+02:00", dt.datetime(2024, 3, 31, 0, 30, tzinfo=UTC)),
        (fs.Timestamp, "2024-03-31T00:30:00", dt.datetime(2024, 3, 31, 0, 30, tzinfo=UTC)),
        (fs.Timestamp, "2024-03-31 00:30Z", dt.datetime(2024, 3, 31, 0, 30, tzinfo=UTC)),
        (fs.Decimal(12, 2), 7, 7),
        (fs.Float64, 7, 7),
    ],
)
def test_other_ways_to_write_a_value_are_read(kind: FeatureType, value: Any, read: Any):
    assert same(wire.decode(kind, value), read)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (fs.Timestamp, "yesterday"),
        (fs.Timestamp, "2024-02-30T00:00:00Z"),
        (fs.Timestamp, "0001-01-01T00:00:00+01:00"),
        (fs.Date, "2024-13-01"),
        (fs.Bytes, "no base64!"),
        (fs.Bytes, "é"),
        (fs.Decimal(12, 2), "a lot"),
        (fs.Array(fs.Date), ["2024-01-01", "?"]),
    ],
)
def test_text_that_cannot_be_read_is_named(kind: FeatureType, value: Any):
    with pytest.raises(ValueMismatch):
        wire.decode(kind, value)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("value", [True, 7, 1.5, "text", [1], {"a": 1}, ["é"], "é"], ids=repr)
def test_a_value_of_another_type_is_left_to_the_checks_of_all_input(kind, value):
    try:
        found = wire.decode(kind, value)
    except ValueMismatch:
        return
    if isinstance(value, bool | int | float | dict):
        assert same(found, value)


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(2**53 + 1), 2**53 + 1),
        (np.bool_(True), True),
        (np.str_("é"), "é"),
        (np.array([1.5, math.nan]), [1.5, "NaN"]),
        (np.datetime64("1969-12-31T23:59:59.999999999", "ns"), "1969-12-31T23:59:59.999999Z"),
        (pd.Timestamp(-1, unit="ns", tz="UTC"), "1969-12-31T23:59:59.999999Z"),
        (pd.NaT, None),
        (pd.NA, None),
        (fs.Status.PRESENT, "PRESENT"),
        (Decimal("7.00"), 7),
        (Decimal("7.50"), "7.50"),
        (Decimal("1E+30"), "1E+30"),
        (Decimal("NaN"), "NaN"),
        pytest.param(memoryview(b"a"), "YQ==", id="memoryview"),
        ((1, None, "a"), [1, None, "a"]),
        ([[1], {"a": None}], [[1], {"a": None}]),
    ],
    ids=repr,
)
def test_values_of_other_libraries_are_sent_as_what_they_are(value: Any, sent: Any):
    found = wire.encode_untyped(value)
    assert same(over_the_wire(found), sent)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({1, 2}, TypeMismatch),
        pytest.param(object(), TypeMismatch, id="object"),
        (dt.timedelta(1), TypeMismatch),
        ("\ud800", ValueMismatch),
        ({"a": math.nan}, ValueMismatch),
        ([{"a": b""}], ValueMismatch),
        ({1: 2}, ValueMismatch),
    ],
    ids=repr,
)
def test_what_has_no_form_is_refused(value: Any, error: type[Exception]):
    with pytest.raises(error):
        wire.encode_untyped(value)


# --- text -------------------------------------------------------------------------------------


@given(json_values)
def test_text_is_exact_and_is_what_the_standard_library_reads(value: Any):
    text = dumps(value)
    assert same(loads(text), value)
    assert same(json.loads(text), value)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"NaN", b"[1e999999999999999999999]", b"[18446744073709551616, NaN]", b"\xff"],
)
def test_what_is_no_json_is_a_value_error(text: bytes):
    with pytest.raises(ValueError):
        loads(text)


@pytest.mark.parametrize("digits", ["1", "123456789012345678901"])
def test_deep_nesting_is_refused_and_not_followed(digits: str):
    with pytest.raises(ValueError):
        loads(b"[" * 100_000 + digits.encode() + b"]" * 100_000)


# --- rows -------------------------------------------------------------------------------------


@given(some_rows)
def test_rows_come_back_as_they_went_in(rows: list[dict[str, Any]]):
    sent = [{name: wire.encode(COLUMNS[name], row[name]) for name in row} for row in rows]
    assert same(wire.decode_rows(over_the_wire(sent), COLUMNS, "the rows"), rows)


def test_rows_keep_what_is_not_known_and_miss_what_is_missing():
    rows = [{"when": "2024-01-01", "more": "2024-01-01"}, {}]
    found = wire.decode_rows(rows, {"when": fs.Date}, "the rows")
    assert found == [{"when": dt.date(2024, 1, 1), "more": "2024-01-01"}, {}]
    assert rows[0]["when"] == "2024-01-01"


def test_all_rows_that_cannot_be_read_are_counted():
    rows = [{"when": "2024-01-01"}, {"when": "?", "data": "?"}, *[{"when": ""}] * 20]
    with pytest.raises(fs.InvalidRowsError) as caught:
        wire.decode_rows(rows, {"when": fs.Date, "data": fs.Bytes}, "the rows")
    assert caught.value.count == 21
    assert caught.value.rows[0].row == 1
    assert "when '?' is no ISO 8601 date; data '?' is no base64" in caught.value.rows[0].reason


@pytest.mark.parametrize("rows", [{"a": 1}, "rows", 5, None, [1], [["a"]], [None]], ids=repr)
def test_what_are_no_rows_is_a_mismatch(rows: Any):
    with pytest.raises(fs.SchemaMismatchError):
        wire.decode_rows(rows, {"a": fs.Int64}, "the rows")


def test_the_columns_of_a_view_have_its_types():
    assert wire.view_types(VIEW) == {
        "driver_id": fs.Int64,
        "day": fs.Date,
        "known_at": fs.Timestamp,
        "made_at": fs.Timestamp,
        "rate": fs.Float64,
        "note": fs.Json,
    }


# --- answers ----------------------------------------------------------------------------------


def vectors(rows: list[dict[str, Any]], views: int = 2) -> fs.OnlineFeatures:
    """An answer with those values, the first column its key."""
    key, *names = COLUMNS
    kinds = list(fs.Status)
    return fs.OnlineFeatures(
        {key: COLUMNS[key]},
        {name: COLUMNS[name] for name in names},
        [{key: row[key]} for row in rows],
        [{name: row[name] for name in names} for row in rows],
        [
            {name: kinds[(number + at) % 4] for at, name in enumerate(names)}
            for number in range(len(rows))
        ],
        [
            {f"v{at}": (None, FIRST, LAST)[(number + at) % 3] for at in range(views)}
            for number in range(len(rows))
        ],
    )


def check_same_answer(found: fs.OnlineFeatures, answer: fs.OnlineFeatures) -> None:
    assert found == answer
    assert list(found.key_types) == list(answer.key_types)
    assert same(found.to_dicts(), answer.to_dicts())
    assert [list(row) for row in found.to_dicts()] == [list(row) for row in answer.to_dicts()]
    assert len(found) == len(answer)
    assert all(type(one) is fs.Status for row in found.statuses for one in row.values())
    assert found.to_arrow().equals(answer.to_arrow(), check_metadata=True)


@given(some_rows)
def test_vectors_come_back_as_they_went_in_by_json(rows: list[dict[str, Any]]):
    answer = vectors(rows)
    check_same_answer(wire.decode_online(over_the_wire(wire.encode_online(answer))), answer)


@given(some_rows)
def test_vectors_come_back_as_they_went_in_by_arrow(rows: list[dict[str, Any]]):
    answer = vectors(rows)
    sent = wire.write_stream(wire.online_table(answer))
    check_same_answer(wire.online_from_table(wire.read_stream(sent)), answer)


def test_nan_comes_back_as_nan():
    answer = fs.OnlineFeatures(
        {"id": fs.Int64},
        {"x": fs.Float32, "xs": fs.Array(fs.Float64)},
        [{"id": 1}],
        [{"x": math.nan, "xs": [math.nan, 1.0]}],
        [{"x": fs.Status.PRESENT, "xs": fs.Status.PRESENT}],
        [{"v": None}],
    )
    by_json = wire.decode_online(over_the_wire(wire.encode_online(answer)))
    table = wire.read_stream(wire.write_stream(wire.online_table(answer)))
    for found in (by_json, wire.online_from_table(table)):
        (row,) = found.to_dicts()
        assert math.isnan(row["x"])
        assert math.isnan(row["xs"][0])


def test_how_an_answer_looks():
    answer = fs.OnlineFeatures(
        {"id": fs.Int64},
        {"x": fs.Float64, "at": fs.Timestamp},
        [{"id": 1}, {"id": 2}],
        [{"x": 0.5, "at": FIRST}, {"x": None, "at": None}],
        [
            {"x": fs.Status.PRESENT, "at": fs.Status.PRESENT},
            {"x": fs.Status.NOT_FOUND, "at": fs.Status.NOT_FOUND},
        ],
        [{"v": LAST}, {"v": None}],
    )
    assert over_the_wire(wire.encode_online(answer)) == {
        "keys": {"id": "int64"},
        "features": {"x": "float64", "at": "timestamp"},
        "rows": [[1, 0.5, "0001-01-01T00:00:00.000000Z"], [2, None, None]],
        "statuses": [["PRESENT", "PRESENT"], ["NOT_FOUND", "NOT_FOUND"]],
        "event_timestamps": {"v": ["9999-12-31T23:59:59.999999Z", None]},
    }
    assert wire.online_table(answer).column_names == [
        *("id", "x", "at", "__status__x", "__status__at", "__event_time__v"),
    ]


def test_a_view_without_keys_and_an_answer_without_rows():
    for rows in (0, 2):
        answer = fs.OnlineFeatures(
            {},
            {"x": fs.Int64},
            [{}] * rows,
            [{"x": 1}] * rows,
            [{"x": fs.Status.PRESENT}] * rows,
            [{"v": None}] * rows,
        )
        check_same_answer(wire.decode_online(over_the_wire(wire.encode_online(answer))), answer)
        check_same_answer(wire.online_from_table(wire.online_table(answer)), answer)


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        "text",
        None,
        {"keys": {}, "features": {}},
        {
            "keys": {"id": "int65"},
            "features": {},
            "rows": [],
            "statuses": [],
            "event_timestamps": {},
        },
        {
            "keys": {"id": "int64"},
            "features": {"x": "int64"},
            "rows": [[1]],
            "statuses": [["PRESENT"]],
            "event_timestamps": {"v": [None]},
        },
        {
            "keys": {},
            "features": {"x": "int64"},
            "rows": [[1]],
            "statuses": [["LOST"]],
            "event_timestamps": {},
        },
        {
            "keys": {},
            "features": {"x": "int64"},
            "rows": [[1], [2]],
            "statuses": [["PRESENT"]],
            "event_timestamps": {},
        },
    ],
    ids=repr,
)
def test_what_is_no_answer_is_not_ours(data: Any):
    with pytest.raises(wire.NotOurs):
        wire.decode_online(data)


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"a": [1]}),
        wire.online_table(vectors([])).drop_columns(["c3"]),
        wire.online_table(vectors([])).set_column(0, "c0", pa.nulls(0)),
    ],
    ids=["without metadata", "without a column", "with another type"],
)
def test_what_is_no_table_of_ours_is_not_ours(table: pa.Table):
    with pytest.raises(wire.NotOurs):
        wire.online_from_table(table)


def test_a_training_set_comes_back_as_it_went_in():
    table = pa.table({"driver_id": pa.array([1, 2], pa.int16()), "x": [0.5, None]})
    for given_table in (table, table.replace_schema_metadata({"mine": "kept"})):
        training = fs.TrainingSet(given_table, {"stats": 0.5, "other": 1.0})
        sent = wire.read_stream(wire.write_stream(wire.training_table(training)))
        found = wire.training_from_table(sent)
        assert found.table.equals(given_table, check_metadata=True)
        assert found.match_rate == training.match_rate
    with pytest.raises(wire.NotOurs):
        wire.training_from_table(table)


def test_a_training_set_as_json():
    table = pa.table(
        {
            "driver_id": pa.array([1, 2], pa.int16()),
            "kind": pa.array(["a", None]).dictionary_encode(),
            "at": pa.array([FIRST, LAST], pa.timestamp("us", "UTC")),
            "x": pa.array([math.nan, None], pa.float64()),
            "doc": ['{"a": [1]}', None],
        }
    )
    types = {"x": fs.Float64, "doc": fs.Json, "at": fs.Timestamp}
    found = wire.encode_training(fs.TrainingSet(table, {"stats": 0.5}), types)
    assert over_the_wire(found) == {
        "columns": {
            "driver_id": "int16",
            "kind": "dictionary<values=string, indices=int32, ordered=0>",
            "at": "timestamp",
            "x": "float64",
            "doc": "json",
        },
        "rows": [
            [1, "a", "0001-01-01T00:00:00.000000Z", "NaN", {"a": [1]}],
            [2, None, "9999-12-31T23:59:59.999999Z", None, None],
        ],
        "match_rate": {"stats": 0.5},
    }


def test_a_push_report_comes_back_as_it_went_in():
    report = fs.PushReport("stats", 2**60, 5, 1)
    assert wire.decode_push(over_the_wire(wire.encode_push(report))) == report
    with pytest.raises(wire.NotOurs):
        wire.decode_push({"view": "stats"})


# --- Arrow streams ----------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"rows", b"<html>", b"\xff\xff\xff\xff" * 4])
def test_what_is_no_stream_is_a_mismatch(data: bytes):
    with pytest.raises(fs.SchemaMismatchError, match="no Arrow stream"):
        wire.read_stream(data)


def test_a_stream_cut_short_is_a_mismatch():
    whole = wire.write_stream(pa.table({"a": list(range(1000))}))
    with pytest.raises(fs.SchemaMismatchError):
        wire.read_stream(whole[: len(whole) // 2])


def test_a_stream_whose_arrays_point_elsewhere_is_a_mismatch():
    """Read as it is, it would show what else is in memory."""
    offsets = struct.pack("<iii", 0, 5, 12)
    whole = wire.write_stream(pa.table({"a": ["x" * 5, "y" * 7]}))
    assert whole.count(offsets) == 1
    broken = whole.replace(offsets, struct.pack("<iii", 0, 5, 1 << 20))
    with pytest.raises(fs.SchemaMismatchError):
        wire.read_stream(broken)


# --- definitions ------------------------------------------------------------------------------

DRIVER = fs.Entity("driver", {"driver_id": fs.Int64, "day": fs.Date}, "who", {"a": "é"}, "me")
VIEW = fs.FeatureView(
    "stats",
    entities=[DRIVER],
    fields=[fs.Field("rate", fs.Float64, "a share", {"x": "y"}), fs.Field("note", fs.Json)],
    timestamp_field="known_at",
    created_timestamp_field="made_at",
    ttl=dt.timedelta(days=30, microseconds=1),
    source=fs.ParquetSource(["data/*.parquet", "s3://bucket/key"], field_mapping={"r": "rate"}),
    online=False,
    description="how they drive",
    tags={"b": ""},
    owner="team",
)
GLOBAL = fs.FeatureView(
    "weather", entities=[], fields=[fs.Field("t", fs.Decimal(5, 2))], timestamp_field="at"
)
EVERY_TYPE = fs.FeatureView(
    "every_type",
    entities=[DRIVER],
    fields=[fs.Field(name, kind) for name, kind in COLUMNS.items()],
    timestamp_field="at",
    ttl=dt.timedelta.max,
)
SERVICE = fs.FeatureService(
    "eta",
    features=[
        VIEW[["rate"]],
        VIEW.with_name("other").with_join_key_map({"driver_id": "second_driver"}),
        GLOBAL,
    ],
    description="arrival",
    tags={"model": "1"},
    owner="me",
)


def test_definitions_come_back_equal():
    assert wire.decode_entity(over_the_wire(wire.encode_entity(DRIVER))) == DRIVER
    for view in (VIEW, GLOBAL, EVERY_TYPE):
        found = wire.decode_view(over_the_wire(wire.encode_view(view)))
        assert found == view
        assert list(found.join_keys) == list(view.join_keys)
    assert wire.decode_service(over_the_wire(wire.encode_service(SERVICE))) == SERVICE


def test_what_is_secret_in_a_source_stays_with_the_store():
    source = fs.ParquetSource("https://me:word@host/x.parquet?signature=word")
    view = fs.FeatureView("v", [], [fs.Field("x", fs.Int64)], "at", source=source)
    sent = dumps(wire.encode_view(view))
    assert b"word" not in sent
    found = wire.decode_view(loads(sent)).source
    assert found is not None
    assert found.paths == ("https://host/x.parquet?signature=***",)


# --- errors -----------------------------------------------------------------------------------

ERRORS: list[tuple[fs.FeatureStoreError, int]] = [
    (fs.DefinitionError("no"), 400),
    (fs.NotFoundError("no view", name="stat", candidates=["stats"]), 404),
    (fs.SchemaMismatchError("no column"), 422),
    (fs.InvalidRowsError("the rows", [fs.InvalidRow(3, "is null")], count=7), 422),
    (fs.SourceError("no stream"), 422),
    (fs.MigrationRequiredError("migrate"), 503),
    (fs.StoreUnavailableError("gone"), 503),
    (fs.OverloadedError("later"), 503),
    (fs.FeatureStoreError("something"), 500),
]


@pytest.mark.parametrize(("error", "status"), ERRORS, ids=lambda one: type(one).__name__)
def test_errors_come_back_as_they_went_in(error: fs.FeatureStoreError, status: int):
    assert wire.status_of(error) == status
    found = wire.decode_error(over_the_wire(wire.encode_error(error)))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


def test_every_error_of_the_tree_has_a_status():
    kinds = {getattr(fs, name) for name in fs.__all__ if name.endswith("Error")}
    assert {type(error) for error, _ in ERRORS} == kinds


def test_a_private_error_is_sent_as_the_public_one_that_it_is():
    class Special(fs.StoreUnavailableError):
        pass

    assert wire.status_of(Special("x")) == 503
    assert wire.encode_error(Special("x"))["error"]["type"] == "StoreUnavailableError"


def test_an_error_of_a_newer_server_is_still_an_error():
    found = wire.decode_error({"error": {"type": "NewError", "message": "what it says"}})
    assert type(found) is fs.FeatureStoreError
    assert str(found) == "what it says"


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"error": "text"},
        {"detail": "Not Found"},
        {"error": {"type": "NotFoundError"}},
        {"error": {"type": 1, "message": "x"}},
        {"error": {"type": "InvalidRowsError", "message": "x", "rows": [1]}},
    ],
    ids=repr,
)
def test_what_is_no_error_of_ours_is_told_apart(data: Any):
    with pytest.raises(wire.NotOurs):
        wire.decode_error(data)
