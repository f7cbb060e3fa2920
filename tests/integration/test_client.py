"""The client against a real server: what the store says, it says, on both databases."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
from collections.abc import AsyncIterator, Awaitable
from decimal import Decimal
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import pytest_asyncio
from served import served

import featurestore as fs
from featurestore.client import AsyncClient, Client
from featurestore.client import calls as calls_module
from featurestore.types import FeatureType

NOW = dt.datetime.now(dt.UTC)
HOUR = dt.timedelta(hours=1)
FIRST = dt.datetime(1, 1, 1, tzinfo=dt.UTC)
LAST = dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC)

VALUES: dict[FeatureType, list[Any]] = {
    fs.Bool: [True, False],
    fs.Int32: [2**31 - 1, -(2**31)],
    fs.Int64: [2**53 + 1, 2**63 - 1, -(2**63)],
    fs.Float32: [0.1, math.inf, -math.inf],
    fs.Float64: [0.1, 1e23, 5e-324, math.inf, 2.0],
    fs.String: ["", "NaN", "2024-01-01", "\u202e\U0001f695", "AP8="],
    fs.Bytes: [b"", b"\x00\xff", b"abcd"],
    fs.Timestamp: [FIRST, NOW, LAST],
    fs.Date: [dt.date.min, dt.date.max],
    fs.Decimal(12, 2): [Decimal("12.50"), Decimal(7), Decimal("-0.01")],
    fs.Json: [{"a": [1, None, 2**70, 1e23]}, "NaN", [], [1.5], "2024-01-01T00:00:00Z", True],
    fs.Array(fs.Float64): [[], [None, math.inf, 0.1]],
    fs.Array(fs.Timestamp): [[FIRST, None, LAST]],
    fs.Array(fs.Bytes): [[b"", None]],
    fs.Array(fs.Decimal(5, 2)): [[Decimal("1.5"), None]],
}
FIELDS = {f"f{number}": kind for number, kind in enumerate(VALUES)}

DRIVER = fs.Entity("driver", {"driver_id": fs.Int64}, description="who drives")
THING = fs.Entity("thing", {"code": fs.Bytes, "day": fs.Date, "name": fs.String})
EVERYTHING = fs.FeatureView(
    "everything",
    entities=[THING],
    fields=[fs.Field(name, kind, tags={"kind": kind.name}) for name, kind in FIELDS.items()],
    timestamp_field="known_at",
    created_timestamp_field="made_at",
    tags={"team": "é"},
)
RATES = fs.FeatureView(
    "rates",
    entities=[DRIVER],
    fields=[fs.Field("rate", fs.Float64), fs.Field("trips", fs.Int32)],
    timestamp_field="known_at",
    ttl=2 * HOUR,
)
OTHER = fs.FeatureView(
    "other",
    entities=[DRIVER],
    fields=[fs.Field("rate", fs.Float32)],
    timestamp_field="known_at",
    source=fs.ParquetSource("data/*.parquet", field_mapping={"r": "rate"}),
)
SERVICE = fs.FeatureService(
    "eta",
    features=[RATES[["trips"]], OTHER.with_name("second").with_join_key_map({"driver_id": "co"})],
)
DEFINITIONS = [EVERYTHING, RATES, OTHER, SERVICE]

both = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)


@pytest_asyncio.fixture
async def url(feature_store: fs.FeatureStore) -> AsyncIterator[str]:
    await feature_store.apply(DEFINITIONS)
    async with served(feature_store) as url:
        yield url


@pytest_asyncio.fixture
async def client(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url) as client:
        yield client


def rates(*given: tuple[int, float | None, dt.timedelta]) -> list[dict[str, Any]]:
    """Rows of ``rates``: driver, rate, how long ago."""
    return [
        {"driver_id": driver, "known_at": NOW - ago, "rate": rate, "trips": driver * 10}
        for driver, rate, ago in given
    ]


def everything() -> list[dict[str, Any]]:
    """Row n has the n-th value of each type."""
    length = max(map(len, VALUES.values())) + 1
    return [
        {
            "code": bytes([number, 255]),
            "day": dt.date(2024, 1, 1 + number),
            "name": f"é{number}",
            "known_at": NOW - number * HOUR,
            "made_at": NOW,
        }
        | {
            name: VALUES[kind][number] if number < len(VALUES[kind]) else None
            for name, kind in FIELDS.items()
        }
        for number in range(length)
    ]


async def outcome(work: Awaitable[Any]) -> Any:
    """What a call gives, or the error that it raises."""
    try:
        return await work
    except fs.FeatureStoreError as error:
        return type(error), str(error), {**vars(error)}


# --- reads and writes -------------------------------------------------------------------------


@both
async def test_every_value_comes_back_as_it_went_in(
    feature_store: fs.FeatureStore, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
):
    rows = everything()
    report = await client.push(EVERYTHING, rows)
    assert (report.view, report.rows_written, report.rows_future) == ("everything", len(rows), 0)
    assert (await feature_store.loads())[-1].load_id == report.load_id
    keys = [{name: row[name] for name in ("code", "day", "name")} for row in rows]
    kept = await feature_store.get_online_features(["everything:*"], keys)
    for row, values in zip(rows, kept.to_dicts(), strict=True):
        for name, kind in FIELDS.items():
            expected = None if row[name] is None else kind.python(row[name])
            assert values[name] == expected, (kind, row[name])
    for threshold in (1_000, 1):  # as JSON, and as Arrow
        monkeypatch.setattr(calls_module, "ARROW_ENTITIES", threshold)
        found = await client.get_online_features(["everything:*"], keys)
        assert type(found).__name__ == ("OnlineFeatures" if threshold > 1 else "ArrowFeatures")
        assert found == kept
        assert found.to_dicts() == kept.to_dicts()
        assert found.to_arrow() == kept.to_arrow()
        pd.testing.assert_frame_equal(found.to_pandas(), kept.to_pandas())


@both
async def test_an_arrow_table_is_pushed_as_it_is(
    feature_store: fs.FeatureStore, client: AsyncClient
):
    rows = everything()
    await feature_store.push(EVERYTHING, rows)
    table = await feature_store.repository("everything").history()
    later = table.set_column(
        table.schema.get_field_index("known_at"),
        "known_at",
        pa.array([one + dt.timedelta(seconds=1) for one in table["known_at"].to_pylist()]),
    )
    report = await client.push("everything", later)
    assert report.rows_written == len(rows)
    assert await feature_store.repository("everything").count() == 2 * len(rows)
    frame = pl.DataFrame(rates((1, 0.5, HOUR), (2, None, HOUR)))
    assert (await client.push("rates", frame)).rows_written == 2
    assert (await client.push("rates", pd.DataFrame(rates((3, 0.5, HOUR))))).rows_written == 1
    assert (await client.repository(RATES).get(driver_id=3)) == {
        "driver_id": 3,
        "rate": 0.5,
        "trips": 30,
    }


@both
async def test_vectors_with_all_statuses_and_times(
    feature_store: fs.FeatureStore, client: AsyncClient
):
    await client.push(RATES, rates((1, 0.5, HOUR), (2, None, HOUR), (3, 0.5, 3 * HOUR)))
    await client.push("other", {"driver_id": 1, "known_at": NOW, "rate": 0.1})
    asked: list[dict[str, Any]] = [
        {"driver_id": number, "co": 1, "more": object()} for number in (1, 2, 3, 4, None, 1)
    ]
    requests: list[tuple[Any, dict[str, Any]]] = [
        (["rates:rate", "rates:trips"], {}),
        (RATES, {}),
        ([RATES[["rate"]], "other:*"], {"full_feature_names": True}),
        ("eta", {}),
        (SERVICE, {"full_feature_names": True}),
        ([SERVICE], {}),
        ("rates:*", {}),
    ]
    for many in (1, 20):
        for features, options in requests:
            found = await client.get_online_features(features, asked * many, **options)
            kept = await feature_store.get_online_features(features, asked * many, **options)
            assert found == kept
            assert found.to_dicts() == kept.to_dicts()
    found = await client.get_online_features("rates:rate", asked)
    assert [row["rate"] for row in found.statuses] == [
        *("PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND", "NOT_FOUND", "PRESENT"),
    ]
    assert found.event_timestamps[2] == {"rates": NOW - 3 * HOUR}


@pytest.mark.parametrize(
    "entities",
    [
        [],
        [{"driver_id": 1}] * 3,
        ({"driver_id": 1},),
        pa.table({"driver_id": [1, 2]}),
        pd.DataFrame({"driver_id": [1, 2]}),
    ],
    ids=["nothing", "a list", "a tuple", "Arrow", "pandas"],
)
async def test_entity_rows_of_any_shape(
    feature_store: fs.FeatureStore, client: AsyncClient, entities: Any
):
    await feature_store.push(RATES, rates((1, 0.5, HOUR)))
    found = await client.get_online_features("rates:*", entities)
    assert found == await feature_store.get_online_features("rates:*", entities)
    assert len(found) == len(entities)


@both
async def test_training_sets_are_those_of_the_store(
    feature_store: fs.FeatureStore, client: AsyncClient
):
    await feature_store.push(RATES, rates((1, 0.5, 5 * HOUR), (1, 0.7, HOUR), (2, 0.1, HOUR)))
    entities: list[Any] = [
        pa.table(
            {
                "label": pa.array([1, 0, 1], pa.int8()),
                "driver_id": pa.array([1, 1, 3], pa.int32()),
                "event_timestamp": [NOW - 4 * HOUR, NOW, NOW],
            }
        ),
        [{"driver_id": 1, "event_timestamp": NOW}],
        pd.DataFrame({"driver_id": [1, 2], "event_timestamp": [NOW, NOW]}, index=[5, 6]),
        pl.DataFrame({"driver_id": [1, 2], "event_timestamp": [NOW, NOW]}),
        [],
    ]
    for table in entities:
        found = await client.get_historical_features(table, ["rates:rate", RATES[["trips"]]])
        kept = await feature_store.get_historical_features(table, ["rates:rate", "rates:trips"])
        assert found.to_arrow().equals(kept.to_arrow(), check_metadata=True)
        assert found.match_rate == kept.match_rate
    other = [{"driver_id": 1, "co": 1, "when": NOW}]
    asked: dict[str, Any] = {"timestamp_column": "when", "full_feature_names": True}
    found = await client.get_historical_features(other, "eta", **asked)
    assert (
        found.to_arrow()
        == (await feature_store.get_historical_features(other, "eta", **asked)).to_arrow()
    )


@both
async def test_many_callers_share_few_connections(
    feature_store: fs.FeatureStore, client: AsyncClient
):
    await feature_store.push(RATES, rates(*[(number, number / 7, HOUR) for number in range(50)]))

    async def one(number: int) -> None:
        found = await client.repository("rates").get(driver_id=number)
        assert found == {"driver_id": number, "rate": number / 7, "trips": number * 10}

    await asyncio.gather(*(one(number % 50) for number in range(300)))


@both
async def test_the_repository_of_a_view(feature_store: fs.FeatureStore, client: AsyncClient):
    repository, kept = client.repository(RATES), feature_store.repository(RATES)
    report = await repository.upsert(rates((1, 0.5, HOUR), (2, 0.1, 3 * HOUR)))
    assert report.rows_written == 2
    assert await repository.get(driver_id=1) == await kept.get(driver_id=1)
    assert await repository.get(driver_id=2) is None
    rows = [{"driver_id": number} for number in (2, 1, 9)]
    assert await repository.get_many(rows) == await kept.get_many(rows)
    for keys in ({"driver": 1}, {"driver_id": 1, "drivers": 1}, {"driver_id": "x"}, {}):
        assert await outcome(repository.get(**keys)) == await outcome(kept.get(**keys))


# --- definitions ------------------------------------------------------------------------------


@both
async def test_definitions_are_equal_to_those_of_the_store(
    feature_store: fs.FeatureStore, client: AsyncClient
):
    assert await client.list_views() == await feature_store.list_views()
    assert await client.list_entities() == await feature_store.list_entities()
    assert await client.list_services() == await feature_store.list_services()
    assert await client.get_view("everything") == EVERYTHING
    assert await client.get_view("other") == OTHER
    assert await client.get_entity("driver") == DRIVER
    assert await client.get_service("eta") == SERVICE


async def test_what_is_not_there_is_named(client: AsyncClient):
    for name in ("rate", "x" * 50, "", "a/b", "../views", "a?b=c", "Ünï", "%2e"):
        for get in (client.get_view, client.get_entity, client.get_service):
            with pytest.raises(fs.NotFoundError, match="There is no") as caught:
                await get(name)
            assert caught.value.name == name
        with pytest.raises(fs.NotFoundError):
            await client.push(name, [])
    with pytest.raises(fs.NotFoundError, match="Did you mean 'rates'"):
        await client.get_view("rate")


# --- mistakes ---------------------------------------------------------------------------------

READS: list[tuple[Any, Any]] = [
    ("rates:rat", [{"driver_id": 1}]),
    ("rate:rate", [{"driver_id": 1}]),
    ("nothing", [{"driver_id": 1}]),
    ([], [{"driver_id": 1}]),
    (["rates:rate", "other:rate"], [{"driver_id": 1}]),
    ("rates:*", [{"driver": 1}]),
    ("rates:*", [{"driver_id": 1}, {"driver_id": "1"}]),
    ("rates:*", [{"driver_id": 2**70}]),
    ("rates:*", [{"driver_id": 1.5}]),
    ("rates:*", "driver"),
    ("rates:*", {"driver_id": 1}),
    ("everything:*", [{"code": "abcd", "day": dt.date.max, "name": "x"}]),
    ("everything:*", [{"code": b"abcd", "day": dt.date.max, "name": b"x"}]),
    ("everything:*", [{"code": b"abcd", "day": dt.date.max, "name": 7}]),
]


async def test_a_reader_is_told_what_the_store_tells(
    feature_store: fs.FeatureStore, client: AsyncClient
):
    for features, entities in READS:
        found = await outcome(client.get_online_features(features, entities))
        kept = await outcome(feature_store.get_online_features(features, entities))
        assert found == kept, (features, entities)
        assert isinstance(found, tuple), (features, entities)


async def test_a_key_that_has_no_form_is_named(client: AsyncClient):
    with pytest.raises(fs.SchemaMismatchError, match="lacks the join key") as caught:
        await client.get_online_features("rates:*", [{"driver_id": {1, 2}}])
    assert caught.value.__notes__ == [
        "entity row 0, 'driver_id' was not sent: set is of no type that features have"
    ]


async def test_a_selection_that_only_a_service_can_name(client: AsyncClient):
    for selection in (RATES.with_name("mine"), RATES.with_join_key_map({"driver_id": "co"})):
        with pytest.raises(fs.DefinitionError, match="apply a FeatureService"):
            await client.get_online_features([selection], [{"driver_id": 1}])


def changed(**values: Any) -> dict[str, Any]:
    return everything()[0] | values


PUSHES: list[tuple[str, Any]] = [
    ("rates", [{"driver_id": 1, "known_at": NOW, "rate": 0.5}]),
    ("rates", [{**rates((1, 0.5, HOUR))[0], "more": 1}]),
    ("rates", [{**rates((1, 0.5, HOUR))[0], "known_at": None}]),
    ("rates", [{**rates((1, 0.5, HOUR))[0], "trips": 2**31}]),
    ("rates", [*rates((1, 0.5, HOUR)), {**rates((2, 0.5, HOUR))[0], "rate": "NaN"}]),
    ("rates", [{**rates((1, 0.5, HOUR))[0], "rate": "NaN"}]),
    ("rates", [{**rates((1, 0.5, HOUR))[0], "known_at": "2024-01-01T00:00:00Z"}]),
    ("rates", "rows"),
    ("rates", 7),
    ("rates", [1, 2]),
    ("rates", [{1: 2}]),
    ("everything", [changed(f5=b"bytes as text")]),
    ("everything", [changed(f5=NOW)]),
    ("everything", [changed(f5=Decimal("1.5"))]),
    ("everything", [changed(f5="\ud800")]),
    ("everything", [changed(f5="a\0b")]),
    ("everything", [changed(f6="abcd")]),
    ("everything", [changed(f10=math.nan)]),
    ("everything", [changed(f10=[NOW])]),
    ("everything", [changed(f10=b"x")]),
    ("everything", [changed(f10={"a": math.inf})]),
    ("everything", [changed(f9="12.50")]),
    ("everything", [changed(f9=Decimal("1.234"))]),
    ("everything", [changed(f9=0.5)]),
    ("everything", [changed(f8=NOW)]),
    ("everything", [changed(f0={1})]),
]


async def test_a_writer_is_told_what_the_store_tells(
    feature_store: fs.FeatureStore, client: AsyncClient
):
    for view, rows in PUSHES:
        found = await outcome(client.push(view, rows))
        kept = await outcome(feature_store.push(view, rows))
        assert isinstance(found, tuple), rows
        assert found[0] == kept[0], rows
        if found[0] is fs.InvalidRowsError:
            assert (found[2]["rows"], found[2]["count"]) == (kept[2]["rows"], kept[2]["count"])
        else:
            assert found == kept
    assert await feature_store.loads() == []


async def test_types_that_have_changed_are_asked_for_again(
    feature_store: fs.FeatureStore, client: AsyncClient
):
    await client.push("rates", rates((1, 0.5, HOUR)))
    wider = fs.FeatureView(
        "rates",
        entities=[DRIVER],
        fields=[*RATES.fields, fs.Field("note", fs.String)],
        timestamp_field="known_at",
        ttl=RATES.ttl,
    )
    await feature_store.apply(wider)
    row = rates((1, 0.6, HOUR))[0] | {"note": "new"}
    await client.push("rates", row)
    found = await client.repository("rates").get(driver_id=1)
    assert found is not None
    assert found["note"] == "new"
    narrow = fs.FeatureView(
        "rates",
        entities=[DRIVER],
        fields=[*RATES.fields, fs.Field("note", fs.Bytes)],
        timestamp_field="known_at",
        ttl=RATES.ttl,
    )
    await feature_store.apply(RATES, allow={"drop"})
    await feature_store.apply(narrow)
    await client.push("rates", row | {"note": b"\xff", "known_at": NOW})
    found = await client.repository("rates").get(driver_id=1)
    assert found is not None
    assert found["note"] == b"\xff"


# --- without await, and at the edges ----------------------------------------------------------


async def test_the_client_without_await(feature_store: fs.FeatureStore, url: str):
    def work() -> None:
        with Client(url) as client:
            assert repr(client) == f"<Client {url}>"
            assert client.push(RATES, rates((1, 0.5, HOUR), (2, 0.1, HOUR))).rows_written == 2
            rows = [{"driver_id": 1}, {"driver_id": 3}]
            found = client.get_online_features("rates:*", rows)
            assert [row["rate"] for row in found.to_dicts()] == [0.5, None]
            assert client.repository("rates").get(driver_id=2) is not None
            assert client.repository("rates").get_many(rows)[1] is None
            assert client.repository("rates").upsert(rates((3, 0.1, HOUR))).rows_written == 1
            training = client.get_historical_features(
                [{"driver_id": 1, "event_timestamp": NOW}], ["rates:rate"]
            )
            assert training.to_pandas()["rate"].tolist() == [0.5]
            assert client.list_views() == [client.get_view(v.name) for v in client.list_views()]
            assert client.list_services() == [client.get_service("eta")]
            assert client.get_entity("driver") in client.list_entities()
            with pytest.raises(fs.NotFoundError):
                client.get_view("nothing")

    await asyncio.to_thread(work)
