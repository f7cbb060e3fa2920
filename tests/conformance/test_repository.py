"""The repository over one view: read online, read history, add a version, erase an entity."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from builders import (
    ROUTE,
    Cases,
    ago,
    driver_stats,
    entity_rows,
    hour,
    scanned,
    stats,
    table_of,
    training,
)

import featurestore as fs

ROUTES = fs.FeatureView(
    "routes",
    entities=[ROUTE],
    fields=[fs.Field("minutes", fs.Int32)],
    timestamp_field="event_timestamp",
)


def minutes(origin: str, dest: str, number: int, when: dt.datetime = hour(0)) -> dict:  # noqa: B008
    return {"origin": origin, "dest": dest, "minutes": number, "event_timestamp": when}


@pytest.fixture
async def drivers(store: fs.FeatureStore) -> fs.FeatureRepository:
    """Three versions of driver 1 and one of driver 2."""
    await store.apply([driver_stats()])
    rows = [stats(1, hour(2), 0.2, 2), stats(2, hour(1), None, None), stats(1, hour(0), 0.0, 0)]
    await store.push("driver_stats", rows)
    await store.push("driver_stats", [stats(1, hour(1), 0.1, 1)])
    return store.repository("driver_stats")


async def test_get_gives_the_newest_version(drivers: fs.FeatureRepository):
    found = await drivers.get(driver_id=1)
    assert (found["conv_rate"], found["trips"]) == (0.2, 2)


async def test_a_row_of_nulls_is_something_and_no_row_is_none(drivers: fs.FeatureRepository):
    found = await drivers.get(driver_id=2)
    assert found is not None
    assert (found["conv_rate"], found["trips"]) == (None, None)
    assert await drivers.get(driver_id=3) is None


async def test_get_many_keeps_order_and_duplicates(drivers: fs.FeatureRepository):
    asked = [3, 1, 2, 1, 3]
    found = await drivers.get_many([{"driver_id": number} for number in asked])
    assert [row and row["trips"] for row in found] == [None, 2, None, 2, None]
    assert [row is None for row in found] == [True, False, False, False, True]


async def test_reads_apply_the_ttl(store: fs.FeatureStore):
    await store.apply([driver_stats(ttl=dt.timedelta(hours=1))])
    await store.push("driver_stats", [stats(1, ago(minutes=59)), stats(2, ago(minutes=61))])
    repository = store.repository("driver_stats")
    assert await repository.get(driver_id=1) is not None
    assert await repository.get(driver_id=2) is None
    many = await repository.get_many([{"driver_id": 2}, {"driver_id": 1}])
    assert [row is None for row in many] == [True, False]


async def test_history_is_every_version_by_time(drivers: fs.FeatureRepository):
    found = await drivers.history(driver_id=1)
    assert isinstance(found, pa.Table)
    assert found["trips"].to_pylist() == [0, 1, 2]
    assert found["event_timestamp"].to_pylist() == [hour(0), hour(1), hour(2)]
    assert found["driver_id"].to_pylist() == [1, 1, 1]


async def test_history_and_scan_hold_to_their_window(drivers: fs.FeatureRepository):
    windows = {
        (None, None): [0, 1, 2],
        (hour(0.5), None): [1, 2],
        (None, hour(1.5)): [0, 1],
        (hour(0.5), hour(1.5)): [1],
        (hour(1), hour(1)): [1],  # both bounds inclusive
        (hour(3), None): [],
        (hour(2), hour(1)): [],
    }
    for (start, end), trips in windows.items():
        found = await drivers.history(start=start, end=end, driver_id=1)
        assert found["trips"].to_pylist() == trips, (start, end)
        rows = await scanned(drivers, start=start, end=end)
        assert sorted(r["trips"] for r in rows if r["driver_id"] == 1) == trips, (start, end)


async def test_scan_streams_everything_in_batches(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(n, hour(n % 7), trips=n) for n in range(1000)])
    batches = [b async for b in store.repository("driver_stats").scan(batch_size=64)]
    assert all(isinstance(batch, pa.RecordBatch) for batch in batches)
    assert max(batch.num_rows for batch in batches) <= 64
    assert sorted(n for batch in batches for n in batch["trips"].to_pylist()) == list(range(1000))


async def test_a_scan_can_be_left_early(drivers: fs.FeatureRepository):
    async for batch in drivers.scan(batch_size=1):
        assert batch.num_rows == 1
        break
    assert await drivers.count() == 4


async def test_count_counts_history(drivers: fs.FeatureRepository):
    assert await drivers.count() == 4


async def test_upsert_adds_a_version(drivers: fs.FeatureRepository, store: fs.FeatureStore):
    await drivers.upsert([stats(1, hour(3), trips=30), stats(1, hour(-1), trips=-1)])
    assert (await drivers.get(driver_id=1))["trips"] == 30
    assert (await drivers.history(driver_id=1))["trips"].to_pylist() == [-1, 0, 1, 2, 30]
    await drivers.upsert(table_of(driver_stats(), [stats(1, hour(4), trips=40)]))
    assert (await drivers.get(driver_id=1))["trips"] == 40
    assert len(await store.loads("driver_stats")) == 4


async def test_delete_erases_an_entity_everywhere(
    drivers: fs.FeatureRepository, store: fs.FeatureStore
):
    bad = pa.table(
        {
            "driver_id": [1, 2],
            "event_timestamp": pa.array([None, None], fs.Timestamp.arrow),
            "conv_rate": [0.5, 0.5],
            "trips": [1, 1],
        }
    )
    await store.ingest("driver_stats", bad, on_invalid="quarantine")
    assert len(await store.rejected()) == 2
    await drivers.delete(driver_id=1)
    assert await drivers.get(driver_id=1) is None
    assert (await drivers.history(driver_id=1)).num_rows == 0
    assert await drivers.count() == 1
    assert [row["driver_id"] for row in await scanned(drivers)] == [2]
    assert [str(row.values["driver_id"]) for row in await store.rejected()] == ["2"]
    answer = await store.get_online_features(["driver_stats:trips"], [{"driver_id": 1}])
    assert answer.statuses == [{"trips": fs.Status.NOT_FOUND}]
    asked = entity_rows((1, hour(9)))
    assert (await training(store, asked, ["driver_stats:trips"]))[0]["trips"] is None


async def test_delete_finds_rejected_rows_by_keys_of_any_type(store: fs.FeatureStore):
    """Their keys came as other Arrow types, and are the same keys all the same."""
    things = fs.FeatureView(
        "things",
        entities=[
            fs.Entity(
                "thing",
                join_keys={
                    "number": fs.Int64,
                    "price": fs.Decimal(10, 2),
                    "at": fs.Timestamp,
                    "day": fs.Date,
                    "digest": fs.Bytes,
                    "name": fs.String,
                    "flag": fs.Bool,
                },
            )
        ],
        fields=[fs.Field("x", fs.Int32)],
        timestamp_field="event_timestamp",
    )
    await store.apply([things])
    key = {
        "number": 7,
        "price": Decimal("1.5"),
        "at": hour(0),
        "day": dt.date(9999, 12, 31),
        "digest": b"\xff\x00",
        "name": "é\U0001f695",
        "flag": True,
    }
    bad = pa.table(
        {
            "number": pa.array([7.0, 8.0]),
            "price": pa.array([Decimal("1.5")] * 2, pa.decimal128(5, 1)),
            "at": pa.array([hour(0)] * 2, pa.timestamp("ms", "Asia/Kolkata")),
            "day": pa.array([key["day"]] * 2),
            "digest": pa.array([key["digest"]] * 2, pa.large_binary()),
            "name": pa.array([key["name"]] * 2).dictionary_encode(),
            "flag": pa.array([True] * 2),
            "event_timestamp": pa.array([hour(0)] * 2, fs.Timestamp.arrow),
            "x": pa.array([2**40] * 2),
        }
    )
    await store.ingest("things", bad, on_invalid="quarantine")
    assert [row.row for row in await store.rejected()] == [0, 1]
    await store.repository("things").delete(**key)
    assert [row.row for row in await store.rejected()] == [1]


async def test_what_is_erased_can_be_written_again(drivers: fs.FeatureRepository):
    await drivers.delete(driver_id=1)
    await drivers.upsert([stats(1, hour(-5), trips=5)])
    assert (await drivers.get(driver_id=1))["trips"] == 5


async def test_erasing_what_is_not_there_is_no_error(drivers: fs.FeatureRepository):
    await drivers.delete(driver_id=99)
    assert await drivers.count() == 4


async def test_delete_without_keys_is_refused(drivers: fs.FeatureRepository):
    with pytest.raises((fs.FeatureStoreError, TypeError)):
        await drivers.delete()
    assert await drivers.count() == 4


async def test_undoing_a_load_whose_rows_were_erased(
    drivers: fs.FeatureRepository, store: fs.FeatureStore
):
    first, second = await store.loads("driver_stats")
    await drivers.delete(driver_id=1)
    assert (await store.undo_load(second.load_id)).rows_removed == 0
    assert (await store.undo_load(first.load_id)).rows_removed == 1
    assert await drivers.count() == 0


WRONG_KEYS: list[tuple[dict[str, Any], Any]] = [
    ({"driver": 1}, (fs.SchemaMismatchError, fs.NotFoundError)),
    ({"driver_id": 1, "region": "x"}, (fs.SchemaMismatchError, fs.NotFoundError)),
    ({"driver_id": "1"}, fs.SchemaMismatchError),
    ({"driver_id": 1.5}, fs.InvalidRowsError),
]


async def test_keys_that_are_not_the_views_are_refused(drivers: fs.FeatureRepository):
    with pytest.raises(fs.SchemaMismatchError, match="driver_id"):
        await drivers.get()
    with Cases() as cases:
        for keys, error in WRONG_KEYS:
            for call in (drivers.get, drivers.history, drivers.delete):
                with cases.case(call.__name__, keys), pytest.raises(error):
                    await call(**keys)
    assert await drivers.count() == 4


async def test_a_composite_key_is_all_of_its_parts(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([ROUTES])
    await store.push(
        "routes",
        [minutes("jfk", "lax", 330), minutes("lax", "jfk", 300), minutes("jfk", "bos", 60)],
    )
    routes = store.repository("routes")
    assert (await routes.get(dest="jfk", origin="lax"))["minutes"] == 300
    found = await routes.get_many(
        [{"origin": "jfk", "dest": "bos"}, {"origin": "bos", "dest": "jfk"}]
    )
    assert [row and row["minutes"] for row in found] == [60, None]
    assert await routes.get_many([{"origin": None, "dest": "lax"}]) == [None]
    assert (await routes.history(origin="jfk", dest="lax"))["minutes"].to_pylist() == [330]
    await routes.delete(origin="jfk", dest="lax")
    assert sorted(row["minutes"] for row in await scanned(routes)) == [60, 300]
    for call in (routes.get, routes.delete):
        with pytest.raises((fs.FeatureStoreError, TypeError), match="dest"):
            await call(origin="jfk")
    assert await routes.count() == 2
