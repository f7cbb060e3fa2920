"""Invalid rows: refused whole by "raise", set aside one by one by "quarantine"."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from builders import (
    driver_stats,
    hour,
    parquet,
    report,
    scanned,
    stats,
    table_of,
    weather,
    write,
    write_parquet,
)
from strategies import WAYS

import featurestore as fs

MIXED = [
    stats(1, hour(0), trips=1),
    stats(None, hour(0)),
    stats(2, hour(0), trips=2),
    stats(3, None),
    stats(4, hour(0), trips=4),
]
"""Rows 1 and 3 have no key and no time."""


@pytest.mark.parametrize("way", WAYS)
async def test_raise_names_the_rows_and_keeps_nothing(
    store: fs.FeatureStore, tmp_path: Path, way: str
):
    await store.apply([driver_stats()])
    with pytest.raises(fs.InvalidRowsError) as caught:
        await write(store, driver_stats(), MIXED, way, tmp_path)
    assert caught.value.count == 2
    assert [row.row for row in caught.value.rows] == [1, 3]
    first, second = (row.reason for row in caught.value.rows)
    assert "driver_id" in first
    assert "event_timestamp" in second
    assert await store.repository("driver_stats").count() == 0
    assert await store.rejected() == []
    assert await store.loads() == []
    assert await store.repository("driver_stats").get(driver_id=1) is None


async def test_the_error_names_the_file(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([driver_stats()])
    path = parquet(tmp_path, driver_stats(), MIXED, "broken.parquet")
    with pytest.raises(fs.InvalidRowsError, match=r"broken\.parquet"):
        await store.ingest("driver_stats", path)


async def test_rows_are_counted_over_row_groups_and_batches(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([driver_stats()])
    rows = [stats(n, hour(0)) for n in range(10)]
    rows[7] = stats(None, hour(0))
    table = table_of(driver_stats(), rows)
    path = write_parquet(tmp_path / "rows.parquet", table, row_group_size=3)
    batches = pa.Table.from_batches(table.to_batches(max_chunksize=2))
    for source in (path, batches):
        with pytest.raises(fs.InvalidRowsError) as caught:
            await store.ingest("driver_stats", source)
        assert [row.row for row in caught.value.rows] == [7]


async def test_thousands_of_invalid_rows_make_a_short_error(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    table = table_of(driver_stats(), [stats(None, hour(0)) for _ in range(3000)])
    with pytest.raises(fs.InvalidRowsError) as caught:
        await store.ingest("driver_stats", table)
    assert caught.value.count == 3000
    assert 0 < len(caught.value.rows) < 1000
    assert [row.row for row in caught.value.rows] == list(range(len(caught.value.rows)))
    assert "3000" in str(caught.value).replace(",", "")


async def test_quarantine_stores_them_aside_and_loads_the_rest(
    store: fs.FeatureStore, tmp_path: Path
):
    await store.apply([driver_stats()])
    path = parquet(tmp_path, driver_stats(), MIXED, "mixed.parquet")
    loaded = await store.ingest("driver_stats", path, on_invalid="quarantine")
    assert (loaded.rows_read, loaded.rows_written, loaded.rows_rejected) == (5, 3, 2)

    repository = store.repository("driver_stats")
    assert [row["driver_id"] for row in await scanned(repository)] == [1, 2, 4]
    assert (await repository.get(driver_id=4))["trips"] == 4
    rejected = await store.rejected()
    assert [row.row for row in rejected] == [1, 3]
    assert {row.view for row in rejected} == {"driver_stats"}
    assert {row.load_id for row in rejected} == {loaded.loads[0].load_id}
    assert all("mixed.parquet" in row.source for row in rejected)
    assert "driver_id" in rejected[0].reason
    assert "event_timestamp" in rejected[1].reason


async def test_quarantine_of_arrow_objects_and_of_values(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    table = pa.table(
        {
            "driver_id": [1, 2, 3],
            "event_timestamp": pa.array([hour(0)] * 3, pa.timestamp("us", "UTC")),
            "conv_rate": [0.1, 0.2, 0.3],
            "trips": pa.array([1, 2**40, None], pa.int64()),
        }
    )
    loaded = await store.ingest("driver_stats", table, on_invalid="quarantine")
    assert (loaded.rows_written, loaded.rows_rejected) == (2, 1)
    (rejected,) = await store.rejected(view="driver_stats")
    assert rejected.row == 1
    assert "trips" in rejected.reason
    assert str(rejected.values["driver_id"]) == "2"


async def test_a_file_of_invalid_rows_alone_is_quarantined_whole(
    store: fs.FeatureStore, tmp_path: Path
):
    await store.apply([driver_stats()])
    path = parquet(tmp_path, driver_stats(), [stats(None, hour(0))] * 3)
    loaded = await store.ingest("driver_stats", path, on_invalid="quarantine")
    assert (loaded.rows_written, loaded.rows_rejected) == (0, 3)
    assert await store.repository("driver_stats").count() == 0
    assert len(await store.rejected(load_id=loaded.loads[0].load_id)) == 3


async def test_rejected_rows_are_found_by_load_and_by_view(store: fs.FeatureStore):
    await store.apply([driver_stats(), weather()])
    bad_stats = table_of(driver_stats(), [stats(None, hour(0))])
    bad_weather = table_of(weather(), [report(None, hour(0), 1.0)])
    ids = []
    for view, table in {"driver_stats": bad_stats, "weather": bad_weather}.items():
        loaded = await store.ingest(view, table, on_invalid="quarantine")
        ids.append(loaded.loads[0].load_id)
    assert [row.view for row in await store.rejected(view="weather")] == ["weather"]
    assert [row.view for row in await store.rejected(load_id=ids[0])] == ["driver_stats"]
    assert len(await store.rejected()) == 2


async def test_another_way_to_treat_invalid_rows_is_refused(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    table = table_of(driver_stats(), [stats(1, hour(0))])
    with pytest.raises((fs.FeatureStoreError, ValueError), match="ignore"):
        await store.ingest("driver_stats", table, on_invalid="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
async def test_keys_of_more_than_1000_bytes_are_invalid(
    store: fs.FeatureStore, tmp_path: Path, way: str
):
    blobs = fs.FeatureView(
        "blobs",
        entities=[fs.Entity("blob", join_keys={"digest": fs.Bytes})],
        fields=[fs.Field("size", fs.Int64)],
        timestamp_field="event_timestamp",
    )
    await store.apply([weather(), blobs])
    longest = ["a" * 1000, "é" * 500]
    await write(store, weather(), [report(key, hour(0), 1.0) for key in longest], way, tmp_path)
    for key in ("a" * 1001, "é" * 501):
        rows = [report(longest[0], hour(0), 2.0), report(key, hour(0), 3.0)]
        with pytest.raises(fs.InvalidRowsError, match="airport") as caught:
            await write(store, weather(), rows, way, tmp_path)
        assert [row.row for row in caught.value.rows] == [1]
        assert len(str(caught.value)) < 1000
    assert await store.repository("weather").count() == 2

    row = {"digest": b"\xff" * 1001, "event_timestamp": hour(0), "size": 1}
    with pytest.raises(fs.InvalidRowsError, match="digest"):
        await write(store, blobs, [row], way, tmp_path)


async def test_text_that_cannot_be_a_key_is_invalid(store: fs.FeatureStore):
    await store.apply([weather()])
    for key in ("a\0b", "\ud83d"):
        with pytest.raises(fs.InvalidRowsError, match="airport"):
            await store.push("weather", [report(key, hour(0), 1.0)])


async def test_a_long_text_is_fine_where_it_is_no_key(store: fs.FeatureStore):
    view = weather(fields=[fs.Field("temp", fs.String)])
    await store.apply([view])
    text = "é" * 200_000
    await store.push("weather", [report("jfk", hour(0), text)])  # type: ignore[arg-type]
    assert (await store.repository("weather").get(airport="jfk"))["temp"] == text


# --- nothing at all ---------------------------------------------------------------------------


async def test_a_load_of_no_rows_is_a_load(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([driver_stats()])
    empty = table_of(driver_stats(), [])
    pushes = [await store.push("driver_stats", []), await store.push("driver_stats", empty)]
    assert [push.rows_written for push in pushes] == [0, 0]
    for source in (empty, parquet(tmp_path, driver_stats(), [])):
        for on_invalid in ("raise", "quarantine"):
            loaded = await store.ingest("driver_stats", source, on_invalid=on_invalid)
            assert (loaded.rows_read, loaded.rows_written, loaded.rows_rejected) == (0, 0, 0)
    assert await store.repository("driver_stats").count() == 0


async def test_an_empty_store_gives_empty_answers(store: fs.FeatureStore):
    await store.apply([])
    assert await store.list_views() == []
    assert await store.list_entities() == []
    assert await store.list_services() == []
    assert await store.loads() == []
    assert await store.rejected() == []
    assert (await store.materialize()).keys_changed == {}


async def test_an_empty_view_gives_empty_answers(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    repository = store.repository("driver_stats")
    assert await repository.count() == 0
    assert await repository.get(driver_id=1) is None
    assert list(await repository.get_many([])) == []
    assert list(await repository.get_many([{"driver_id": 1}])) == [None]
    history = await repository.history(driver_id=1)
    assert history.num_rows == 0
    assert {"driver_id", "event_timestamp", "conv_rate", "trips"} <= set(history.column_names)
    assert await scanned(repository) == []
    await repository.delete(driver_id=1)
    await store.materialize(["driver_stats"])
    assert await store.loads("driver_stats") == []
    entities = table_of(driver_stats(), []).select(["driver_id", "event_timestamp"])
    found = await store.get_historical_features(entities, [driver_stats()])
    assert found.to_arrow().num_rows == 0
    assert found.to_arrow().column_names == ["driver_id", "event_timestamp", "conv_rate", "trips"]
    batches = [b async for b in store.stream_historical_features(entities, [driver_stats()])]
    assert sum(batch.num_rows for batch in batches) == 0
