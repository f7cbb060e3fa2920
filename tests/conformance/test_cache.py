"""Reads through a cache: as old as they may be, and never older than a write of this process."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from builders import (
    DRIVER,
    ROUTE,
    Cases,
    ago,
    calendar,
    driver_stats,
    hour,
    online,
    online_column,
    parquet,
    report,
    stats,
    statuses,
    table_of,
    until,
    weather,
)

import featurestore as fs
from featurestore.storage.tables import table_names

OpenStore = Callable[..., Awaitable[fs.FeatureStore]]

MINUTE = dt.timedelta(minutes=1)
TRIPS = "driver_stats:trips"


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 5_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def cached(store: fs.FeatureStore, open_store: OpenStore, clock: Clock) -> fs.FeatureStore:
    """A store with a cache of a minute, on three drivers whose trips are 10, 20 and 30."""
    await store.apply([driver_stats()])
    rows = [stats(number, hour(1), trips=10 * number) for number in (1, 2, 3)]
    await store.push("driver_stats", rows)
    return await open_store(cache=fs.Cache(max_staleness=MINUTE, clock=clock))


async def trips(store: Any, *drivers: int) -> list[int | None]:
    return await online_column(store, TRIPS, [{"driver_id": number} for number in drivers])


async def others_write(store: fs.FeatureStore, trips: int, view: str = "driver_stats") -> None:
    """Change all online rows as another process would, of which this one hears nothing."""
    table = sa.table(table_names(store.project, view)[1], sa.column("trips"))
    async with store.engine.begin() as connection:
        await connection.execute(table.update().values(trips=trips))


def kept(store: fs.FeatureStore) -> tuple[int, int]:
    """Hits and misses."""
    assert store.stats.cache is not None
    return store.stats.cache.hits, store.stats.cache.misses


async def test_a_row_serves_until_it_is_too_old(cached: fs.FeatureStore, clock: Clock):
    assert await trips(cached, 1) == [10]
    await others_write(cached, 77)
    clock.now += 60
    assert await trips(cached, 1) == [10]
    assert kept(cached) == (1, 1)
    clock.now += 0.001
    assert await trips(cached, 1) == [77]
    assert kept(cached) == (1, 2)


async def test_without_a_cache_nothing_is_kept(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(1, hour(1), trips=10)])
    assert await trips(store, 1) == [10]
    await others_write(store, 77)
    assert await trips(store, 1) == [77]
    assert store.stats.cache is None


async def test_answers_are_the_same_from_the_cache(cached: fs.FeatureStore):
    rows = [{"driver_id": number} for number in (3, 9, None, 1, 3)]
    first = await cached.get_online_features(["driver_stats:*"], rows)
    again = await cached.get_online_features(["driver_stats:*"], rows)
    assert kept(cached) == (5, 5)
    assert again == first
    assert again.to_arrow().equals(first.to_arrow())
    assert [row["trips"] for row in again.to_dicts()] == [30, None, None, 10, 30]
    assert [row["trips"] for row in statuses(again)] == [
        "PRESENT", "NOT_FOUND", "NOT_FOUND", "PRESENT", "PRESENT",
    ]  # fmt: skip


async def test_only_what_is_missing_is_read(cached: fs.FeatureStore):
    assert await trips(cached, 1, 2) == [10, 20]
    await others_write(cached, 77)
    read = cached.stats.reads.rows
    assert await trips(cached, 3, 1, 3, 2) == [77, 10, 77, 20]
    assert cached.stats.reads.rows == read + 2


async def test_requests_are_kept_apart(cached: fs.FeatureStore):
    await online(cached, [TRIPS], [{"driver_id": 1}])
    await others_write(cached, 77)
    both = await online(cached, ["driver_stats:*"], [{"driver_id": 1}])
    assert both == [{"driver_id": 1, "conv_rate": 0.5, "trips": 77}]
    full = await online(cached, [TRIPS], [{"driver_id": 1}], full_feature_names=True)
    assert full == [{"driver_id": 1, "driver_stats__trips": 77}]
    assert await trips(cached, 1) == [10]


async def test_many_keys_are_looked_up_and_kept_in_a_thread(cached: fs.FeatureStore):
    drivers = list(range(5_000))
    expected: list[int | None] = [None] * 5_000
    expected[1:4] = [10, 20, 30]
    assert await trips(cached, *drivers) == expected
    await others_write(cached, 77)
    assert await trips(cached, *drivers) == expected
    assert kept(cached) == (5_000, 5_000)
    await cached.push("driver_stats", [stats(2, hour(2), trips=21)])
    expected[2] = 21
    assert await trips(cached, *drivers) == expected
    assert kept(cached) == (9_999, 5_001)


async def test_lists_and_documents_belong_to_who_has_asked(
    store: fs.FeatureStore, open_store: OpenStore
):
    fields = [fs.Field("list", fs.Array(fs.Int64)), fs.Field("document", fs.Json)]
    await store.apply([driver_stats(fields=fields)])
    row = {"driver_id": 1, "event_timestamp": hour(1), "list": [1, 2], "document": {"a": [1]}}
    await store.push("driver_stats", [row])
    cached = await open_store(cache=fs.Cache(max_staleness=MINUTE))
    for _ in range(3):
        (answer,) = await online(cached, ["driver_stats:*"], [{"driver_id": 1}])
        assert answer == {"driver_id": 1, "list": [1, 2], "document": {"a": [1]}}
        answer["list"].append(3)
        answer["document"]["a"].append(2)
    assert kept(cached) == (2, 1)


async def test_a_ttl_may_pass_as_long_as_the_row_serves(
    store: fs.FeatureStore, open_store: OpenStore, clock: Clock
):
    await store.apply([driver_stats(ttl=dt.timedelta(seconds=1))])
    event = ago()
    await store.push("driver_stats", [stats(1, event, trips=10)])
    cached = await open_store(cache=fs.Cache(max_staleness=MINUTE, clock=clock))
    assert await trips(cached, 1) == [10]
    await until(event + dt.timedelta(seconds=1))
    assert await trips(cached, 1) == [10]
    clock.now += 61
    assert await trips(cached, 1) == [None]


# --- writes of this process -------------------------------------------------------------------

Write = Callable[[Any, Path], Awaitable[Any]]


async def _push(store: Any, folder: Path) -> None:
    await store.push("driver_stats", [stats(1, hour(2), trips=11)])


async def _push_arrow(store: Any, folder: Path) -> None:
    await store.push("driver_stats", table_of(driver_stats(), [stats(1, hour(2), trips=11)]))


async def _ingest(store: Any, folder: Path) -> None:
    await store.ingest(
        "driver_stats", parquet(folder, driver_stats(), [stats(1, hour(2), trips=11)])
    )


async def _push_stream(store: Any, folder: Path) -> None:
    async def source() -> Any:
        yield stats(1, hour(2), trips=11)

    await store.push_stream("driver_stats", source(), max_seconds=0)


async def _upsert(store: Any, folder: Path) -> None:
    await store.repository("driver_stats").upsert([stats(1, hour(2), trips=11)])


async def _transaction(store: Any, folder: Path) -> None:
    async with store.transaction() as tx:
        await tx.push("driver_stats", [stats(1, hour(2), trips=11)])


async def _by_hand(store: Any, folder: Path) -> None:
    """Past the store, and then told to set online to the rule: here to what history says."""
    await others_write(store, 99)
    await store.materialize("driver_stats")


WRITES: dict[Write, int | None] = {
    _push: 11,
    _push_arrow: 11,
    _ingest: 11,
    _push_stream: 11,
    _upsert: 11,
    _transaction: 11,
    _by_hand: 10,
}


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__.strip("_"))
@pytest.mark.parametrize("by", ["itself", "another store"])
async def test_a_write_is_seen_when_it_returns(
    cached: fs.FeatureStore, store: fs.FeatureStore, tmp_path: Path, write: Write, by: str
):
    if write is _by_hand:
        await others_write(cached, 98)
    before = await trips(cached, 1)
    assert await trips(cached, 1) == before
    assert kept(cached) == (1, 1)
    await write(cached if by == "itself" else store, tmp_path)
    assert await trips(cached, 1) == [WRITES[write]]
    assert await trips(cached, 1) == [WRITES[write]]
    assert kept(cached) == (2, 2)


async def test_what_takes_rows_away_is_seen(cached: fs.FeatureStore, store: fs.FeatureStore):
    load = (await store.push("driver_stats", [stats(1, hour(3), trips=12)])).load_id
    for writer in (cached, store):
        assert await trips(cached, 1, 2) == [12, 20]
        await writer.undo_load(load)
        assert await trips(cached, 1, 2) == [10, 20]
        load = (await store.push("driver_stats", [stats(1, hour(3), trips=12)])).load_id
    for number, writer in ((1, cached), (2, store)):
        await trips(cached, 1, 2)
        await writer.repository("driver_stats").delete(driver_id=number)
        assert (await trips(cached, 1, 2))[number - 1] is None


async def test_rows_that_come_due_are_seen(store: fs.FeatureStore, open_store: OpenStore):
    await store.apply([driver_stats()])
    exact = await open_store(clock_skew=dt.timedelta(0), cache=fs.Cache(max_staleness=MINUTE))
    due = ago(seconds=-1)
    await exact.push("driver_stats", [stats(1, due, trips=5)])
    assert await trips(exact, 1) == [None]
    await until(due)
    assert await trips(exact, 1) == [None]
    await exact.materialize("driver_stats")
    assert await trips(exact, 1) == [5]


async def test_a_push_is_seen_across_threads(cached: fs.FeatureStore, database_url: str):
    def push(number: int) -> None:
        with fs.sync.FeatureStore(database_url, project=cached.project) as other:
            other.push("driver_stats", [stats(1, hour(number), trips=number)])

    for number in range(2, 6):
        await trips(cached, 1)
        await asyncio.to_thread(push, number)
        assert await trips(cached, 1) == [number]


async def test_the_store_without_await_has_a_cache(cached: fs.FeatureStore, database_url: str):
    def run() -> None:
        cache = fs.Cache(max_staleness=MINUTE)
        with fs.sync.FeatureStore(database_url, project=cached.project, cache=cache) as other:
            for number in (10, 10, 12, 12):
                if number == 12:
                    other.push("driver_stats", [stats(1, hour(2), trips=12)])
                answer = other.get_online_features([TRIPS], [{"driver_id": 1}])
                assert answer.to_dicts() == [{"driver_id": 1, "trips": number}]
            assert other.stats.cache == fs.CacheStats(entries=1, hits=1, misses=3)

    await asyncio.to_thread(run)


async def test_a_push_takes_out_no_more_than_its_keys(cached: fs.FeatureStore):
    assert await trips(cached, 1, 2, 9) == [10, 20, None]
    await others_write(cached, 77)
    await cached.push("driver_stats", [stats(1, hour(2), trips=11), stats(9, hour(2), trips=9)])
    assert await trips(cached, 1, 2, 9) == [11, 20, 9]
    assert kept(cached) == (1, 5)


async def test_a_push_to_another_view_takes_out_nothing(cached: fs.FeatureStore):
    await cached.apply([weather()])
    await trips(cached, 1)
    await others_write(cached, 77)
    await cached.push("weather", [report("JFK", hour(1), 5.0)])
    assert await trips(cached, 1) == [10]


def distances(name: str = "distances") -> fs.FeatureView:
    return fs.FeatureView(
        name,
        entities=[ROUTE],
        fields=[fs.Field("miles", fs.Int64)],
        timestamp_field="event_timestamp",
    )


async def test_pushes_are_seen_however_views_are_joined(
    store: fs.FeatureStore, open_store: OpenStore
):
    """By one key beside others, by keys in another order, under two names, by none."""
    views = [weather(), distances(), calendar()]
    await store.apply(views)
    cached = await open_store(cache=fs.Cache(max_staleness=MINUTE))
    there, here = weather().with_name("there"), weather().with_name("here")
    back = distances().with_join_key_map({"origin": "dest", "dest": "origin"})
    asked: dict[str, Any] = {
        "beside others": [there.with_join_key_map({"airport": "dest"}), distances()],
        "another order": [distances("distances").with_join_key_map({"origin": "b", "dest": "a"})],
        "there and back": [distances()["miles"].with_name("to"), back.with_name("from")],
        "two names": [
            there.with_join_key_map({"airport": "dest"}),
            here.with_join_key_map({"airport": "origin"}),
        ],
        "twice": [distances().with_join_key_map({"origin": "a", "dest": "a"})],
        "none": [calendar()],
    }
    keys = [
        {"origin": one, "dest": other, "a": other, "b": one}
        for one in ("JFK", "LGA")
        for other in ("JFK", "LGA")
    ]
    with Cases() as cases:
        for number, (name, features) in enumerate(asked.items(), 1):

            async def read(store: fs.FeatureStore, features: Any = features) -> Any:
                return await online(store, features, keys, full_feature_names=True)

            with cases.case(name):
                assert await read(cached) == await read(cached) == await read(store)
                hits = kept(cached)[0]
                at = hour(number)
                await cached.push("weather", [report("LGA", at, number)])
                assert await read(cached) == await read(store)
                route = {"origin": "JFK", "dest": "LGA", "event_timestamp": at, "miles": number}
                await cached.push("distances", [route])
                assert await read(cached) == await read(store)
                same = route | {"origin": "LGA", "miles": -number}
                await cached.push("distances", [same])
                assert await read(cached) == await read(store)
                holiday = {"event_timestamp": at, "holiday": bool(number % 2)}
                await cached.push("calendar", [holiday])
                assert await read(cached) == await read(store)
                assert kept(cached)[0] > hits, "not all of it was taken out each time"


KEYS: dict[str, tuple[fs.FeatureType, list[Any]]] = {
    "bool": (fs.Bool, [True, False]),
    "int": (fs.Int32, [0, -(2**31)]),
    "text": (fs.String, ["", "åß€", "A"]),
    "bytes": (fs.Bytes, [b"", b"\x00\xff"]),
    "date": (fs.Date, [dt.date(9999, 12, 31), dt.date(1, 1, 1)]),
    "time": (fs.Timestamp, [hour(0), hour(0) + dt.timedelta(microseconds=1)]),
    "decimal": (fs.Decimal(5, 2), [Decimal("1.50"), Decimal("-0.01")]),
}


async def test_a_push_finds_keys_of_every_type(store: fs.FeatureStore, open_store: OpenStore):
    cached = await open_store(cache=fs.Cache(max_staleness=MINUTE))
    with Cases() as cases:
        for name, (kind, values) in KEYS.items():
            with cases.case(name):
                view = driver_stats(f"by_{name}", entities=[fs.Entity(name, {name: kind})])
                await store.apply([view])
                keys = [{name: value} for value in values]
                row = {"event_timestamp": hour(1), "conv_rate": 0.5}
                first = [key | row | {"trips": 1} for key in keys]
                await store.push(view, first)
                feature = f"by_{name}:trips"
                assert await online_column(cached, feature, keys) == [1] * len(keys)
                row["event_timestamp"] = hour(2)
                await others_write(cached, 77, view.name)
                await cached.push(view, [keys[0] | row | {"trips": 2}])
                expected = [2] + [1] * (len(keys) - 1)
                assert await online_column(cached, feature, keys) == expected


# --- transactions and definitions -------------------------------------------------------------


async def test_a_transaction_reads_past_the_cache(cached: fs.FeatureStore):
    assert await trips(cached, 1) == [10]
    await others_write(cached, 77)
    async with cached.transaction() as tx:
        assert await trips(tx, 1) == [77]
        await tx.push("driver_stats", [stats(1, hour(2), trips=11)])
        assert await trips(tx, 1) == [11]
    assert await trips(cached, 1) == [11]


async def test_what_is_not_committed_is_not_kept(cached: fs.FeatureStore):
    with suppress(ZeroDivisionError):
        async with cached.transaction() as tx:
            await tx.push("driver_stats", [stats(1, hour(2), trips=11)])
            assert await trips(tx, 1) == [11]
            raise ZeroDivisionError
    assert await trips(cached, 1) == [10]


async def test_definitions_that_are_applied_are_seen(
    cached: fs.FeatureStore, store: fs.FeatureStore
):
    changed = driver_stats(fields=[fs.Field("trips", fs.Int64), fs.Field("stars", fs.Int64)])
    for writer, view in ((store, changed), (cached, driver_stats())):
        await online(cached, ["driver_stats:*"], [{"driver_id": 1}])
        await writer.apply([view], allow={"drop", "narrow"})
        (row,) = await online(cached, ["driver_stats:*"], [{"driver_id": 1}])
        assert list(row) == ["driver_id", *view.types]
        assert row["trips"] == 10
        await cached.push(
            "driver_stats",
            [
                {
                    "driver_id": 1,
                    "event_timestamp": hour(1),
                    **dict.fromkeys(view.types),
                    "trips": 10,
                }
            ],
        )


async def test_a_view_that_is_no_longer_online_is_refused(cached: fs.FeatureStore):
    assert await trips(cached, 1) == [10]
    await cached.apply([driver_stats(online=False)])
    with pytest.raises(fs.DefinitionError, match="online=False"):
        await trips(cached, 1)


async def test_whether_a_view_notifies_is_applied_without_its_tables(cached: fs.FeatureStore):
    plan = await cached.apply([driver_stats(notify=True)])
    assert str(plan).splitlines()[1:] == ["  ~ view driver_stats: notify False → True"]
    assert (await cached.get_view("driver_stats")).notify
    assert not (await cached.plan([driver_stats(notify=True)])).changes
    await cached.push("driver_stats", [stats(1, hour(2), trips=11)])
    assert await trips(cached, 1) == [11]
    await cached.apply([driver_stats()])
    assert not (await cached.get_view("driver_stats")).notify


def test_a_view_notifies_or_not():
    with pytest.raises(fs.DefinitionError, match="notify"):
        fs.FeatureView(
            "v", entities=[DRIVER], fields=[fs.Field("f", fs.Int64)], timestamp_field="t", notify=1
        )


# --- all at once ------------------------------------------------------------------------------


async def test_readers_beside_writers_see_what_was_written(
    store: fs.FeatureStore, open_store: OpenStore
):
    """Each reads at least what was written when it began, whoever is cancelled meanwhile."""
    await store.apply([driver_stats()])
    cached = await open_store(cache=fs.Cache(max_staleness=MINUTE, max_entries=12))
    chance = random.Random(7)
    written = [0] * 16
    count, done = 0, False

    async def write() -> None:
        nonlocal count
        for _ in range(30):
            drivers = chance.sample(range(16), chance.choice((1, 1, 2, 5)))
            count += 1
            mine = count
            rows = [stats(n, hour(0) + dt.timedelta(seconds=mine), trips=mine) for n in drivers]
            task = asyncio.create_task(chance.choice((store, cached)).push("driver_stats", rows))
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() / 200)
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task
                for driver in drivers:
                    written[driver] = max(written[driver], mine)

    async def read() -> int:
        reads = 0
        while not done:
            drivers = chance.sample(range(16), chance.choice((1, 1, 2, 5)))
            least = [written[driver] for driver in drivers]
            found = await trips(cached, *drivers)
            for driver, number, expected in zip(drivers, found, least, strict=True):
                assert (number or 0) >= expected, driver
            reads += 1
            await asyncio.sleep(0)
        return reads

    readers = [asyncio.create_task(read()) for _ in range(4)]
    await asyncio.gather(*(write() for _ in range(4)))
    done = True
    assert sum(await asyncio.gather(*readers)) > 50
    assert await trips(cached, *range(16)) == await trips(store, *range(16))
    hits, misses = kept(cached)
    assert hits
    assert misses
