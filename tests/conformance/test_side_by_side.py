"""What happens at the same time: calls of one transaction, applies, undo, readers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from builders import driver_stats, entity_rows, hour, stats

import featurestore as fs

OpenStore = Callable[..., Awaitable[fs.FeatureStore]]


async def test_a_call_does_not_outlive_its_transaction(store: fs.FeatureStore):
    await store.apply([driver_stats()])

    strays = []

    async def transfer() -> None:
        async with store.transaction() as tx:
            rows = [stats(number, hour(0)) for number in range(3000)]
            strays.append(asyncio.create_task(tx.push("driver_stats", rows)))
            await asyncio.sleep(0.01)
            raise ZeroDivisionError

    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            await transfer()
    assert all(stray.done() for stray in strays)
    assert await store.repository("driver_stats").count() == 0
    assert await store.loads() == []
    await store.push("driver_stats", [stats(1, hour(0), trips=7)])
    found = await store.repository("driver_stats").get(driver_id=1)
    assert found is not None
    assert found["trips"] == 7


async def test_a_transaction_takes_no_calls_after_its_end(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    async with store.transaction() as tx:
        pass
    with pytest.raises(fs.FeatureStoreError, match="ended"):
        await tx.push("driver_stats", [stats(1, hour(0))])


async def test_switching_online_on_and_undoing_a_load_at_once(
    store: fs.FeatureStore, open_store: OpenStore
):
    other = await open_store()
    for round_number in range(5):
        name = f"view{round_number}"
        await store.apply([driver_stats(name, online=False)])
        first = await store.push(name, [stats(1, hour(0), trips=1)])
        await other.list_views()
        await asyncio.gather(store.apply([driver_stats(name)]), other.undo_load(first.load_id))
        assert await store.repository(name).count() == 0
        assert await store.repository(name).get(driver_id=1) is None


async def test_a_training_set_read_while_a_type_widens(
    store: fs.FeatureStore, open_store: OpenStore
):
    other = await open_store()
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(1, hour(0), trips=3)])
    entities = entity_rows((1, hour(1)))
    wide = [fs.Field("conv_rate", fs.Float64), fs.Field("trips", fs.Int64)]
    reads = [other.get_historical_features(entities, ["driver_stats:*"]) for _ in range(10)]
    answers = await asyncio.gather(*reads, store.apply([driver_stats(fields=wide)]))
    for answer in answers[:-1]:
        assert answer.to_arrow().column("trips").to_pylist() == [3]
    # Statements that were prepared for the narrow table are not run on the wide one.
    assert (await other.repository("driver_stats").history())["trips"].to_pylist() == [3]
    after = await other.get_historical_features(entities, ["driver_stats:*"])
    assert after.to_arrow().schema.field("trips").type == fs.Int64.arrow


async def test_a_push_while_definitions_are_applied(store: fs.FeatureStore, open_store: OpenStore):
    other = await open_store()
    await store.apply([driver_stats()])
    await other.push("driver_stats", [stats(0, hour(0))])

    async def define() -> None:
        for number in range(10):
            await store.apply([driver_stats(f"more{number}")])

    async def write() -> None:
        for number in range(20):
            await other.push("driver_stats", [stats(number, hour(1))])

    await asyncio.gather(define(), write())
    assert await store.repository("driver_stats").count() == 21


async def test_a_service_is_what_was_chosen_when_its_view_grows(store: fs.FeatureStore):
    view = driver_stats()
    service = fs.FeatureService("model", features=[view[["conv_rate", "trips"]]])
    await store.apply([view, service])
    more = [*view.fields, fs.Field("extra", fs.String)]
    await store.apply([driver_stats(fields=more)])
    assert not await store.plan([service])
    await store.push("driver_stats", [stats(1, hour(0), extra="x")])
    found = await store.get_online_features("model", [{"driver_id": 1}])
    assert list(found.to_dicts()[0]) == ["driver_id", "conv_rate", "trips"]


async def test_a_source_that_another_process_changed_is_the_one_that_is_read(
    store: fs.FeatureStore, open_store: OpenStore, tmp_path: Any
):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {"id": [1], "event_timestamp": [hour(0)], "conv_rate": [0.5], "trips": [9]}
    path = tmp_path / "new.parquet"
    await asyncio.to_thread(pq.write_table, pa.table(rows), path)
    other = await open_store()
    await store.apply([driver_stats(source=fs.ParquetSource("nowhere.parquet"))])
    await other.list_views()
    mapped = fs.ParquetSource(str(path), field_mapping={"id": "driver_id"})
    await store.apply([driver_stats(source=mapped)])
    report = await other.ingest("driver_stats")
    assert report.rows_written == 1
    given = fs.ParquetSource(str(path), field_mapping={"id": "driver_id"})
    assert (await other.ingest("driver_stats", given)).loads[0].skipped


@pytest.mark.parametrize(
    ("wide", "narrow", "kept", "lost"),
    [
        (fs.Int64, fs.Int32, -(2**31), 2**31),
        (fs.Array(fs.Int64), fs.Array(fs.Int32), [2**31 - 1, None], [2**40]),
        (fs.Float64, fs.Float32, 0.5, 1e300),
    ],
)
async def test_narrowing_keeps_what_fits_and_refuses_the_rest(
    store: fs.FeatureStore, wide: fs.FeatureType, narrow: fs.FeatureType, kept: Any, lost: Any
):
    def view(kind: fs.FeatureType) -> fs.FeatureView:
        return driver_stats(fields=[fs.Field("value", kind)])

    def row(driver: int, value: Any) -> dict[str, Any]:
        return {"driver_id": driver, "event_timestamp": hour(0), "value": value}

    await store.apply([view(wide)])
    await store.push("driver_stats", [row(1, kept), row(2, lost)])
    with pytest.raises(fs.FeatureStoreError):
        await store.apply([view(narrow)], allow={"narrow"})
    await store.repository("driver_stats").delete(driver_id=2)
    await store.apply([view(narrow)], allow={"narrow"})
    history = await store.repository("driver_stats").history()
    assert history["value"].to_pylist() == [kept]
    found = await store.repository("driver_stats").get(driver_id=1)
    assert found == {"driver_id": 1, "value": kept}
