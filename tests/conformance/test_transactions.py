"""A transaction: its reads see its writes, nobody else's do, and all of it is kept or none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from builders import (
    driver_stats,
    entity_rows,
    hour,
    online_column,
    parquet,
    report,
    scanned,
    stats,
    table_of,
    training,
    weather,
)

import featurestore as fs


class Stop(Exception):
    """What a test raises to have a transaction rolled back."""


@pytest.fixture
async def both(store: fs.FeatureStore) -> fs.FeatureStore:
    """A store of two views, with a version of driver 1 and of jfk."""
    await store.apply([driver_stats(), weather()])
    await store.push("driver_stats", [stats(1, hour(0), trips=1)])
    await store.push("weather", [report("jfk", hour(0), 1.0)])
    return store


async def seen(reader, driver: int = 1) -> tuple[object, object]:
    """Trips of the driver and temp of jfk, in one vector."""
    answer = await reader.get_online_features(
        ["driver_stats:trips", "weather:temp"], [{"driver_id": driver, "airport": "jfk"}]
    )
    (row,) = answer.to_dicts()
    return row["trips"], row["temp"]


async def test_it_commits_as_one(both: fs.FeatureStore, tmp_path: Path):
    path = parquet(tmp_path, weather(), [report("jfk", hour(1), 2.0)])
    async with both.transaction() as tx:
        await tx.push("driver_stats", [stats(1, hour(1), trips=2)])
        await tx.ingest("weather", path)
    assert await seen(both) == (2, 2.0)
    assert len(await both.loads()) == 4
    assert (await both.ingest("weather", path)).loads[0].skipped


async def test_its_reads_see_its_writes(both: fs.FeatureStore, tmp_path: Path):
    async with both.transaction() as tx:
        assert await seen(tx) == (1, 1.0)
        await tx.push("driver_stats", [stats(1, hour(1), trips=2)])
        assert await seen(tx) == (2, 1.0)
        await tx.ingest("weather", table_of(weather(), [report("jfk", hour(1), 2.0)]))
        assert await seen(tx) == (2, 2.0)
        await tx.ingest("weather", parquet(tmp_path, weather(), [report("jfk", hour(2), 3.0)]))
        assert await seen(tx) == (2, 3.0)

        repository = tx.repository("driver_stats")
        assert (await repository.get(driver_id=1))["trips"] == 2
        assert (await repository.history(driver_id=1))["trips"].to_pylist() == [1, 2]
        assert sorted(row["trips"] for row in await scanned(repository)) == [1, 2]
        assert await repository.count() == 2
        await repository.upsert([stats(1, hour(2), trips=3)])
        assert (await repository.get_many([{"driver_id": 1}]))[0]["trips"] == 3

        asked = entity_rows((1, hour(0)), (1, hour(9)))
        assert [row["trips"] for row in await training(tx, asked, ["driver_stats:*"])] == [1, 3]
        streamed = tx.stream_historical_features(asked, ["driver_stats:trips"])
        assert [n async for batch in streamed for n in batch["trips"].to_pylist()] == [1, 3]

        await repository.delete(driver_id=1)
        assert await seen(tx) == (None, 3.0)
        assert await repository.count() == 0
    assert await seen(both) == (None, 3.0)


async def test_others_see_nothing_of_it_until_it_commits(both: fs.FeatureStore, open_store):
    other = await open_store()
    async with both.transaction() as tx:
        await tx.push("driver_stats", [stats(1, hour(1), trips=2), stats(2, hour(1), trips=2)])
        await tx.push("weather", [report("jfk", hour(1), 2.0)])
        for reader in (both, other):
            assert await seen(reader) == (1, 1.0)
            assert await reader.repository("driver_stats").count() == 1
            assert len(await reader.loads()) == 2
    for reader in (both, other):
        assert await seen(reader) == (2, 2.0)


async def test_an_error_rolls_all_of_it_back(both: fs.FeatureStore, tmp_path: Path):
    before = await both.loads()
    path = parquet(tmp_path, weather(), [report("jfk", hour(1), 2.0)])
    bad = table_of(weather(), [report(None, hour(1), 2.0)])

    async def fail_late() -> None:
        async with both.transaction() as tx:
            await tx.push("driver_stats", [stats(1, hour(1), trips=2), stats(2, hour(0))])
            await tx.ingest("weather", path)
            await tx.ingest("weather", bad, on_invalid="quarantine")
            await tx.repository("driver_stats").delete(driver_id=1)
            raise Stop

    with pytest.raises(Stop):
        await fail_late()
    assert await seen(both) == (1, 1.0)
    assert await seen(both, 2) == (None, 1.0)
    assert await both.repository("driver_stats").count() == 1
    assert await both.loads() == before
    assert await both.rejected() == []
    assert not (await both.ingest("weather", path)).loads[0].skipped


async def test_a_refused_write_that_nobody_catches_rolls_all_of_it_back(both: fs.FeatureStore):
    async def push_something_invalid() -> None:
        async with both.transaction() as tx:
            await tx.push("driver_stats", [stats(1, hour(1), trips=2)])
            await tx.push("weather", [report("jfk", hour(1), 2.0), report(None, hour(1), 2.0)])

    with pytest.raises(fs.InvalidRowsError):
        await push_something_invalid()
    assert await seen(both) == (1, 1.0)


async def test_a_transaction_that_is_cancelled_is_rolled_back(both: fs.FeatureStore):
    written = asyncio.Event()

    async def endless() -> None:
        async with both.transaction() as tx:
            await tx.push("driver_stats", [stats(1, hour(1), trips=2)])
            written.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(endless())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await seen(both) == (1, 1.0)
    await both.push("driver_stats", [stats(1, hour(1), trips=3)])  # no lock is left behind
    assert await seen(both) == (3, 1.0)


async def test_an_empty_transaction_is_nothing(both: fs.FeatureStore):
    async with both.transaction():
        pass
    assert len(await both.loads()) == 2


async def test_the_same_file_twice_in_one_transaction_is_skipped(
    both: fs.FeatureStore, tmp_path: Path
):
    path = parquet(tmp_path, weather(), [report("jfk", hour(1), 2.0)])
    async with both.transaction() as tx:
        first = await tx.ingest("weather", path)
        second = await tx.ingest("weather", path)
    assert [first.loads[0].skipped, second.loads[0].skipped] == [False, True]
    assert await both.repository("weather").count() == 2


async def test_transactions_at_the_same_time_all_commit(both: fs.FeatureStore):
    async def one(number: int) -> None:
        async with both.transaction() as tx:
            await tx.push("driver_stats", [stats(100 + number, hour(0), trips=number)])
            await tx.push("weather", [report(f"a{number}", hour(0), float(number))])

    await asyncio.gather(*(one(number) for number in range(10)))
    keys = [{"driver_id": 100 + number} for number in range(10)]
    assert await online_column(both, "driver_stats:trips", keys) == list(range(10))
    assert len(await both.loads()) == 22


async def test_pushes_go_on_beside_an_open_transaction_and_after_it(
    both: fs.FeatureStore,
):
    async with both.transaction() as tx:
        await tx.push("driver_stats", [stats(1, hour(1), trips=2)])
        beside = asyncio.create_task(both.push("weather", [report("jfk", hour(1), 2.0)]))
        await asyncio.sleep(0.05)  # on SQLite, which has one writer, it waits
        assert await seen(tx) in ((2, 1.0), (2, 2.0))
    await beside
    assert await seen(both) == (2, 2.0)
