"""Why a value is what it is: the same answer as the training set's, and where it came from."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa
from builders import (
    ROUTE,
    Cases,
    ago,
    calendar,
    driver_stats,
    entity_rows,
    hour,
    parquet,
    small_blocks,
    stats,
    table_of,
    training,
    until,
    write,
)
from cases import kinds, next_example
from hypothesis import given
from oracle import Oracle
from strategies import FEATURES, NOW, TTL, PointInTimeCase, point_in_time_cases

import featurestore as fs
from featurestore.training.candidates import candidates_query

OpenStore = Callable[..., Awaitable[fs.FeatureStore]]

V = fs.Verdict
KINDS = kinds(TTL)
FOUR = driver_stats(ttl=dt.timedelta(hours=2))
MADE = driver_stats(created_timestamp_field="made")
TICK = dt.timedelta(microseconds=1)
ONE = {"driver_id": 1}


def verdicts(told: fs.Explanation) -> list[tuple[Any, fs.Verdict]]:
    """(trips, verdict) of each candidate."""
    return [(one.values["trips"], one.verdict) for one in told.candidates]


@pytest.fixture
async def kinds_store(store: fs.FeatureStore) -> fs.FeatureStore:
    await store.apply([kind.view for kind in KINDS.values()])
    return store


@given(case=point_in_time_cases())
async def test_the_winner_is_the_oracles_row(
    kinds_store: fs.FeatureStore, tmp_path: Path, case: PointInTimeCase
):
    kind = KINDS[case.kind, case.limited]
    example = next_example()
    oracle = Oracle(FEATURES, ttl=TTL if case.limited else None)
    loads = {}
    for batch in case.batches:
        rows = [kind.row(example, draft) for draft in batch.rows]
        number = oracle.write(batch.rows, NOW)
        loads[number] = await write(kinds_store, kind.view, rows, batch.way, tmp_path)

    for keys, when in case.questions[:4]:
        if None in keys:
            continue
        told = await kinds_store.explain(kind.view, kind.key_row(example, keys), when)
        expected = oracle.stored_at(keys, when)
        assert told.values == oracle.values_at(keys, when)
        assert told.rows == len(oracle.history(keys))
        assert len(told.candidates) == min(10, told.rows)
        assert (told.winner is None) == (expected is None)
        ranks = [
            (one.event_timestamp, one.created_timestamp, one.arrival) for one in told.candidates
        ]
        assert ranks == sorted(ranks, reverse=True)
        if expected is None or told.winner is None:
            continue
        within = [row for row in oracle.rows if row.load == expected.load]
        assert told.winner.event_timestamp == expected.event
        assert told.winner.load_id == loads[expected.load]
        assert told.winner.position == within.index(expected)


async def test_each_row_is_judged_and_named(store: fs.FeatureStore):
    await store.apply([FOUR])
    first = await store.push(FOUR, [stats(1, hour(number), trips=number) for number in range(5)])
    second = await store.push(FOUR, [stats(1, hour(3), None, 30), stats(2, hour(3))])
    told = await store.explain("driver_stats", ONE, hour(3.5))
    assert verdicts(told) == [
        (4, V.AFTER),
        (30, V.WINNER),
        (3, V.TIED_CREATED),
        (2, V.OLDER),
        (1, V.PAST_TTL),
        (0, V.PAST_TTL),
    ]
    assert told.winner is told.candidates[1]
    assert told.values == {"conv_rate": None, "trips": 30}
    assert (told.view, told.keys, told.at, told.ttl, told.oldest) == (
        "driver_stats",
        ONE,
        hour(3.5),
        dt.timedelta(hours=2),
        hour(1.5),
    )
    assert (told.rows, told.known_by, told.online) == (6, None, None)
    assert (told.winner.load_id, told.winner.position) == (second.load_id, 0)
    assert [one.position for one in told.candidates[2:]] == [3, 2, 1, 0]
    assert {one.load_id for one in told.candidates[2:]} == {first.load_id}
    load = (await store.loads())[1]
    assert (told.winner.kind, told.winner.source) == (load.kind, load.source) == ("push", "rows")
    assert told.winner.loaded_at == load.finished_at
    assert told.winner.created_timestamp <= load.finished_at
    assert all(one.reason.endswith(".") for one in told.candidates)
    assert str(told).splitlines()[-1] == told.reason


async def test_both_bounds_of_the_ttl_are_inclusive(store: fs.FeatureStore):
    await store.apply([FOUR])
    await store.push(FOUR, [stats(1, hour(0), trips=7)])
    expected = {
        hour(0) - TICK: V.AFTER,
        hour(0): V.WINNER,
        hour(2): V.WINNER,
        hour(2) + TICK: V.PAST_TTL,
    }
    for when, verdict in expected.items():
        told = await store.explain(FOUR, ONE, when)
        assert verdicts(told) == [(7, verdict)]
        assert told.values["trips"] == (7 if verdict is V.WINNER else None)


async def test_a_newest_row_past_its_ttl_does_not_uncover_an_older_one(store: fs.FeatureStore):
    await store.apply([FOUR])
    await store.push(FOUR, [stats(1, hour(0), trips=0), stats(1, hour(-1), trips=1)])
    told = await store.explain(FOUR, ONE, hour(2.5))
    assert verdicts(told) == [(0, V.PAST_TTL), (1, V.PAST_TTL)]
    assert told.winner is None
    assert told.values == {"conv_rate": None, "trips": None}
    assert "older rows do not show through" in told.reason


@pytest.mark.parametrize("way", ["push rows", "push Arrow", "ingest Arrow", "ingest Parquet"])
async def test_ties_are_told_by_created_time_and_then_by_arrival(
    store: fs.FeatureStore, tmp_path: Path, way: str
):
    await store.apply([MADE])
    rows = [
        stats(1, hour(0), trips=trips, made=made)
        for trips, made in enumerate([hour(5), hour(6), hour(6), hour(4)])
    ]
    load_id = await write(store, MADE, rows, way, tmp_path)
    told = await store.explain(MADE, ONE, hour(0))
    assert verdicts(told) == [
        (2, V.WINNER),
        (1, V.TIED_ARRIVAL),
        (0, V.TIED_CREATED),
        (3, V.TIED_CREATED),
    ]
    assert [one.position for one in told.candidates] == [2, 1, 0, 3]
    assert {one.load_id for one in told.candidates} == {load_id}
    assert [one.created_timestamp for one in told.candidates[:2]] == [hour(6)] * 2


async def test_late_data_and_loads_taken_back(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(1, hour(2), trips=2)])
    late = await store.push("driver_stats", [stats(1, hour(1), trips=1)])
    told = await store.explain("driver_stats", ONE, hour(1.5))
    assert verdicts(told) == [(2, V.AFTER), (1, V.WINNER)]
    assert told.winner is not None
    assert told.winner.load_id == late.load_id

    await store.undo_load(late.load_id)
    told = await store.explain("driver_stats", ONE, hour(1.5))
    assert verdicts(told) == [(2, V.AFTER)]
    assert (told.rows, told.winner) == (1, None)
    assert "There is no row up to" in told.reason


# --- where rows come from ---------------------------------------------------------------------


async def test_the_files_of_one_ingest_are_told_apart(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([FOUR])
    contents = [[stats(2, hour(0)), stats(1, hour(0), trips=number)] for number in range(3)]
    paths = [
        parquet(tmp_path, FOUR, rows, f"{number}.parquet") for number, rows in enumerate(contents)
    ]
    report = await store.ingest(FOUR, paths)
    told = await store.explain(FOUR, ONE, hour(0))
    assert [Path(one.source).name for one in told.candidates] == [
        "2.parquet",
        "1.parquet",
        "0.parquet",
    ]
    assert [one.load_id for one in told.candidates] == [
        load.load_id for load in reversed(report.loads)
    ]
    assert {one.kind for one in told.candidates} == {"file"}
    assert {one.position for one in told.candidates} == {1}


async def test_a_load_in_steps_is_one_load(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([FOUR])
    rows = [stats(number % 2, hour(0), trips=number) for number in range(50)]
    path = await asyncio.to_thread(parquet, tmp_path, FOUR, rows, group=7)
    await store.push(FOUR, [stats(1, hour(-1), trips=100)])
    report = await store.ingest(FOUR, path, commit_every=4)
    told = await store.explain(FOUR, ONE, hour(0), limit=40)
    assert [one.position for one in told.candidates] == [*range(49, 0, -2), 0]
    assert {one.load_id for one in told.candidates[:-1]} == {report.loads[0].load_id}
    assert [one.values["trips"] for one in told.candidates] == [*range(49, 0, -2), 100]


async def test_rows_that_a_load_has_rejected_are_not_counted(
    store: fs.FeatureStore, tmp_path: Path
):
    await store.apply([FOUR])
    rows = [stats(None, hour(0)), stats(2, hour(0)), stats(3, None), stats(1, hour(0))]
    await store.ingest(FOUR, parquet(tmp_path, FOUR, rows), on_invalid="quarantine")
    told = await store.explain(FOUR, ONE, hour(0))
    assert [one.position for one in told.candidates] == [1]


async def test_a_load_of_several_blocks_is_found_by_each(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch
):
    small_blocks(monkeypatch, 2)
    await store.apply([FOUR])
    await store.ingest(FOUR, table_of(FOUR, [stats(1, hour(0), trips=n) for n in range(10)]))
    await store.push(FOUR, [stats(1, hour(0), trips=100)])
    told = await store.explain(FOUR, ONE, hour(0), limit=20)
    assert [one.position for one in told.candidates] == [0, *range(9, -1, -1)]
    loads = [load.load_id for load in await store.loads()]
    assert [one.load_id for one in told.candidates] == [loads[1]] + [loads[0]] * 10


async def test_values_come_as_online_gives_them(store: fs.FeatureStore):
    fields = {
        "flag": (fs.Bool, True),
        "small": (fs.Float32, 0.5),
        "document": (fs.Json, {"a": [1, None]}),
        "price": (fs.Decimal(10, 2), decimal.Decimal("1.50")),
        "day": (fs.Date, dt.date(2024, 2, 29)),
        "when": (fs.Timestamp, hour(1) + TICK),
        "raw": (fs.Bytes, b"\x00\xff"),
        "times": (fs.Array(fs.Timestamp), [hour(1), None]),
        "missing": (fs.String, None),
        "empty": (fs.Array(fs.Int64), []),
    }
    view = driver_stats(fields=[fs.Field(name, kind) for name, (kind, _) in fields.items()])
    await store.apply([view])
    values = {name: value for name, (_, value) in fields.items()}
    await store.push(view, [{"driver_id": 1, "event_timestamp": ago(hours=1), **values}])
    told = await store.explain(view, ONE)
    assert told.values == values
    assert told.online is not None
    assert told.online.agrees
    assert told.online.values == values


# --- known by ---------------------------------------------------------------------------------


async def test_known_by_leaves_out_what_was_created_later(store: fs.FeatureStore):
    await store.apply([MADE])
    rows = [
        stats(1, hour(0), trips=0, made=hour(0)),
        stats(1, hour(1), trips=1, made=hour(1)),
        stats(1, hour(2), trips=2, made=hour(9)),
        stats(1, hour(2), trips=3, made=hour(8)),
        stats(1, hour(5), trips=5, made=hour(5)),
    ]
    await store.push(MADE, rows)
    plain = await store.explain(MADE, ONE, hour(4))
    assert plain.values["trips"] == 2
    told = await store.explain(MADE, ONE, hour(4), known_by="created_timestamp")
    assert verdicts(told) == [
        (5, V.AFTER),
        (2, V.NOT_KNOWN_YET),
        (3, V.NOT_KNOWN_YET),
        (1, V.WINNER),
        (0, V.OLDER),
    ]
    assert told.values["trips"] == 1
    assert "created after that moment" in told.reason
    at_the_bound = await store.explain(MADE, ONE, hour(8), known_by="created_timestamp")
    assert at_the_bound.values["trips"] == 5
    none = await store.explain(MADE, ONE, hour(0) - TICK, known_by="created_timestamp")
    assert none.winner is None


async def test_many_rows_not_known_yet_do_not_hide_the_one_that_wins(store: fs.FeatureStore):
    await store.apply([MADE])
    rows = [stats(1, hour(number), trips=number, made=hour(900)) for number in range(1, 200)]
    await store.push(MADE, [*rows, stats(1, hour(0), trips=0, made=hour(0))])
    told = await store.explain(MADE, ONE, hour(300), known_by="created_timestamp", limit=2)
    assert verdicts(told) == [(199, V.NOT_KNOWN_YET), (0, V.WINNER)]
    assert told.values["trips"] == 0
    assert told.rows == 200


# --- keys and views ---------------------------------------------------------------------------


async def test_composite_keys_in_any_order(store: fs.FeatureStore):
    view = fs.FeatureView(
        "routes",
        entities=[ROUTE],
        fields=[fs.Field("minutes", fs.Int32)],
        timestamp_field="event_timestamp",
    )
    await store.apply([view])
    rows = [
        {"origin": origin, "dest": dest, "event_timestamp": hour(0), "minutes": number}
        for number, (origin, dest) in enumerate([("JFK", "LAX"), ("LAX", "JFK"), ("JFK", "jfk")])
    ]
    await store.push(view, rows)
    told = await store.explain(view, {"dest": "JFK", "origin": "LAX"}, hour(0))
    assert (told.values, told.rows) == ({"minutes": 1}, 1)
    assert list(told.keys.items()) == [("origin", "LAX"), ("dest", "JFK")]


async def test_a_global_view_takes_no_keys(store: fs.FeatureStore):
    view = calendar()
    await store.apply([view])
    empty = await store.explain(view, {})
    assert (empty.candidates, empty.rows, empty.values) == ((), 0, {"holiday": None})
    assert "has no row of any time" in empty.reason
    await store.push(view, [{"event_timestamp": hour(0), "holiday": True}])
    told = await store.explain(view, {}, hour(1))
    assert (told.values, told.keys) == ({"holiday": True}, {})
    now = await store.explain(view, {})
    assert now.online is not None
    assert now.online.agrees


async def test_what_is_asked_wrongly_is_said(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (fs.NotFoundError, "Did you mean 'driver_stats'", {"view": "driver_stat"}),
        (fs.DefinitionError, "is no view", {"view": 7}),
        (fs.SchemaMismatchError, "Did you mean 'driver_id'", {"keys": {"driver": 1}}),
        (fs.SchemaMismatchError, r"join key 'driver_id' \(int64\) is missing", {"keys": {}}),
        (fs.SchemaMismatchError, "it must be int64", {"keys": {"driver_id": "1"}}),
        (fs.SchemaMismatchError, "it must be int64", {"keys": {"driver_id": None}}),
        (fs.InvalidRowsError, "driver_id", {"keys": {"driver_id": 2**63}}),
        (fs.SchemaMismatchError, "keys is a mapping", {"keys": 1}),
        (fs.DefinitionError, "at: ", {"at": "noon"}),
        (fs.DefinitionError, "known_by", {"known_by": "made"}),
        (fs.DefinitionError, "limit", {"limit": 0}),
    ]
    with Cases() as cases:
        for error, words, changes in wrong:
            with cases.case(words), pytest.raises(error, match=words):
                await store.explain(**({"view": "driver_stats", "keys": ONE} | changes))


async def test_a_naive_time_is_utc(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(1, hour(0))])
    told = await store.explain("driver_stats", ONE, hour(0).replace(tzinfo=None))
    assert told.at == hour(0)
    assert told.winner is not None
    zone = dt.timezone(dt.timedelta(hours=5))
    assert (await store.explain("driver_stats", ONE, hour(0).astimezone(zone))).winner is not None


async def test_the_far_ends_of_time(store: fs.FeatureStore):
    view = driver_stats(ttl=dt.timedelta(days=365 * 9000))
    await store.apply([view])
    first = dt.datetime(1, 1, 1, tzinfo=dt.UTC)
    last = dt.datetime.max.replace(tzinfo=dt.UTC)
    await store.push(view, [stats(1, first, trips=1), stats(1, last, trips=2)])
    for when, trips in {first: 1, hour(0): 1, last: 2}.items():
        told = await store.explain(view, ONE, when)
        assert told.values["trips"] == trips
        assert (told.oldest is None) == (when != last)


# --- how much ---------------------------------------------------------------------------------


async def test_of_many_rows_those_that_matter_are_shown(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(1, hour(number), trips=number) for number in range(99)])
    told = await store.explain("driver_stats", ONE, hour(50))
    assert [trips for trips, _ in verdicts(told)] == [*range(53, 43, -1)]
    assert verdicts(told)[3] == (50, V.WINNER)
    assert told.rows == 99
    assert "10 of 99 rows of the key are shown." in str(told)
    assert verdicts(await store.explain("driver_stats", ONE, hour(50), limit=1)) == [(50, V.WINNER)]
    assert len((await store.explain("driver_stats", ONE, hour(50), limit=1_000)).candidates) == 99
    early = await store.explain("driver_stats", ONE, hour(-1), limit=3)
    assert [trips for trips, _ in verdicts(early)] == [2, 1, 0]
    assert "the first is of 2024-01-01 00:00:00Z" in early.reason


async def test_it_goes_by_the_index_on_keys_and_event_time(store: fs.FeatureStore):
    await store.apply([MADE])
    count = 60_000  # as many as have a load refresh the planner's statistics
    numbers = pa.arange(0, count)
    table = pa.table(
        {
            "driver_id": pc.bit_wise_and(numbers, 1023),
            "event_timestamp": pc.add(numbers, 1_700_000_000_000_000).cast(
                pa.timestamp("us", "UTC")
            ),
            "conv_rate": numbers.cast(pa.float64()),
            "trips": numbers.cast(pa.int32()),
        }
    )
    await store.ingest(MADE, table)
    told = await store.explain(MADE, ONE)
    assert told.rows == 59
    async with store._context.reading(["driver_stats"]) as (session, catalog):
        view = catalog.view("driver_stats")
        for known_by in (None, "created_timestamp"):
            query = candidates_query(session.dialect, view, ONE, told.at, known_by, 10, view.online)
            sql, values = session.compile(query)
            sqlite = session.dialect.single_writer
            plan = await session.raw_rows(
                f"{'EXPLAIN QUERY PLAN' if sqlite else 'EXPLAIN'} {sql}", values
            )
            steps = [str(row[-1]) for row in plan]
            history = view.history.name
            reads = [step for step in steps if history in step]
            by_index = [step for step in reads if f"{history}__keys" in step or "Recheck" in step]
            assert reads
            if sqlite:
                assert reads == by_index
            assert not [step for step in steps if f"Seq Scan on {history}" in step], steps
            assert [step for step in steps if f"{history}__keys" in step]


# --- now --------------------------------------------------------------------------------------


async def test_now_is_the_databases_and_online_agrees(store: fs.FeatureStore):
    await store.apply([FOUR])
    await store.push(FOUR, [stats(1, ago(minutes=5), 0.5, 7), stats(2, ago(hours=3))])
    told = await store.explain(FOUR, ONE)
    assert abs(told.at - dt.datetime.now(dt.UTC)) < dt.timedelta(seconds=30)
    assert told.online == fs.OnlineAnswer(
        fs.Status.PRESENT,
        told.candidates[0].event_timestamp,
        {"conv_rate": 0.5, "trips": 7},
        True,
        "It gives the same row.",
    )
    past = (await store.explain(FOUR, {"driver_id": 2})).online
    assert past is not None
    assert (past.status, past.agrees) == (fs.Status.OUTSIDE_MAX_AGE, True)
    nothing = (await store.explain(FOUR, {"driver_id": 3})).online
    assert nothing is not None
    assert (nothing.status, nothing.agrees) == (fs.Status.NOT_FOUND, True)


async def test_a_row_within_the_clock_skew_is_online_and_not_in_a_training_set(
    store: fs.FeatureStore,
):
    await store.apply([FOUR])
    await store.push(FOUR, [stats(1, ago(seconds=-30), trips=1), stats(1, ago(minutes=1), trips=2)])
    told = await store.explain(FOUR, ONE)
    assert verdicts(told) == [(1, V.AFTER), (2, V.WINNER)]
    assert told.online is not None
    assert (told.online.agrees, told.online.values["trips"]) == (False, 1)
    assert "ahead of the clock" in told.online.reason


async def test_a_row_whose_time_has_come_waits_for_materialize(open_store: OpenStore):
    store = await open_store(clock_skew=dt.timedelta(0))
    await store.apply([FOUR])
    soon = ago(seconds=-1)
    await store.push(FOUR, [stats(1, ago(minutes=1), trips=1), stats(1, soon, trips=2)])
    await until(soon)
    told = await store.explain(FOUR, ONE)
    assert told.values["trips"] == 2
    assert told.online is not None
    assert (told.online.agrees, told.online.values["trips"]) == (False, 1)
    assert "materialize brings it online" in told.online.reason
    await store.materialize(FOUR)
    again = (await store.explain(FOUR, ONE)).online
    assert again is not None
    assert again.agrees


async def test_what_was_changed_by_hand_does_not_agree(store: fs.FeatureStore):
    await store.apply([FOUR])
    await store.push(FOUR, [stats(1, ago(minutes=1), trips=1)])
    async with store.engine.begin() as connection:
        online = sa.table(f"{store.project}__driver_stats__online", sa.column("trips"))
        await connection.execute(online.update().values(trips=9))
    told = (await store.explain(FOUR, ONE)).online
    assert told is not None
    assert (told.agrees, told.values["trips"]) == (False, 9)
    assert "materialize sets it to that" in told.reason


async def test_a_view_for_training_only_has_nothing_to_say_of_online(store: fs.FeatureStore):
    view = driver_stats(online=False)
    await store.apply([view])
    await store.push(view, [stats(1, ago(minutes=1))])
    told = await store.explain(view, ONE)
    assert told.winner is not None
    assert told.online is None


async def test_a_transaction_explains_what_it_has_written(store: fs.FeatureStore):
    await store.apply([FOUR])
    async with store.transaction() as tx:
        await tx.push(FOUR, [stats(1, hour(0), trips=5)])
        told = await tx.explain(FOUR, ONE, hour(0))
        assert told.values["trips"] == 5
        assert told.winner is not None
        assert told.winner.source == "rows"


async def test_it_gives_what_a_training_set_gives(store: fs.FeatureStore):
    await store.apply([FOUR])
    rows = [stats(1, hour(number % 4), conv_rate=number / 8, trips=number) for number in range(9)]
    await store.push(FOUR, rows)
    times = [hour(number / 2) for number in range(-1, 12)]
    expected = await training(store, entity_rows(*[(1, when) for when in times]), [FOUR])
    for when, row in zip(times, expected, strict=True):
        told = await store.explain(FOUR, ONE, when)
        assert told.values == {"conv_rate": row["conv_rate"], "trips": row["trips"]}
