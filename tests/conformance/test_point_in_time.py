"""The point-in-time rule, held to the oracle and to examples made by hand."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pytest
from builders import (
    calendar,
    driver_stats,
    entity_rows,
    hour,
    parquet,
    stats,
    table_of,
    training,
    write,
)
from cases import kinds, next_example
from hypothesis import given
from oracle import Oracle
from strategies import FEATURES, NOW, TTL, PointInTimeCase, point_in_time_cases

import featurestore as fs

KINDS = kinds(TTL)
FOUR = driver_stats(ttl=dt.timedelta(hours=2))


@pytest.fixture
async def kinds_store(store: fs.FeatureStore) -> fs.FeatureStore:
    await store.apply([kind.view for kind in KINDS.values()])
    return store


@given(case=point_in_time_cases())
async def test_a_training_set_is_what_the_oracle_says(
    kinds_store: fs.FeatureStore, tmp_path: Path, case: PointInTimeCase
):
    kind = KINDS[case.kind, case.limited]
    example = next_example()
    oracle = Oracle(FEATURES, ttl=TTL if case.limited else None)
    for batch in case.batches:
        rows = [kind.row(example, draft) for draft in batch.rows]
        await write(kinds_store, kind.view, rows, batch.way, tmp_path)
        oracle.write(batch.rows, NOW)

    entities = kind.entity_table(example, case.questions)
    features = [f"{kind.view.name}:*"]
    found = await kinds_store.get_historical_features(entities, features)
    streamed = [batch async for batch in kinds_store.stream_historical_features(entities, features)]

    expected = [oracle.values_at(keys, when) for keys, when in case.questions]
    answers = found.to_arrow().select(FEATURES).to_pylist()
    assert answers == expected
    assert found.to_arrow().select(entities.column_names).equals(entities)
    assert [row for batch in streamed for row in batch.select(FEATURES).to_pylist()] == expected
    if case.questions:
        matched = [oracle.stored_at(*question) is not None for question in case.questions]
        share = sum(matched) / len(matched)
        assert found.match_rate[kind.view.name] == pytest.approx(share)


async def test_both_bounds_are_inclusive_to_the_microsecond(store: fs.FeatureStore):
    await store.apply([FOUR])
    await store.push("driver_stats", [stats(1, hour(0), 0.25)])
    tick = dt.timedelta(microseconds=1)
    times = [hour(0) - tick, hour(0), hour(2), hour(2) + tick]
    rows = await training(store, entity_rows(*[(1, when) for when in times]), [FOUR])
    assert [row["conv_rate"] for row in rows] == [None, 0.25, 0.25, None]


async def test_a_newest_row_past_its_ttl_does_not_uncover_an_older_one(store: fs.FeatureStore):
    await store.apply([FOUR])
    await store.push("driver_stats", [stats(1, hour(0), 0.1), stats(1, hour(-1), 0.2)])
    rows = await training(store, entity_rows((1, hour(2)), (1, hour(2.5))), [FOUR])
    assert [row["conv_rate"] for row in rows] == [0.1, None]


async def test_a_null_in_the_newest_row_is_null(store: fs.FeatureStore):
    await store.apply([FOUR])
    await store.push("driver_stats", [stats(1, hour(0), 0.1, 7), stats(1, hour(1), None, 8)])
    found = await store.get_historical_features(entity_rows((1, hour(1))), [FOUR])
    assert found.to_arrow().select(["conv_rate", "trips"]).to_pylist() == [
        {"conv_rate": None, "trips": 8}
    ]
    assert found.match_rate == {"driver_stats": 1.0}


@pytest.mark.parametrize("way", ["push rows", "push Arrow", "ingest Arrow", "ingest Parquet"])
async def test_among_equal_times_the_last_row_of_a_write_wins(
    store: fs.FeatureStore, tmp_path: Path, way: str
):
    await store.apply([FOUR])
    rows = [stats(1, hour(0), trips=trips) for trips in range(20)]
    await write(store, FOUR, rows, way, tmp_path)
    assert [row["trips"] for row in await training(store, entity_rows((1, hour(1))), [FOUR])] == [
        19
    ]


async def test_among_equal_times_the_later_write_wins_also_over_the_rows_of_a_list_of_files(
    store: fs.FeatureStore, tmp_path: Path
):
    await store.apply([FOUR])
    await store.push("driver_stats", [stats(1, hour(0), trips=100)])
    files = [
        parquet(tmp_path, FOUR, [stats(1, hour(0), trips=number)], f"{name}.parquet")
        for number, name in enumerate(["z", "y", "x", "a"])
    ]
    await store.ingest("driver_stats", files)
    assert [row["trips"] for row in await training(store, entity_rows((1, hour(1))), [FOUR])] == [3]


async def test_created_time_comes_before_arrival_and_is_the_load_time_where_null(
    store: fs.FeatureStore,
):
    view = driver_stats(created_timestamp_field="created")
    await store.apply([view])
    long_ago = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    far_ahead = dt.datetime(2200, 1, 1, tzinfo=dt.UTC)
    for driver, created in {1: [None, long_ago], 2: [long_ago, None], 3: [far_ahead, None]}.items():
        for trips, moment in enumerate(created):
            row = stats(driver, hour(0), trips=trips, created=moment)
            await store.push("driver_stats", [row])
    rows = await training(store, entity_rows(*[(d, hour(1)) for d in (1, 2, 3)]), [view])
    assert [row["trips"] for row in rows] == [0, 1, 0]


async def test_a_source_without_the_created_column_takes_the_time_of_the_load(
    store: fs.FeatureStore, tmp_path: Path
):
    view = driver_stats(created_timestamp_field="created")
    await store.apply([view])
    far_ahead = dt.datetime(2200, 1, 1, tzinfo=dt.UTC)
    await store.push("driver_stats", [stats(1, hour(0), trips=1, created=hour(-9000))])
    without = table_of(driver_stats(), [stats(1, hour(0), trips=2)])
    await store.ingest("driver_stats", without)
    assert (await training(store, entity_rows((1, hour(1))), [view]))[0]["trips"] == 2
    await store.push("driver_stats", [stats(1, hour(0), trips=3, created=far_ahead)])
    await store.push("driver_stats", [stats(1, hour(0), trips=4)])
    assert (await training(store, entity_rows((1, hour(1))), [view]))[0]["trips"] == 3


async def test_a_global_view_joins_on_time_alone(store: fs.FeatureStore):
    view = calendar()
    await store.apply([view])
    await store.push(
        "calendar",
        [
            {"event_timestamp": hour(24), "holiday": False},
            {"event_timestamp": hour(0), "holiday": True},
        ],
    )
    times = pa.array([hour(25), hour(-1), hour(0), hour(23)], fs.Timestamp.arrow)
    rows = await training(store, pa.table({"event_timestamp": times}), [view])
    assert [row["holiday"] for row in rows] == [False, None, True, True]


async def test_the_far_ends_of_time_are_times_like_others(store: fs.FeatureStore):
    view = driver_stats(ttl=dt.timedelta(days=365 * 9000))
    await store.apply([view])
    first = dt.datetime(1, 1, 1, tzinfo=dt.UTC)
    last = dt.datetime.max.replace(tzinfo=dt.UTC)
    await store.push("driver_stats", [stats(1, first, trips=1), stats(1, last, trips=2)])
    rows = await training(store, entity_rows((1, first), (1, hour(0)), (1, last)), [view])
    assert [row["trips"] for row in rows] == [1, 1, 2]


async def test_a_ttl_longer_than_time_itself_is_no_limit(store: fs.FeatureStore):
    view = driver_stats(ttl=dt.timedelta.max)
    await store.apply([view])
    await store.push("driver_stats", [stats(1, dt.datetime(1, 1, 1, tzinfo=dt.UTC), trips=1)])
    rows = await training(store, entity_rows((1, hour(0))), [view])
    assert [row["trips"] for row in rows] == [1]
    assert (await store.repository("driver_stats").get(driver_id=1))["trips"] == 1
