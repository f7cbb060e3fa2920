"""What comes online when: late data, rows ahead of the clock, and materialize."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from pathlib import Path
from typing import Any

import pytest
from builders import (
    ago,
    driver_stats,
    entity_rows,
    hour,
    parquet,
    stats,
    table_of,
    training,
    until,
    weather,
    write,
)
from oracle import Draft, Oracle
from strategies import WAYS

import featurestore as fs

NO_SKEW = {"clock_skew": dt.timedelta(0)}


async def trips(store: fs.FeatureStore, *drivers: int) -> list[int | None]:
    rows = await store.repository("driver_stats").get_many([{"driver_id": n} for n in drivers])
    return [row and row["trips"] for row in rows]


@pytest.mark.parametrize("way", WAYS)
async def test_late_data_never_replaces_newer(store: fs.FeatureStore, tmp_path: Path, way: str):
    await store.apply([driver_stats()])
    for when, number in ((2, 20), (1, 10), (3, 30), (0, 0)):
        await write(store, driver_stats(), [stats(1, hour(when), trips=number)], way, tmp_path)
        assert await trips(store, 1) == [20 if when in (2, 1) else 30]


@pytest.mark.parametrize("way", WAYS)
async def test_one_write_may_hold_many_versions_in_any_order(
    store: fs.FeatureStore, tmp_path: Path, way: str
):
    await store.apply([driver_stats()])
    rows = [stats(n % 3, hour(n * 7 % 10), trips=n * 7 % 10) for n in range(30)]
    await write(store, driver_stats(), rows, way, tmp_path)
    assert await trips(store, 0, 1, 2) == [9, 9, 9]


async def test_created_times_break_ties_online(store: fs.FeatureStore):
    await store.apply([driver_stats(created_timestamp_field="created")])
    for number, created in ((1, hour(2)), (2, hour(1)), (3, hour(2)), (4, None), (5, hour(0))):
        await store.push("driver_stats", [stats(1, hour(0), trips=number, created=created)])
    assert await trips(store, 1) == [4]


async def test_nulls_do_not_let_older_values_through(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(1, hour(0), 0.5, 1)])
    await store.push("driver_stats", [stats(1, hour(1), None, 2)])
    found = await store.repository("driver_stats").get(driver_id=1)
    assert (found["conv_rate"], found["trips"]) == (None, 2)


async def test_a_row_ahead_within_the_clock_skew_counts_as_now(store: fs.FeatureStore, open_store):
    await store.apply([driver_stats(ttl=dt.timedelta(hours=1))])
    pushed = await store.push("driver_stats", [stats(1, ago(seconds=-55), trips=1)])
    assert pushed.rows_future == 0
    assert await trips(store, 1) == [1]
    strict = await open_store(**NO_SKEW)
    pushed = await strict.push("driver_stats", [stats(2, ago(seconds=-55), trips=2)])
    assert pushed.rows_future == 1
    assert await trips(strict, 2) == [None]
    lenient = await open_store(clock_skew=dt.timedelta(days=2))
    pushed = await lenient.push("driver_stats", [stats(3, ago(days=-1), trips=3)])
    assert pushed.rows_future == 0
    assert await trips(lenient, 3) == [3]


@pytest.mark.parametrize("way", WAYS)
async def test_a_row_far_ahead_is_kept_and_counted_and_not_online(
    store: fs.FeatureStore, tmp_path: Path, way: str
):
    await store.apply([driver_stats()])
    rows = [stats(1, hour(0), trips=1), stats(1, ago(hours=-1), trips=2)]
    load_id = await write(store, driver_stats(), rows, way, tmp_path)
    assert await trips(store, 1) == [1]
    assert await store.repository("driver_stats").count() == 2
    (load,) = await store.loads()
    assert (load.load_id, load.rows_future) == (load_id, 1)


async def test_reports_count_rows_ahead(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    rows = [stats(n, ago(hours=-n)) for n in range(5)]
    assert (await store.push("driver_stats", rows)).rows_future == 4
    loaded = await store.ingest("driver_stats", table_of(driver_stats(), rows))
    assert (loaded.rows_future, loaded.loads[0].rows_future) == (4, 4)


async def test_a_row_ahead_comes_online_after_its_time(store: fs.FeatureStore, open_store):
    """By a write to its key, even of something older, or by a materialize; not by itself."""
    strict = await open_store(**NO_SKEW)
    await strict.apply([driver_stats(), weather()])
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1.5)
    old = [stats(n, hour(1), trips=0) for n in (1, 2, 3, 4)]
    ahead = [stats(n, soon, trips=n) for n in (1, 2, 3)]
    ahead.append(stats(4, ago(days=-1), trips=4))
    await strict.push("driver_stats", old + ahead)
    assert await trips(strict, 1, 2, 3, 4) == [0, 0, 0, 0]
    await strict.materialize()
    assert await trips(strict, 1, 2, 3, 4) == [0, 0, 0, 0]

    await until(soon)
    await strict.push("driver_stats", [stats(1, hour(0), trips=-1)])
    assert await trips(strict, 1) == [1]
    load_id = (await strict.push("driver_stats", [stats(2, hour(0), trips=-1)])).load_id
    await strict.undo_load(load_id)
    assert await trips(strict, 2) == [2]

    report = await strict.materialize(["driver_stats"])
    assert report.keys_changed == {"driver_stats": 1}
    assert await trips(strict, 1, 2, 3, 4) == [1, 2, 3, 0]
    assert (await strict.materialize()).keys_changed == {"driver_stats": 0, "weather": 0}


async def test_materialize_of_a_window_is_of_the_keys_with_an_event_in_it(
    store: fs.FeatureStore, open_store
):
    strict = await open_store(**NO_SKEW)
    await strict.apply([driver_stats()])
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
    later = soon + dt.timedelta(milliseconds=200)
    await strict.push("driver_stats", [stats(1, soon, trips=1), stats(2, later, trips=2)])
    await strict.push("driver_stats", [stats(1, hour(0), trips=0), stats(2, hour(5), trips=0)])
    await until(later)
    for start, end in ((hour(1), hour(4)), (hour(6), soon - dt.timedelta(microseconds=1))):
        report = await strict.materialize(["driver_stats"], start=start, end=end)
        assert report.keys_changed == {"driver_stats": 0}
    await strict.materialize(["driver_stats"], start=soon, end=soon)  # both inclusive
    assert await trips(strict, 1, 2) == [1, 0]
    # A window chooses keys, not rows: the newest row of driver 2 lies outside this one.
    await strict.materialize(["driver_stats"], start=hour(5), end=hour(5))
    assert await trips(strict, 1, 2) == [1, 2]


async def test_materialize_takes_some_views_or_all(store: fs.FeatureStore):
    await store.apply([driver_stats(), weather(), weather("offline", online=False)])
    assert set((await store.materialize()).keys_changed) >= {"driver_stats", "weather"}
    assert set((await store.materialize(["weather"])).keys_changed) == {"weather"}
    assert set((await store.materialize([weather()])).keys_changed) == {"weather"}
    assert (await store.materialize([])).keys_changed == {}
    with pytest.raises(fs.DefinitionError, match="offline"):
        await store.materialize(["offline"])


async def test_training_sees_a_row_ahead_at_its_time(store: fs.FeatureStore):
    """History knows no clock: a question about next year may be asked."""
    await store.apply([driver_stats()])
    ahead = ago(days=-365)
    await store.push("driver_stats", [stats(1, ahead, trips=5)])
    asked = entity_rows((1, ahead), (1, ahead - dt.timedelta(microseconds=1)))
    rows = await training(store, asked, ["driver_stats:trips"])
    assert [row["trips"] for row in rows] == [5, None]


# --- large loads, which may take a way of their own ---------------------------------------------

MANY = 3000


def many_rows(load: int) -> list[dict[str, Any]]:
    """Rows of 40 drivers with ties and some created times.

    For some drivers they are newer than those of the load before, for others older; the last
    load has some that are ahead of the clock.
    """
    dice = random.Random(load)
    rows = []
    for number in range(MANY):
        driver = dice.randrange(40)
        moment = hour(dice.randrange((driver + 3 * load) % 7 + 1))
        if load == 2 and number % 50 == 0:
            moment = ago(days=-1)
        created = dice.choice([None, hour(1), hour(2)])
        rows.append(stats(driver, moment, trips=number + MANY * load, created=created))
    return rows


@pytest.mark.parametrize("way", ["push Arrow", "ingest Parquet"])
async def test_large_loads_follow_the_same_rule(store: fs.FeatureStore, tmp_path: Path, way: str):
    view = driver_stats(created_timestamp_field="created")
    await store.apply([view])
    oracle = Oracle(["trips"])
    for load in range(3):
        rows = many_rows(load)
        if way == "push Arrow":
            await store.push("driver_stats", table_of(view, rows))
        else:
            await store.ingest("driver_stats", parquet(tmp_path, view, rows, group=700))
        drafts = [
            Draft((r["driver_id"],), r["event_timestamp"], {"trips": r["trips"]}, r["created"])
            for r in rows
        ]
        await asyncio.to_thread(oracle.write, drafts, ago())
        expected = [oracle.online((n,), ago()).values["trips"] for n in range(41)]
        assert await trips(store, *range(41)) == expected


async def test_a_large_load_brings_rows_online_whose_time_has_come(
    store: fs.FeatureStore, open_store
):
    strict = await open_store(**NO_SKEW)
    await strict.apply([driver_stats()])
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
    await strict.push("driver_stats", [stats(n, soon, trips=-1) for n in range(5)])
    await until(soon)
    rows = [stats(n, hour(0), trips=1) for n in range(2, MANY)]
    await strict.ingest("driver_stats", table_of(driver_stats(), rows))
    assert await trips(strict, 0, 1, 2, 3, 4, 5) == [None, None, -1, -1, -1, 1]
