"""Each value comes back as it went in, by every way in and every way out."""

from __future__ import annotations

import datetime as dt
import json
import math
import struct
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from builders import UTC, Cases, ago, entity_rows, hour, parquet, scanned, table_of, write
from strategies import WAYS

import featurestore as fs
from featurestore.types import FeatureType

MONEY = fs.Decimal(38, 10)
MOST_MONEY = Decimal("9999999999999999999999999999.9999999999")
FIRST = dt.datetime(1, 1, 1, tzinfo=UTC)
LAST = dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)

VALUES: dict[FeatureType, list[Any]] = {
    fs.Bool: [True, False],
    fs.Int32: [0, 1, -1, 2**31 - 1, -(2**31)],
    fs.Int64: [0, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)],
    fs.Float32: [0.1, 0.0, 16777216.0, math.inf, -math.inf, 1.401298464324817e-45, -3.4028235e38],
    fs.Float64: [0.1, 1e23, 2.0**53 + 2, math.inf, -math.inf, 5e-324, 1.7976931348623157e308],
    fs.String: [
        "",
        " ",
        "a\tb\nc\rd\\e",
        "NULL",
        "\\N",
        "{\"},'--",
        "é",
        "e\u0301",
        "\u202eabc\ufeff",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0010ffff",
        "\x01\x7f\x80\uffff",
        "x" * 5000,
    ],
    fs.Bytes: [b"", b"\x00", b"\xff\x00\\x", bytes(range(256))],
    fs.Timestamp: [
        FIRST,
        dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        dt.datetime(1970, 1, 1, tzinfo=UTC),
        dt.datetime(2024, 3, 31, 1, 30, 0, 1, tzinfo=UTC),
        LAST,
    ],
    fs.Date: [dt.date.min, dt.date(1582, 10, 10), dt.date(1969, 12, 31), dt.date.max],
    fs.Decimal(5, 0): [Decimal(0), Decimal(99999), Decimal(-99999)],
    fs.Decimal(4, 4): [Decimal("0.0001"), Decimal("-0.9999")],
    MONEY: [
        Decimal(0),
        Decimal("0.0000000001"),
        Decimal("-1.5"),
        MOST_MONEY,
        MOST_MONEY.copy_negate(),
    ],
    fs.Json: [
        {},
        [],
        "a string",
        "",
        '{"not": "parsed"}',
        True,
        0,
        -1.5,
        1e23,
        1.7976931348623157e308,
        5e-324,
        2**70,
        {"a": [1, {"b": None}, "\U0001f695"], "": {"c": 1e23}, "é": "1e5", "'": '"\\'},
        [[[[]]], None, False],
    ],
}
ARRAYS = {
    fs.Array(item): [[], [None], values, [values[0], None, values[-1]], values[:1]]
    for item, values in VALUES.items()
    if item != fs.Json
}
TYPES = VALUES | ARRAYS


def field_name(kind: FeatureType) -> str:
    """A field's name for a type: array(decimal(5,0)) gives a_array_decimal_5_0."""
    words = "".join(letter if letter.isalnum() else " " for letter in kind.name).split()
    return "_".join(["a", *words])


FIELDS = {field_name(kind): kind for kind in TYPES}
EVERYTHING = fs.FeatureView(
    "everything",
    entities=[fs.Entity("thing", join_keys={"id": fs.Int64})],
    fields=[fs.Field(name, kind) for name, kind in FIELDS.items()],
    timestamp_field="event_timestamp",
)
EVERY = ["everything:*"]


def rows_of_everything() -> list[dict[str, Any]]:
    """Row n holds the n-th value of each type, and null where a type has fewer."""
    length = max(map(len, TYPES.values())) + 1  # the last row is all null
    return [
        {"id": number, "event_timestamp": hour(0)}
        | {
            name: TYPES[kind][number] if number < len(TYPES[kind]) else None
            for name, kind in FIELDS.items()
        }
        for number in range(length)
    ]


def expected(kind: FeatureType, value: Any) -> Any:
    """``value`` as a field of ``kind`` gives it back: Float32 rounds."""
    if isinstance(value, list) and kind in ARRAYS:
        return [expected(kind.item, item) for item in value]
    if kind == fs.Float32 and value is not None:
        return struct.unpack("f", struct.pack("f", value))[0]
    return value


def same(left: Any, right: Any) -> bool:
    """Equality that tells 1 from True, text from bytes and a datetime with a zone from one without.

    A number in a Json value may come back as an int or a float, as long as it is equal.
    """
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    if isinstance(left, dt.datetime) and isinstance(right, dt.datetime):
        return left == right and right.utcoffset() == dt.timedelta(0)
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right
    return type(left) is type(right) and left == right


def differences(
    rows: list[Mapping[str, Any]], found: list[Mapping[str, Any]], *, text: bool
) -> list[str]:
    """Cells of ``found`` that are not what ``rows`` put in; ``text``: Json is its text there."""
    assert len(found) == len(rows)
    wrong = []
    for row, answer in zip(rows, found, strict=True):
        for name, kind in FIELDS.items():
            want, got = expected(kind, row[name]), answer[name]
            if text and kind == fs.Json and got is not None:
                got = json.loads(got)
            if not same(want, got):
                wrong.append(f"row {row['id']} {name}: wanted {want!r:.80}, got {got!r:.80}")
    return wrong


async def all_ways_out(
    store: fs.FeatureStore, count: int
) -> dict[tuple[str, bool], list[dict[str, Any]]]:
    """The rows 0 to ``count`` by every way out; the flag says whether Json comes as text."""
    keys = [{"id": number} for number in range(count)]
    repository = store.repository("everything")
    answer = await store.get_online_features(["everything:*"], keys)
    entities = entity_rows(*[(number, hour(1)) for number in range(count)], key="id")
    history = [(await repository.history(id=number)).to_pylist() for number in range(count)]
    assert [len(rows) for rows in history] == [1] * count
    streamed = store.stream_historical_features(entities, ["everything:*"])
    found = await store.get_historical_features(entities, [EVERYTHING])
    return {
        ("get_online_features to dicts", False): answer.to_dicts(),
        ("get_online_features to Arrow", True): answer.to_arrow().to_pylist(),
        ("get", False): [await repository.get(**key) for key in keys],
        ("get_many", False): list(await repository.get_many(keys)),
        ("history", True): [rows[0] for rows in history],
        ("scan", True): sorted(await scanned(repository), key=lambda row: row["id"]),
        ("training set", True): found.to_arrow().to_pylist(),
        ("training stream", True): [row async for batch in streamed for row in batch.to_pylist()],
    }


@pytest.mark.parametrize("way", WAYS)
async def test_every_value_of_every_type_by_every_way(
    store: fs.FeatureStore, tmp_path: Path, way: str
):
    await store.apply([EVERYTHING])
    rows = rows_of_everything()
    await write(store, EVERYTHING, rows, way, tmp_path)
    with Cases() as cases:
        for (out, text), found in (await all_ways_out(store, len(rows))).items():
            with cases.case(out):
                assert differences(rows, found, text=text) == []


async def test_what_was_written_in_a_transaction_comes_back_the_same(
    store: fs.FeatureStore, tmp_path: Path
):
    await store.apply([EVERYTHING])
    rows = rows_of_everything()
    half = len(rows) // 2
    async with store.transaction() as tx:
        await tx.push("everything", rows[:half])
        await tx.ingest("everything", parquet(tmp_path, EVERYTHING, rows[half:]))
    with Cases() as cases:
        for (out, text), found in (await all_ways_out(store, len(rows))).items():
            with cases.case(out):
                assert differences(rows, found, text=text) == []


async def test_arrow_ways_out_have_the_types_of_the_view(store: fs.FeatureStore):
    await store.apply([EVERYTHING])
    wanted = {name: kind.arrow for name, kind in FIELDS.items()}
    repository = store.repository("everything")
    rows = rows_of_everything()
    for filled in (False, True):
        if filled:
            await store.push("everything", rows)
        found = await store.get_historical_features(entity_rows((1, hour(1)), key="id"), EVERY)
        tables: list[Any] = [
            (await store.get_online_features(EVERY, [{"id": 1}])).to_arrow(),
            await repository.history(id=1),
            found.to_arrow(),
            *[batch async for batch in repository.scan()],
        ]
        for table in tables:
            assert {name: table.schema.field(name).type for name in FIELDS} == wanted


FLOATS = fs.FeatureView(
    "floats",
    entities=[fs.Entity("thing", join_keys={"id": fs.Int64})],
    fields=[
        fs.Field("wide", fs.Float64),
        fs.Field("narrow", fs.Float32),
        fs.Field("many", fs.Array(fs.Float64)),
    ],
    timestamp_field="event_timestamp",
)


@pytest.mark.parametrize("way", WAYS)
async def test_nan_is_kept_but_for_columns_of_sqlite_which_store_null(
    store: fs.FeatureStore, tmp_path: Path, way: str
):
    await store.apply([FLOATS])
    nan = math.nan
    row = {"id": 1, "event_timestamp": hour(0), "wide": nan, "narrow": nan, "many": [1.0, nan]}
    await write(store, FLOATS, [row], way, tmp_path)
    kept = None if store.engine.dialect.name == "sqlite" else nan
    want = {"wide": kept, "narrow": kept, "many": [1.0, nan]}
    answer = await store.get_online_features(["floats:*"], [{"id": 1}])
    history = await store.repository("floats").history(id=1)
    found = await store.get_historical_features(entity_rows((1, hour(1)), key="id"), [FLOATS])
    for rows in (answer.to_dicts(), history.to_pylist(), found.to_arrow().to_pylist()):
        assert same(want, {name: rows[0][name] for name in want})


JSON = fs.FeatureView(
    "documents",
    entities=[fs.Entity("thing", join_keys={"id": fs.Int64})],
    fields=[fs.Field("document", fs.Json)],
    timestamp_field="event_timestamp",
)


async def test_json_in_an_arrow_column_is_its_text(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([JSON])
    texts = ['{"b": 1, "a": 1E23}', '"text"', " [ 1 , 2 ] ", "null", None, '{"k":1,"k":2}', "12345"]
    table = pa.table(
        {
            "id": range(len(texts)),
            "event_timestamp": pa.array([hour(0)] * len(texts)),
            "document": texts,
        }
    )
    wanted = [None if text is None else json.loads(text) for text in texts]
    keys = [{"id": number} for number in range(len(texts))]
    await store.ingest("documents", table)
    answer = await store.get_online_features(["documents:document"], keys)
    assert [row["document"] for row in answer.to_dicts()] == wanted


async def test_a_pushed_str_is_a_json_string(store: fs.FeatureStore):
    await store.apply([JSON])
    values = ["[1]", "null", "", {"a": "[1]"}, [1]]
    await store.push(
        "documents",
        [
            {"id": number, "event_timestamp": hour(0), "document": value}
            for number, value in enumerate(values)
        ],
    )
    answer = await store.get_online_features(["documents:*"], [{"id": n} for n in range(5)])
    assert [row["document"] for row in answer.to_dicts()] == values


# --- keys -------------------------------------------------------------------------------------

KEYS: dict[FeatureType, list[Any]] = {
    fs.Bool: [True, False],
    fs.Int32: VALUES[fs.Int32],
    fs.Int64: VALUES[fs.Int64],
    fs.String: [
        *(text for text in VALUES[fs.String] if len(text) < 1000),
        "a",
        "A",
        "a ",
        "é" * 500,
    ],
    fs.Bytes: [*VALUES[fs.Bytes], b"a", b"A", b"\xff" * 1000],
    fs.Date: VALUES[fs.Date],
    fs.Timestamp: VALUES[fs.Timestamp],
    MONEY: VALUES[MONEY],
}


def keyed_view(kind: FeatureType) -> fs.FeatureView:
    name = field_name(kind)
    return fs.FeatureView(
        f"by{name}",
        entities=[fs.Entity(f"thing{name}", join_keys={"key": kind})],
        fields=[fs.Field("number", fs.Int32)],
        timestamp_field="event_timestamp",
    )


@pytest.mark.parametrize("way", WAYS)
async def test_every_type_of_key_finds_its_own_row_everywhere(
    store: fs.FeatureStore, tmp_path: Path, way: str
):
    views = {kind: keyed_view(kind) for kind in KEYS}
    await store.apply(list(views.values()))
    with Cases() as cases:
        for kind, view in views.items():
            with cases.case(kind):
                await check_keys(store, view, KEYS[kind], way, tmp_path)


async def check_keys(
    store: fs.FeatureStore, view: fs.FeatureView, keys: list[Any], way: str, folder: Path
) -> None:
    """Write a row for each key, and find each by its own key wherever one can be given."""
    rows = [
        {"key": key, "event_timestamp": hour(0), "number": number}
        for number, key in enumerate(keys)
    ]
    wanted = list(range(len(keys)))
    await write(store, view, rows, way, folder)
    repository = store.repository(view.name)
    asked = [{"key": key} for key in keys]

    answer = await store.get_online_features([view], asked)
    assert answer.to_dicts() == [{"key": key, "number": n} for n, key in enumerate(keys)]
    assert answer.to_arrow()["key"].to_pylist() == keys
    assert [row["number"] for row in await repository.get_many(asked)] == wanted

    entities = table_of(view, [{"key": key, "event_timestamp": hour(1)} for key in keys])
    found = await store.get_historical_features(entities.drop_columns(["number"]), [view])
    assert found.to_arrow()["number"].to_pylist() == wanted
    assert found.to_arrow()["key"].to_pylist() == keys

    scan = sorted(await scanned(repository), key=lambda row: row["number"])
    assert all(same(row["key"], key) for row, key in zip(scan, keys, strict=True))
    for number, key in list(enumerate(keys))[-3:]:
        assert (await repository.history(key=key))["number"].to_pylist() == [number]

    await repository.delete(key=keys[0])
    left = [row and row["number"] for row in await repository.get_many(asked)]
    assert left == [None, *wanted[1:]]
    assert await repository.count() == len(keys) - 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_composite_key_of_every_type(store: fs.FeatureStore, tmp_path: Path, way: str):
    names = {field_name(kind): kind for kind in KEYS}
    view = fs.FeatureView(
        "composite",
        entities=[fs.Entity("all_of_it", join_keys=names)],
        fields=[fs.Field("number", fs.Int32)],
        timestamp_field="event_timestamp",
    )
    await store.apply([view])
    first = {name: KEYS[kind][0] for name, kind in names.items()}
    # Each further key differs from the first in one part alone.
    others = {name: KEYS[kind][-1] for name, kind in names.items()}
    others |= {field_name(fs.String): "other", field_name(fs.Bytes): b"other"}  # short ones
    keys = [first, *(first | {name: other} for name, other in others.items())]
    rows = [
        key | {"event_timestamp": ago(hours=1), "number": number} for number, key in enumerate(keys)
    ]
    await write(store, view, rows, way, tmp_path)
    answer = await store.get_online_features([view], keys)
    assert answer.to_dicts() == [key | {"number": number} for number, key in enumerate(keys)]
    entities = table_of(view, [key | {"event_timestamp": ago()} for key in keys])
    found = await store.get_historical_features(entities.drop_columns(["number"]), [view])
    assert found.to_arrow()["number"].to_pylist() == list(range(len(keys)))
    assert await store.repository("composite").count() == len(keys)
