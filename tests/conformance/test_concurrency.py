"""Many at once: the answer is still the rule's, and nobody sees half of a write."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from builders import (
    ago,
    driver_stats,
    hour,
    parquet,
    report,
    schema_of,
    stats,
    table_of,
    weather,
)
from oracle import Draft, Oracle

import featurestore as fs

KEYS = range(12)


async def test_pushes_to_the_same_keys_in_random_order_end_in_the_rule(
    store: fs.FeatureStore, open_store
):
    """50 at once from two stores, with ties that only the order of arrival decides."""
    view = driver_stats(created_timestamp_field="created")
    await store.apply([view])
    stores = [store, await open_store()]
    dice = random.Random(0)
    batches = []
    for number in range(50):
        keys = dice.sample(KEYS, k=len(KEYS))
        batches.append(
            [
                stats(key, hour(dice.randrange(4)), number, number, created=hour(dice.randrange(2)))
                for key in keys
            ]
        )
    dice.shuffle(batches)
    reports = await asyncio.gather(
        *(stores[n % 2].push("driver_stats", batch) for n, batch in enumerate(batches))
    )

    arrivals = {load.load_id: load.first_arrival for load in await store.loads()}
    oracle = Oracle(["conv_rate", "trips"])
    written = zip(reports, batches, strict=True)
    for _, batch in sorted(written, key=lambda pair: arrivals[pair[0].load_id]):
        drafts = [
            Draft(
                (row["driver_id"],),
                row["event_timestamp"],
                {"conv_rate": row["conv_rate"], "trips": row["trips"]},
                row["created"],
            )
            for row in batch
        ]
        oracle.write(drafts, ago())
    answer = await store.get_online_features(["driver_stats:*"], [{"driver_id": k} for k in KEYS])
    assert answer.to_dicts() == [
        {"driver_id": key} | oracle.online((key,), ago()).values for key in KEYS
    ]
    assert await store.repository("driver_stats").count() == 50 * len(KEYS)
    assert all(report.rows_written == len(KEYS) for report in reports)


async def test_pushes_undos_and_loads_at_the_same_time_end_in_the_rule(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    keys = [{"driver_id": key} for key in KEYS]

    def rows(number: int) -> list[dict]:
        return [stats(key, hour(number), trips=number) for key in KEYS]

    first = [await store.push("driver_stats", rows(number)) for number in range(5)]
    await asyncio.gather(
        *(store.undo_load(push.load_id) for push in first),
        *(store.push("driver_stats", rows(number)) for number in (5, 7, 6)),
        *(store.ingest("driver_stats", table_of(driver_stats(), rows(n))) for n in (-1, 8, -2)),
        store.materialize(),
    )
    found = await store.repository("driver_stats").get_many(keys)
    assert [row["trips"] for row in found] == [8] * len(KEYS)
    history = await store.repository("driver_stats").history(driver_id=0)
    assert history["trips"].to_pylist() == [-2, -1, 5, 6, 7, 8]


@pytest.mark.parametrize("way", ["push", "ingest"])
async def test_a_reader_never_sees_half_of_a_write(store: fs.FeatureStore, open_store, way: str):
    await store.apply([driver_stats()])
    reader = await open_store()
    keys = [{"driver_id": key} for key in range(200)]

    async def write(number: int) -> None:
        rows = [stats(key["driver_id"], hour(number), trips=number) for key in keys]
        if way == "push":
            await store.push("driver_stats", rows)
        else:
            await store.ingest("driver_stats", table_of(driver_stats(), rows))

    async def writes() -> None:
        for number in range(1, 9):
            await write(number)

    await write(0)
    writing = asyncio.create_task(writes())
    seen = []
    while not writing.done():
        for one in (store, reader):
            answer = await one.get_online_features(["driver_stats:trips"], keys)
            trips = {row["trips"] for row in answer.to_dicts()}
            assert len(trips) == 1, f"one vector holds the loads {trips}"
            assert await one.repository("driver_stats").count() % 200 == 0
            seen += trips
    await writing
    assert len(set(seen)) > 1, "the reader saw nothing change: the test proves nothing"
    assert seen == sorted(seen)


async def test_a_vector_of_two_views_never_mixes_before_and_after(
    store: fs.FeatureStore, open_store
):
    await store.apply([driver_stats(), weather()])
    reader = await open_store()
    features = ["driver_stats:trips", "weather:temp"]
    asked = [{"driver_id": 1, "airport": "jfk"}]

    async def write(number: int) -> None:
        async with store.transaction() as tx:
            await tx.push("driver_stats", [stats(1, hour(number), trips=number)])
            await tx.push("weather", [report("jfk", hour(number), float(number))])

    async def writes() -> None:
        for number in range(1, 11):
            await write(number)

    await write(0)
    writing = asyncio.create_task(writes())
    seen = set()
    while not writing.done():
        for one in (store, reader):
            (row,) = (await one.get_online_features(features, asked)).to_dicts()
            assert row["trips"] == row["temp"]
            seen.add(row["trips"])
    await writing
    assert len(seen) > 1, "the reader saw nothing change: the test proves nothing"


async def test_a_push_is_readable_by_its_caller_when_it_returns(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    repository = store.repository("driver_stats")

    async def one(number: int) -> None:
        for step in range(2):
            await store.push("driver_stats", [stats(number, hour(step), trips=step)])
            assert (await repository.get(driver_id=number))["trips"] == step

    await asyncio.gather(*(one(number) for number in range(20)))


async def test_many_readers_each_get_their_own_answer(store: fs.FeatureStore):
    await store.apply([driver_stats(), weather()])
    await store.push("driver_stats", [stats(n, hour(0), n / 2, n) for n in range(100)])
    await store.push("weather", [report(str(n), hour(0), float(n)) for n in range(100)])

    async def one(number: int) -> None:
        asked = [{"driver_id": number, "airport": str(99 - number)}]
        kinds = [
            (["driver_stats:trips"], [number]),
            (["driver_stats:conv_rate", "driver_stats:trips"], [number / 2, number]),
            (["weather:temp", "driver_stats:trips"], [99.0 - number, number]),
        ]
        features, wanted = kinds[number % 3]
        (row,) = (await store.get_online_features(features, asked)).to_dicts()
        assert [row[name.split(":")[1]] for name in features] == wanted

    await asyncio.gather(*(one(number) for number in [*range(100)] * 3))


async def test_one_bad_push_among_many_fails_alone(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    rows = [stats(n if n % 5 else None, hour(0), trips=n) for n in range(50)]
    results = await asyncio.gather(
        *(store.push("driver_stats", [row]) for row in rows), return_exceptions=True
    )
    assert [isinstance(result, fs.InvalidRowsError) for result in results] == [
        n % 5 == 0 for n in range(50)
    ]
    assert await store.repository("driver_stats").count() == 40


async def test_bad_reads_among_many_fail_alone(store: fs.FeatureStore):
    await store.apply([driver_stats(), weather()])
    await store.push("driver_stats", [stats(n, hour(0), trips=n) for n in range(60)])
    bad: dict[int, tuple[list[str], dict, type[Exception]]] = {
        0: (["driver_stats:trips"], {"driver_id": "0"}, fs.SchemaMismatchError),
        1: (["driver_stats:trip"], {"driver_id": 0}, fs.NotFoundError),
        2: (["driver_stats:trips"], {"driver_id": 2**70}, fs.InvalidRowsError),
        3: (["weather:temp"], {"airport": "\0"}, fs.FeatureStoreError),
    }

    async def one(number: int) -> None:
        if number % 10 in bad:
            features, row, error = bad[number % 10]
            with pytest.raises(error):
                await store.get_online_features(features, [row])
            return
        answer = await store.get_online_features(["driver_stats:trips"], [{"driver_id": number}])
        assert answer.to_dicts() == [{"driver_id": number, "trips": number}]

    await asyncio.gather(*(one(number) for number in range(60)))


# --- cancelling -------------------------------------------------------------------------------


class Slow:
    """An Arrow stream whose second batch takes its time; says when it is being read."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started = threading.Event()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        rows = [stats(number, hour(0)) for number in range(50)]
        yield from table_of(driver_stats(), rows).to_batches()
        self.started.set()
        time.sleep(self.seconds)
        yield from table_of(driver_stats(), rows).to_batches()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        reader = pa.RecordBatchReader.from_batches(schema_of(driver_stats()), self._batches())
        return reader.__arrow_c_stream__(requested_schema)


async def test_a_cancelled_ingest_leaves_nothing(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    source = Slow(seconds=0.5)
    loading = asyncio.create_task(store.ingest("driver_stats", source))
    while not source.started.is_set():
        assert not loading.done()
        await asyncio.sleep(0.005)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert await store.repository("driver_stats").count() == 0
    assert await store.loads() == []
    assert await store.repository("driver_stats").get(driver_id=1) is None
    await store.ingest("driver_stats", Slow(seconds=0))
    assert await store.repository("driver_stats").count() == 100


async def test_an_ingest_that_is_cancelled_at_any_moment_is_whole_or_nothing(
    store: fs.FeatureStore, tmp_path: Path
):
    await store.apply([driver_stats()])
    repository = store.repository("driver_stats")
    rows = [stats(number, hour(0), trips=number) for number in range(2000)]
    path = parquet(tmp_path, driver_stats(), rows, group=200)
    outcomes = set()
    for milliseconds in (0, 2, 5, 10, 20, 40, 80):
        loading = asyncio.create_task(store.ingest("driver_stats", path))
        await asyncio.sleep(milliseconds / 1000)
        loading.cancel()
        await asyncio.wait([loading])
        count = await repository.count()
        outcomes.add(count)
        live = [load for load in await store.loads() if load.undone_at is None]
        assert (count, len(live)) in ((0, 0), (2000, 1))
        assert (await repository.get(driver_id=7) is None) == (count == 0)
        if live:
            await store.undo_load(live[0].load_id)
    assert 0 in outcomes
    assert not (await store.ingest("driver_stats", path)).loads[0].skipped
    assert await repository.count() == 2000


async def test_a_cancelled_push_leaves_no_lock_behind(store: fs.FeatureStore):
    """Not even while somebody still holds the cancelled task and what it raised."""
    await store.apply([driver_stats()])
    row = stats(1, hour(0))
    dice = random.Random(2)
    cancelled = []
    for _ in range(30):
        push = asyncio.create_task(store.push("driver_stats", [row]))
        await asyncio.sleep(dice.uniform(0, 0.005))
        push.cancel()
        await asyncio.wait([push])
        cancelled.append(push)
        async with asyncio.timeout(5):
            await store.push("driver_stats", [row])
    count = await store.repository("driver_stats").count()
    assert count == len(await store.loads()) >= 30


async def test_a_cancelled_push_that_waits_for_another_writer_ends_at_once(
    store: fs.FeatureStore, open_store
):
    await store.apply([driver_stats()])
    other = await open_store()
    async with other.transaction() as tx:
        await tx.push("driver_stats", [stats(1, hour(0), trips=1)])
        waiting = asyncio.create_task(store.push("driver_stats", [stats(1, hour(1), trips=2)]))
        await asyncio.sleep(0.1)
        assert not waiting.done(), "nothing was waited for: the test proves nothing"
        waiting.cancel()
        done, _ = await asyncio.wait([waiting], timeout=3)
    await asyncio.wait([waiting])
    assert done, "the cancelled call went on waiting"
    assert waiting.cancelled()
    assert (await store.repository("driver_stats").history(driver_id=1))["trips"].to_pylist() == [1]


async def test_cancelled_pushes_and_reads_disturb_nobody(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(0, hour(0), trips=0)])
    repository = store.repository("driver_stats")
    dice = random.Random(1)

    async def push(number: int) -> int:
        return (await store.push("driver_stats", [stats(number, hour(0))])).load_id

    pushes = {number: asyncio.create_task(push(number)) for number in range(1, 41)}
    reads = [asyncio.create_task(repository.get(driver_id=0)) for _ in range(40)]
    cancelled = dice.sample(range(1, 41), 15)
    await asyncio.sleep(0.001)
    for number in cancelled:
        pushes[number].cancel()
        reads[number - 1].cancel()
    await asyncio.wait([*pushes.values(), *reads])

    kept = [number for number, push in pushes.items() if not push.cancelled()]
    assert set(kept) >= set(pushes) - set(cancelled)
    found = await repository.get_many([{"driver_id": number} for number in kept])
    assert None not in found
    assert all(read.result()["trips"] == 0 for read in reads if not read.cancelled())
    assert len(await store.loads()) == await repository.count()
