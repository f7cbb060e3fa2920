"""Pushes of many callers at once: few transactions, and each caller as if it were alone."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import sqlalchemy as sa
from builders import ago, calendar, driver_stats, hour, stats
from oracle import Draft, Oracle

import featurestore as fs
from featurestore.storage.limits import Limits

KEYS = range(8)
TRIPS = ["driver_stats:trips"]


async def indexed(store: fs.FeatureStore, view: fs.FeatureView | None = None) -> fs.FeatureStore:
    """The store with the view, and its first load: later pushes are gathered."""
    await store.apply([view or driver_stats()])
    await store.push("driver_stats", [stats(999, hour(0))])
    return store


def draft(row: dict[str, Any]) -> Draft:
    values = {"conv_rate": row["conv_rate"], "trips": row["trips"]}
    return Draft((row["driver_id"],), row["event_timestamp"], values, row.get("created"))


async def assert_like(store: fs.FeatureStore, oracle: Oracle) -> None:
    """Online and history of ``KEYS`` are the oracle's."""
    asked = [{"driver_id": key} for key in KEYS]
    answer = await store.get_online_features(["driver_stats:*"], asked)
    expected = [oracle.online((key,), ago()) for key in KEYS]
    assert answer.to_dicts() == [
        row | vector.values for row, vector in zip(asked, expected, strict=True)
    ]
    for key in KEYS:
        history = await store.repository("driver_stats").history(driver_id=key)
        assert history["trips"].to_pylist() == [
            row.values["trips"] for row in oracle.history((key,))
        ]


# --- what callers get -------------------------------------------------------------------------


async def test_many_callers_share_few_transactions(store: fs.FeatureStore):
    await indexed(store)
    before = store.stats.pushes
    reports = await asyncio.gather(
        *(store.push("driver_stats", [stats(n, hour(n), trips=n)] * (n % 3)) for n in range(300))
    )
    after = store.stats.pushes
    assert after.requests - before.requests == 300
    assert after.rows - before.rows == 300
    assert after.batches - before.batches <= 5
    assert (after.waiting, after.in_flight) == (0, 0)

    assert [report.rows_written for report in reports] == [n % 3 for n in range(300)]
    numbers = [report.load_id for report in reports]
    assert numbers == sorted(set(numbers)), "arrivals follow the order in which the callers came"
    loads = {load.load_id: load for load in await store.loads()}
    for number, report in enumerate(reports):
        load = loads[report.load_id]
        assert (load.kind, load.source, load.view) == ("push", "rows", "driver_stats")
        assert load.rows_read == load.rows_written == number % 3
        assert (load.rows_rejected, load.rows_future, load.rows_total) == (0, 0, None)
        assert load.complete
        assert load.started_at <= load.finished_at <= dt.datetime.now(dt.UTC)
        if number % 3:
            assert load.last_arrival - load.first_arrival == number % 3 - 1
        else:
            assert load.first_arrival is load.last_arrival is None
    written = [n for n in range(300) if n % 3]
    answer = await store.get_online_features(TRIPS, [{"driver_id": n} for n in written])
    assert [row["trips"] for row in answer.to_dicts()] == written


async def test_a_load_is_recorded_as_the_first_one_was_which_goes_another_way(
    store: fs.FeatureStore,
):
    await indexed(store)
    ahead = stats(1, ago(hours=-2))
    rows = [stats(1, hour(0)), ahead, stats(2, hour(1))]
    (first,) = await store.loads()
    report = await store.push("driver_stats", rows)
    loads = await store.loads()
    assert len(loads) == 2
    assert {type(value) for value in vars(first).values()} <= {
        type(value) for value in vars(loads[1]).values()
    }
    assert (report.rows_written, report.rows_future) == (3, 1)
    assert loads[1].rows_future == 1


async def test_an_undone_load_takes_back_its_callers_rows_alone(store: fs.FeatureStore):
    await indexed(store)
    reports = await asyncio.gather(
        *(
            store.push("driver_stats", [stats(key, hour(n), trips=n) for key in KEYS])
            for n in range(10)
        )
    )
    assert store.stats.pushes.batches <= 4, "they were not gathered: the test proves nothing"
    for gone, left in ((9, 8), (5, 8), (8, 7)):
        report = await store.undo_load(reports[gone].load_id)
        assert report.rows_removed == len(KEYS)
        assert report.keys_changed == (len(KEYS) if gone != 5 else 0)
        answer = await store.get_online_features(TRIPS, [{"driver_id": key} for key in KEYS])
        assert [row["trips"] for row in answer.to_dicts()] == [left] * len(KEYS)
    with pytest.raises(fs.NotFoundError, match="undone"):
        await store.undo_load(reports[9].load_id)


async def test_ties_of_time_are_decided_by_the_order_in_which_callers_came(
    store: fs.FeatureStore,
):
    await indexed(store)
    await asyncio.gather(
        *(
            store.push("driver_stats", [stats(1, hour(0), trips=n, conv_rate=None)])
            for n in range(50)
        )
    )
    # The created time is that of the transaction, and arrivals decide within one.
    assert (await store.repository("driver_stats").get(driver_id=1))["trips"] == 49


async def test_a_global_view_and_one_that_is_not_online(store: fs.FeatureStore):
    offline = driver_stats("offline", online=False)
    await store.apply([calendar(), offline])
    for _ in range(2):
        await asyncio.gather(
            *(
                store.push("calendar", {"event_timestamp": hour(n), "holiday": n == 29})
                for n in range(30)
            ),
            *(store.push("offline", [stats(n, hour(0))]) for n in range(30)),
        )
    assert (await store.repository("calendar").get())["holiday"] is True
    assert await store.repository("calendar").count() == 60
    assert await store.repository("offline").count() == 60


# --- against the oracle -----------------------------------------------------------------------


async def test_late_and_future_rows_of_the_same_keys_end_in_the_rule(
    store: fs.FeatureStore, open_store
):
    """Rounds of callers of two stores on few keys, with ties of time in plenty."""
    view = driver_stats(created_timestamp_field="created")
    await store.apply([view])
    other, early = await open_store(), await open_store(clock_skew=dt.timedelta(hours=3))
    await store.push("driver_stats", [stats(999, hour(0), created=hour(0))])
    oracle = Oracle(["conv_rate", "trips"])
    dice, now = random.Random(4), ago()
    times = [hour(n) for n in range(3)] + [now + dt.timedelta(hours=n) for n in (1, 2, 48)]
    for round_ in range(6):
        rows = [
            [
                stats(key, dice.choice(times), n, n, created=hour(dice.randrange(2)))
                for key in dice.sample(KEYS, k=dice.randrange(1, len(KEYS)))
                for _ in range(dice.randrange(1, 3))
            ]
            for n in range(100 * round_, 100 * round_ + 24)
        ]
        reports = await asyncio.gather(
            *(
                (store, other)[n % 2].push("driver_stats", one if n % 5 else reversed(one))
                for n, one in enumerate(rows)
            )
        )
        in_order = [one if n % 5 else one[::-1] for n, one in enumerate(rows)]
        numbers = [report.load_id for report in reports]
        for _, one in sorted(zip(numbers, in_order, strict=True)):
            oracle.write(map(draft, one), ago())
        assert [r.rows_future for r in reports] == [
            sum(row["event_timestamp"] > now + dt.timedelta(minutes=5) for row in one)
            for one in rows
        ]
        await assert_like(store, oracle)

    # Rows of some keys have come due for one whose clock is ahead.
    oracle.clock_skew = dt.timedelta(hours=3)
    for key in (1, 4, 6):
        late = [stats(key, hour(-1), -1, -1, created=hour(0))]
        await early.push("driver_stats", late)
        oracle.write(map(draft, late), ago())
    await assert_like(store, oracle)


async def test_rows_that_have_come_due_come_online_with_the_next_write_to_their_key(
    store: fs.FeatureStore, open_store
):
    await indexed(store)
    early = await open_store(clock_skew=dt.timedelta(hours=3))
    rows = [stats(key, ago(hours=-2), trips=2) for key in (1, 2, 3)]
    assert (await store.push("driver_stats", rows)).rows_future == 3
    asked = [{"driver_id": key} for key in (1, 2, 3)]

    async def trips() -> list[int | None]:
        answer = await store.get_online_features(TRIPS, asked)
        return [row["trips"] for row in answer.to_dicts()]

    assert await trips() == [None, None, None]
    for _ in range(2):  # the way without pending rows is found not to do
        await asyncio.gather(*(store.push("driver_stats", [stats(9, hour(0))]) for _ in range(5)))
    assert await trips() == [None, None, None]
    await asyncio.gather(
        early.push("driver_stats", [stats(1, hour(0), trips=0)]),
        early.push("driver_stats", [stats(2, hour(0), trips=0)]),
    )
    assert early.stats.pushes.batches <= 2, "they found no way by themselves"
    assert await trips() == [2, 2, None]
    await early.materialize()
    assert await trips() == [2, 2, 2]


# --- one caller's mistake ---------------------------------------------------------------------


async def refuse_large_trips(store: fs.FeatureStore) -> None:
    """Have the database itself refuse rows of 1,000 trips, which featurestore knows nothing of."""
    table = f"{store.project}__driver_stats__history"
    if store.engine.dialect.name == "sqlite":
        statement = (
            f"CREATE TRIGGER {table}_trips BEFORE INSERT ON {table} WHEN NEW.trips >= 1000 "
            f"BEGIN SELECT RAISE(ABORT, 'too many trips'); END"
        )
    else:
        statement = f"ALTER TABLE {table} ADD CONSTRAINT too_many_trips CHECK (trips < 1000)"
    async with store.engine.begin() as connection:
        await connection.execute(sa.text(statement))


async def test_rows_that_the_database_refuses_fail_their_caller_alone(store: fs.FeatureStore):
    await indexed(store)
    await refuse_large_trips(store)
    results = await asyncio.gather(
        *(
            store.push("driver_stats", [stats(n, hour(0), trips=5000 if n in (7, 8, 31) else n)])
            for n in range(40)
        ),
        return_exceptions=True,
    )
    failed = {n: result for n, result in enumerate(results) if isinstance(result, Exception)}
    assert set(failed) == {7, 8, 31}
    assert all(isinstance(error, fs.FeatureStoreError) for error in failed.values())
    assert all("many trips" in str(error).replace("_", " ") for error in failed.values())
    assert len(set(map(id, failed.values()))) == 3, "an error that is raised twice tells nonsense"
    assert await store.repository("driver_stats").count() == 1 + 37
    assert len(await store.loads()) == 1 + 37


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({**stats(1, hour(0)), "trip": 1}, fs.SchemaMismatchError),
        ({"driver_id": 1}, fs.SchemaMismatchError),
        ("row", fs.SchemaMismatchError),
        (stats(1, hour(0), trips="3"), fs.InvalidRowsError),
        (stats(1, hour(0), trips=2**31), fs.InvalidRowsError),
        (stats(1, None), fs.InvalidRowsError),
        (stats(None, hour(0)), fs.InvalidRowsError),
    ],
)
async def test_a_bad_row_is_the_same_error_whatever_way_its_push_would_go(
    store: fs.FeatureStore, row: Any, error: type[Exception]
):
    await store.apply([driver_stats()])
    with pytest.raises(error) as first:
        await store.push("driver_stats", [stats(2, hour(0)), row])
    await store.push("driver_stats", [stats(2, hour(0))])
    good = [store.push("driver_stats", [stats(n, hour(0))]) for n in range(10)]
    bad = store.push("driver_stats", [stats(2, hour(0)), row])
    *written, second = await asyncio.gather(*good, bad, return_exceptions=True)
    assert (type(second), str(second)) == (type(first.value), str(first.value))
    assert all(isinstance(report, fs.PushReport) for report in written)
    assert await store.repository("driver_stats").count() == 11


async def test_rows_by_an_old_definition_are_read_again_by_the_new_one(
    store: fs.FeatureStore, open_store
):
    await indexed(store)
    other = await open_store()
    await other.push("driver_stats", [stats(1, hour(0))])
    wider = driver_stats(fields=[*driver_stats().fields, fs.Field("note", fs.String)])
    await store.apply([wider])
    # The other store has to find out, from the answer to a push or from a row that fits no more.
    results = await asyncio.gather(
        *(other.push("driver_stats", [stats(n, hour(1))]) for n in range(5)),
        *(other.push("driver_stats", [stats(n, hour(1), note="new")]) for n in range(5, 10)),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [fs.SchemaMismatchError] * 5 + [
        fs.PushReport
    ] * 5
    assert (await other.repository("driver_stats").get(driver_id=7))["note"] == "new"
    assert await other.repository("driver_stats").get(driver_id=2) is None


async def test_a_stream_of_few_rows_is_gathered_with_other_pushes(store: fs.FeatureStore):
    await indexed(store)

    async def source():
        for number in range(20):
            yield stats(number, hour(0), trips=number)

    before = store.stats.pushes.requests
    streamed, _ = await asyncio.gather(
        store.push_stream("driver_stats", source(), max_rows=5, on_invalid="quarantine"),
        store.push("driver_stats", [stats(50, hour(0))]),
    )
    assert (streamed.rows_written, streamed.rows_rejected) == (20, 0)
    assert store.stats.pushes.requests - before == streamed.batches + 1
    assert await store.repository("driver_stats").count() == 22


# --- waiting, and the end of it ---------------------------------------------------------------

Hold = Callable[[], AbstractAsyncContextManager[fs.Transaction]]


@pytest.fixture
async def held(store: fs.FeatureStore, open_store) -> Hold:
    """``async with held():`` keeps pushes to driver 1 waiting, by another store's transaction."""
    await indexed(store)
    other = await open_store()

    def hold() -> AbstractAsyncContextManager[fs.Transaction]:
        return other.transaction()

    return hold


async def until(done: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_callers_beyond_the_limits_are_told_at_once_or_in_time_and_not_written(
    store: fs.FeatureStore, held: Hold, open_store
):
    limited = await open_store(limits=Limits(max_waiting=3, wait_seconds=0.2))
    await limited.push("driver_stats", [stats(1, hour(0), trips=0)])
    async with held() as tx:
        await tx.push("driver_stats", [stats(1, hour(1), trips=1)])
        first = asyncio.create_task(limited.push("driver_stats", [stats(1, hour(2), trips=2)]))
        await until(lambda: limited.stats.pushes.in_flight == 1)
        waiting = [
            asyncio.create_task(limited.push("driver_stats", [stats(n, hour(2))]))
            for n in range(100, 103)
        ]
        await until(lambda: limited.stats.pushes.waiting == 3)
        with pytest.raises(fs.OverloadedError, match="not written"):
            await limited.push("driver_stats", [stats(103, hour(2))])
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [fs.OverloadedError] * 3
        assert "not written" in str(results[0]).replace("was not", "not")
    stats_then = limited.stats.pushes
    assert (stats_then.waiting, stats_then.overloaded) == (0, 4)
    # SQLite's writer is waited for no longer than the limit says, PostgreSQL's row as it takes.
    (end,) = await asyncio.gather(first, return_exceptions=True)
    assert isinstance(end, fs.PushReport | fs.StoreUnavailableError)
    found = await store.repository("driver_stats").get_many(
        [{"driver_id": n} for n in range(100, 104)]
    )
    assert found == [None] * 4
    await limited.push("driver_stats", [stats(103, hour(2), trips=3)])
    assert (await store.repository("driver_stats").get(driver_id=103))["trips"] == 3


async def test_a_store_that_is_closed_tells_those_that_wait_and_ends_those_under_way(
    store: fs.FeatureStore, held: Hold, open_store
):
    closing = await open_store()
    await closing.push("driver_stats", [stats(1, hour(0), trips=0)])
    async with held() as tx:
        await tx.push("driver_stats", [stats(1, hour(1), trips=1)])
        first = asyncio.create_task(closing.push("driver_stats", [stats(1, hour(2), trips=2)]))
        await until(lambda: closing.stats.pushes.in_flight == 1)
        waiting = [
            asyncio.create_task(closing.push("driver_stats", [stats(n, hour(2))]))
            for n in range(100, 103)
        ]
        await until(lambda: closing.stats.pushes.waiting == 3)
        await closing.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [fs.StoreUnavailableError] * 3
    assert "closed" in str(results[0])
    assert (await first).rows_written == 1
    assert (await store.repository("driver_stats").get(driver_id=1))["trips"] == 2
    assert await store.repository("driver_stats").get(driver_id=100) is None


@pytest.mark.parametrize(
    "cancelled", [{0}, {1}, {2, 5}, {0, 1, 2, 3}, set(range(1, 8)), set(range(8))]
)
async def test_callers_that_are_cancelled_leave_the_others_alone(
    store: fs.FeatureStore, held: Hold, cancelled: set[int]
):
    """The first is under way, the others wait: who is cancelled was not written."""
    async with held() as tx:
        await tx.push("driver_stats", [stats(1, hour(1), trips=1)])
        pushes = [
            asyncio.create_task(store.push("driver_stats", [stats(1, hour(n + 2), trips=n)]))
            for n in range(8)
        ]
        await until(lambda: store.stats.pushes.waiting == 7)
        for number in cancelled:
            pushes[number].cancel()
        ended, _ = await asyncio.wait([pushes[n] for n in cancelled], timeout=5)
        assert len(ended) == len(cancelled), "what was cancelled goes on waiting"
        assert not any(pushes[n].done() for n in set(range(8)) - cancelled)
    await asyncio.wait(pushes)
    assert {n for n in range(8) if pushes[n].cancelled()} == cancelled
    assert all(pushes[n].result().rows_written == 1 for n in set(range(8)) - cancelled)
    history = await store.repository("driver_stats").history(driver_id=1)
    assert history["trips"].to_pylist() == [1, *sorted(set(range(8)) - cancelled)]
    counted = store.stats.pushes
    assert (counted.waiting, counted.in_flight) == (0, 0)
