"""plan and apply: what differs from the registry, carried out as one or refused."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from builders import (
    AIRPORT,
    DRIVER,
    Cases,
    ago,
    calendar,
    driver_stats,
    entity_rows,
    hour,
    online,
    online_column,
    parquet,
    report,
    stats,
    training,
    weather,
)

import featurestore as fs
from featurestore.testing import PostgresServer

CONV_RATE = fs.Field("conv_rate", fs.Float64)
TRIPS = fs.Field("trips", fs.Int32)


def with_fields(*fields: fs.Field, **more: Any) -> fs.FeatureView:
    return driver_stats(fields=list(fields), **more)


async def views_of(store: fs.FeatureStore) -> list[str]:
    return sorted(view.name for view in await store.list_views())


# --- plans ------------------------------------------------------------------------------------


async def test_a_plan_shows_what_apply_would_do_and_does_nothing(store: fs.FeatureStore):
    service = fs.FeatureService("model", features=[driver_stats()[["trips"]]])
    plan = await store.plan([driver_stats(), service])
    assert plan
    assert len(plan) == len(list(plan)) == len(plan.changes) > 0
    for name in ("driver", "driver_stats", "model"):
        assert name in {change.name for change in plan}
        assert re.search(rf"\b{name}\b", str(plan))
    assert await views_of(store) == []
    assert await store.list_services() == []
    with pytest.raises(fs.NotFoundError, match="driver_stats"):
        await store.push("driver_stats", [stats(1, hour(0))])


async def test_apply_gives_the_plan_that_it_carried_out(store: fs.FeatureStore):
    planned = await store.plan([driver_stats()])
    applied = await store.apply([driver_stats()])
    assert str(applied) == str(planned)
    assert await views_of(store) == ["driver_stats"]
    assert [entity.name for entity in await store.list_entities()] == ["driver"]


async def test_a_second_apply_of_the_same_is_empty(store: fs.FeatureStore):
    everything = [
        driver_stats(ttl=dt.timedelta(days=1, microseconds=1), tags={"b": "1", "a": "2"}),
        weather(source=fs.ParquetSource(["a.parquet", "b/"], field_mapping={"x": "temp"})),
        calendar(online=False, description="Holidays", owner="ops"),
        fs.FeatureView(
            "typed",
            entities=[AIRPORT, DRIVER],
            fields=[
                fs.Field("money", fs.Decimal(38, 10), description="€", tags={"unit": "EUR"}),
                fs.Field("days", fs.Array(fs.Date)),
                fs.Field("document", fs.Json),
            ],
            timestamp_field="Event Time",
            created_timestamp_field="Created at",
        ),
        fs.FeatureService(
            "model",
            features=[
                driver_stats()[["trips"]],
                weather().with_name("there").with_join_key_map({"airport": "dest"}),
            ],
        ),
        fs.Entity("unused", join_keys={"a": fs.Int32, "b": fs.Bytes}),
    ]
    assert await store.apply(everything)
    for again in (await store.plan(everything), await store.apply(everything)):
        assert not again
        assert len(again) == 0
        assert list(again) == []
        assert isinstance(str(again), str)


async def test_what_is_registered_comes_back_as_it_was_defined(store: fs.FeatureStore):
    entity = fs.Entity(
        "thing", join_keys={"b": fs.Int32, "a": fs.Decimal(5, 2)}, tags={"x": "y"}, owner="me"
    )
    view = fs.FeatureView(
        "typed",
        entities=[DRIVER, entity],
        fields=[
            fs.Field("z", fs.Array(fs.Float32), description="last letter", tags={"k": "v"}),
            fs.Field("a_field", fs.Json),
        ],
        timestamp_field="Event Time",
        created_timestamp_field="made",
        ttl=dt.timedelta(days=3, microseconds=7),
        source=fs.ParquetSource(["b", "a"], field_mapping={"Z": "z"}),
        online=False,
        description="Described",
        tags={"team": "eta"},
        owner="ops",
    )
    service = fs.FeatureService(
        "model",
        features=[view.with_name("other").with_join_key_map({"b": "c"})[["z"]], view[["a_field"]]],
        description="d",
        tags={"t": "u"},
        owner="o",
    )
    await store.apply([service, view])
    assert await store.get_view("typed") == view
    assert list((await store.get_view("typed")).join_keys) == list(view.join_keys)
    assert await store.list_views() == [view]
    assert await store.list_services() == [service]
    assert sorted(await store.list_entities(), key=lambda one: one.name) == [DRIVER, entity]


async def test_what_apply_is_not_given_stays(store: fs.FeatureStore):
    service = fs.FeatureService("model", features=[driver_stats()])
    await store.apply([driver_stats(), service])
    await store.push("driver_stats", [stats(1, hour(0), trips=3)])
    await store.apply([weather()])
    assert await views_of(store) == ["driver_stats", "weather"]
    assert [one.name for one in await store.list_services()] == ["model"]
    assert await online_column(store, "driver_stats:trips", [{"driver_id": 1}]) == [3]


async def test_an_unknown_view_is_not_found_with_the_closest_names(store: fs.FeatureStore):
    await store.apply([driver_stats(), weather()])
    calls = [
        lambda: store.get_view("driver_stat"),
        lambda: store.ingest("driver_stat", "some.parquet"),
        lambda: store.push("driver_stat", []),
        lambda: store.materialize(["driver_stat"]),
        lambda: store.repository("driver_stat").count(),
    ]
    for call in calls:
        with pytest.raises(fs.NotFoundError, match="'driver_stats'"):
            await call()


async def test_two_definitions_of_one_name_are_an_error(store: fs.FeatureStore):
    pairs = [
        [driver_stats(), driver_stats(ttl=dt.timedelta(days=1))],
        [driver_stats(), weather(entities=[fs.Entity("driver", join_keys={"other": fs.Int64})])],
        [
            fs.FeatureService("model", features=[driver_stats()]),
            fs.FeatureService("model", features=[driver_stats()[["trips"]]]),
        ],
    ]
    for pair in pairs:
        for call in (store.plan, store.apply):
            with pytest.raises(fs.DefinitionError, match=r"driver|model"):
                await call(pair)
    assert await views_of(store) == []


async def test_what_is_no_definition_is_refused(store: fs.FeatureStore):
    for wrong in ("driver_stats", fs.Int64, TRIPS, None):
        with pytest.raises((fs.DefinitionError, TypeError)):
            await store.apply([driver_stats(), wrong])  # type: ignore[list-item]
    assert await views_of(store) == []


async def test_a_refused_apply_changes_nothing_at_all(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    with pytest.raises(fs.DefinitionError):
        await store.apply([weather(), with_fields(CONV_RATE), calendar()])
    assert await views_of(store) == ["driver_stats"]
    assert not await store.plan([driver_stats()])


# --- fields -----------------------------------------------------------------------------------


async def test_a_new_field_is_null_in_old_rows(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(1, hour(0), trips=1)])
    wider = with_fields(
        CONV_RATE,
        fs.Field("hours", fs.Array(fs.Float64)),  # in the middle
        TRIPS,
        fs.Field("note", fs.String),
    )
    plan = await store.apply([wider])
    assert "note" in str(plan)
    assert "hours" in str(plan)
    await store.push("driver_stats", [stats(2, hour(0), trips=2, hours=[1.5], note="new")])
    wanted = [
        {"driver_id": 1, "conv_rate": 0.5, "hours": None, "trips": 1, "note": None},
        {"driver_id": 2, "conv_rate": 0.5, "hours": [1.5], "trips": 2, "note": "new"},
    ]
    keys = [{"driver_id": 1}, {"driver_id": 2}]
    assert await online(store, [wider], keys) == wanted
    found = await training(store, entity_rows((1, hour(1)), (2, hour(1))), [wider])
    assert [{name: row[name] for name in wanted[0]} for row in found] == wanted
    history = await store.repository("driver_stats").history(driver_id=1)
    assert history["note"].to_pylist() == [None]
    assert not await store.plan([wider])
    with pytest.raises(fs.SchemaMismatchError, match="note"):
        await store.push("driver_stats", [stats(3, hour(0), hours=[])])


async def test_a_file_can_be_loaded_again_for_the_sake_of_a_new_field(
    store: fs.FeatureStore, tmp_path: Path
):
    wider = with_fields(CONV_RATE, TRIPS, fs.Field("note", fs.String))
    path = parquet(tmp_path, wider, [stats(1, hour(0), note="there all along")])
    await store.apply([driver_stats()])
    await store.ingest("driver_stats", path)
    await store.apply([wider])
    assert not (await store.ingest("driver_stats", path)).loads[0].skipped
    assert await online_column(store, "driver_stats:note", [{"driver_id": 1}]) == [
        "there all along"
    ]


@pytest.mark.parametrize(
    ("before", "after", "old", "new"),
    [
        (fs.Int32, fs.Int64, 2**31 - 1, 2**53 + 1),
        (fs.Float32, fs.Float64, 0.5, 0.1),
    ],
    ids=["int32 to int64", "float32 to float64"],
)
async def test_a_field_is_widened_in_place(store: fs.FeatureStore, before, after, old, new):
    narrow = with_fields(CONV_RATE, fs.Field("trips", before))
    wide = with_fields(CONV_RATE, fs.Field("trips", after))
    await store.apply([narrow])
    await store.push("driver_stats", [stats(1, hour(0), trips=old), stats(3, hour(0), trips=None)])
    assert await store.apply([wide])
    await store.push("driver_stats", [stats(2, hour(0), trips=new)])
    keys = [{"driver_id": number} for number in (1, 2, 3)]
    assert await online_column(store, "driver_stats:trips", keys) == [old, new, None]
    entities = entity_rows(*[(number, hour(1)) for number in (1, 2, 3)])
    found = await store.get_historical_features(entities, [wide])
    assert found.to_arrow()["trips"].to_pylist() == [old, new, None]
    assert found.to_arrow().schema.field("trips").type == after.arrow
    assert (await store.get_view("driver_stats")).types["trips"] == after
    assert not await store.plan([wide])


async def test_the_plan_warns_with_row_counts_where_a_table_is_rewritten(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(number, hour(0)) for number in range(1234)])
    plan = await store.plan([with_fields(CONV_RATE, fs.Field("trips", fs.Int64))])
    warnings = [change.warning for change in plan if change.warning]
    if store.engine.dialect.name == "postgresql":  # SQLite keeps both in the same column
        assert warnings
    assert all("1234" in warning.replace(",", "") for warning in warnings)
    assert all(warning in str(plan) for warning in warnings)
    adding = await store.plan([with_fields(CONV_RATE, TRIPS, fs.Field("note", fs.String))])
    assert not any(change.warning for change in adding)


async def test_dropping_a_field_needs_leave(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(1, hour(0), 0.25, 7)])
    fewer = with_fields(CONV_RATE)
    plan = await store.plan([fewer])
    assert "trips" in str(plan)
    assert "drop" in {change.requires for change in plan}
    for allow in ((), {"narrow"}):
        with pytest.raises(fs.DefinitionError, match="trips") as caught:
            await store.apply([fewer], allow=allow)
        assert "drop" in str(caught.value)
    assert await online_column(store, "driver_stats:trips", [{"driver_id": 1}]) == [7]

    await store.apply([fewer], allow={"drop"})
    with pytest.raises(fs.NotFoundError, match="trips"):
        await store.get_online_features(["driver_stats:trips"], [{"driver_id": 1}])
    assert await online(store, ["driver_stats:*"], [{"driver_id": 1}]) == [
        {"driver_id": 1, "conv_rate": 0.25}
    ]
    assert (await training(store, entity_rows((1, hour(1))), [fewer]))[0]["conv_rate"] == 0.25
    assert not await store.plan([fewer])

    await store.apply([driver_stats()])  # what comes back is a new field
    assert await online_column(store, "driver_stats:trips", [{"driver_id": 1}]) == [None]


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [(fs.Int64, fs.Int32, 7), (fs.Float64, fs.Float32, 0.5)],
    ids=["int64 to int32", "float64 to float32"],
)
async def test_narrowing_a_field_needs_leave(store: fs.FeatureStore, before, after, value):
    await store.apply([with_fields(fs.Field("x", before))])
    row = {"driver_id": 1, "event_timestamp": hour(0), "x": value}
    await store.push("driver_stats", [row])
    narrower = with_fields(fs.Field("x", after))
    assert "narrow" in {change.requires for change in await store.plan([narrower])}
    for allow in ((), {"drop"}):
        with pytest.raises(fs.DefinitionError, match="narrow"):
            await store.apply([narrower], allow=allow)
    await store.apply([narrower], allow={"narrow"})
    assert await online_column(store, "driver_stats:x", [{"driver_id": 1}]) == [value]
    (found,) = await training(store, entity_rows((1, hour(1))), [narrower])
    assert found["x"] == value
    assert not await store.plan([narrower])


async def test_other_changes_of_a_type_need_leave_too(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(1, hour(0))])
    for kind in (fs.String, fs.Bool, fs.Float32, fs.Array(fs.Int32), fs.Timestamp):
        with pytest.raises(fs.DefinitionError, match="trips"):
            await store.apply([with_fields(CONV_RATE, fs.Field("trips", kind))])
    assert await online_column(store, "driver_stats:trips", [{"driver_id": 1}]) == [1]


async def test_leave_for_something_unknown_is_refused(store: fs.FeatureStore):
    with pytest.raises((fs.FeatureStoreError, ValueError), match="everything"):
        await store.apply([driver_stats()], allow={"everything"})


OTHER_KEYS = {
    "type": [fs.Entity("driver", join_keys={"driver_id": fs.String})],
    "name": [fs.Entity("driver", join_keys={"driver_no": fs.Int64})],
    "one more": [fs.Entity("driver", join_keys={"driver_id": fs.Int64, "region": fs.String})],
    "other entity": [AIRPORT],
    "one more entity": [DRIVER, AIRPORT],
    "none": [],
}


async def test_changed_keys_are_always_refused(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(1, hour(0), trips=3)])
    with Cases() as cases:
        for story, entities in OTHER_KEYS.items():
            changed = driver_stats(entities=entities)
            for allow in ((), {"drop", "narrow"}):
                with cases.case(story, allow), pytest.raises(fs.DefinitionError, match="driver"):
                    await store.apply([changed], allow=allow)
    assert await online_column(store, "driver_stats:trips", [{"driver_id": 1}]) == [3]
    assert not await store.plan([driver_stats()])


# --- what is no column ------------------------------------------------------------------------


async def test_a_changed_ttl_counts_at_once(store: fs.FeatureStore):
    await store.apply([driver_stats(ttl=dt.timedelta(days=1))])
    then = ago(days=2)
    await store.push("driver_stats", [stats(1, then, trips=3)])
    asked = entity_rows((1, then + dt.timedelta(days=2)))

    async def seen() -> tuple[Any, Any]:
        (row,) = await training(store, asked, ["driver_stats:trips"])
        (value,) = await online_column(store, "driver_stats:trips", [{"driver_id": 1}])
        return row["trips"], value

    assert await seen() == (None, None)
    for ttl in (dt.timedelta(days=3), None):
        assert "ttl" in str(await store.apply([driver_stats(ttl=ttl)]))
        assert await seen() == (3, 3)
    await store.apply([driver_stats(ttl=dt.timedelta(seconds=1))])
    assert await seen() == (None, None)


async def test_descriptions_tags_and_owners_are_updated(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    entity = fs.Entity("driver", join_keys={"driver_id": fs.Int64}, description="A person")
    changed = driver_stats(
        entities=[entity],
        fields=[fs.Field("conv_rate", fs.Float64, description="Share", tags={"unit": "1"}), TRIPS],
        description="Hourly",
        tags={"team": "eta"},
        owner="me",
    )
    plan = await store.apply([changed])
    assert plan
    assert not any(change.requires or change.warning for change in plan)
    assert await store.get_view("driver_stats") == changed
    assert await store.list_entities() == [entity]
    assert not await store.plan([changed])


async def test_a_service_can_change(store: fs.FeatureStore):
    first = fs.FeatureService("model", features=[driver_stats()[["trips"]]])
    second = fs.FeatureService("model", features=[driver_stats()[["conv_rate"]], weather()])
    await store.apply([driver_stats(), weather(), first])
    await store.push("driver_stats", [stats(1, hour(0), 0.25, 7)])
    assert await online(store, "model", [{"driver_id": 1}]) == [{"driver_id": 1, "trips": 7}]
    assert "model" in str(await store.apply([second]))
    assert await online(store, "model", [{"driver_id": 1, "airport": "jfk"}]) == [
        {"driver_id": 1, "airport": "jfk", "conv_rate": 0.25, "temp": None}
    ]
    assert await store.list_services() == [second]


async def test_another_source_is_read_from_then_on(store: fs.FeatureStore, tmp_path: Path):
    old, new = (
        parquet(tmp_path, driver_stats(), [stats(1, hour(n), trips=n)], f"{n}.parquet")
        for n in (1, 2)
    )
    await store.apply([driver_stats(source=fs.ParquetSource(old))])
    assert await store.apply([driver_stats(source=fs.ParquetSource(new))])
    await store.ingest("driver_stats")
    assert await online_column(store, "driver_stats:trips", [{"driver_id": 1}]) == [2]


# --- online on and off ------------------------------------------------------------------------


async def test_switching_online_on_fills_it_within_apply(store: fs.FeatureStore):
    await store.apply([driver_stats(online=False)])
    await store.push(
        "driver_stats",
        [
            stats(1, hour(0), trips=1),
            stats(1, hour(2), trips=3),
            stats(1, hour(1), trips=2),
            stats(2, hour(0), trips=None),
            stats(3, ago(days=-2), trips=9),
        ],
    )
    await store.apply([driver_stats(online=True)])
    answer = await store.get_online_features(
        ["driver_stats:trips"], [{"driver_id": n} for n in (1, 2, 3)]
    )
    assert [row["trips"] for row in answer.to_dicts()] == [3, None, None]
    assert [row["trips"].name for row in answer.statuses] == [
        "PRESENT",
        "NULL_VALUE",
        "NOT_FOUND",
    ]


async def test_switching_online_off_leaves_training_alone(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(1, hour(0), trips=1)])
    off = driver_stats(online=False)
    await store.apply([off], allow={"drop"})
    with pytest.raises(fs.DefinitionError, match="driver_stats"):
        await store.get_online_features(["driver_stats:trips"], [{"driver_id": 1}])
    repository = store.repository("driver_stats")
    with pytest.raises(fs.DefinitionError, match="driver_stats"):
        await repository.get(driver_id=1)
    with pytest.raises(fs.DefinitionError, match="driver_stats"):
        await repository.get_many([{"driver_id": 1}])
    await store.push("driver_stats", [stats(1, hour(1), trips=2)])
    assert (await training(store, entity_rows((1, hour(2))), [off]))[0]["trips"] == 2
    assert await repository.count() == 2
    await store.apply([driver_stats()])
    assert await online_column(store, "driver_stats:trips", [{"driver_id": 1}]) == [2]


# --- at the same time, and side by side -------------------------------------------------------


async def test_two_applies_of_the_same_at_the_same_time(store: fs.FeatureStore, open_store):
    other = await open_store()
    plans = await asyncio.gather(store.apply([driver_stats()]), other.apply([driver_stats()]))
    assert sorted(bool(plan) for plan in plans) == [False, True]
    assert not await store.plan([driver_stats()])
    await other.push("driver_stats", [stats(1, hour(0), trips=4)])
    assert await online_column(store, "driver_stats:trips", [{"driver_id": 1}]) == [4]


async def test_different_applies_at_the_same_time_all_take_place(
    store: fs.FeatureStore, open_store
):
    others = [store, await open_store(), await open_store()]
    views = [driver_stats(), weather(), calendar()]
    await asyncio.gather(*(one.apply([view]) for one, view in zip(others, views, strict=True)))
    assert await views_of(store) == ["calendar", "driver_stats", "weather"]
    assert not await store.plan(views)


async def test_contrary_applies_at_the_same_time_end_in_one_of_the_two(
    store: fs.FeatureStore, open_store
):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(1, hour(0))])
    other = await open_store()
    first = with_fields(CONV_RATE, TRIPS, fs.Field("a", fs.Int32))
    second = with_fields(CONV_RATE, fs.Field("trips", fs.Int64), fs.Field("b", fs.Int32))
    await asyncio.gather(
        store.apply([first], allow={"drop", "narrow"}),
        other.apply([second], allow={"drop", "narrow"}),
    )
    registered = await store.get_view("driver_stats")
    assert registered in (first, second)
    extra = "a" if registered == first else "b"
    await other.push("driver_stats", [stats(1, hour(1), trips=5, **{extra: 6})])
    assert await online_column(store, f"driver_stats:{extra}", [{"driver_id": 1}]) == [6]
    assert not await store.plan([registered])


async def test_a_store_sees_what_another_applied(store: fs.FeatureStore, open_store):
    other = await open_store()
    await store.apply([driver_stats()])
    await other.push("driver_stats", [stats(1, hour(0), trips=1)])
    await store.apply([with_fields(CONV_RATE, TRIPS, fs.Field("note", fs.String))])
    await other.push("driver_stats", [stats(1, hour(1), trips=2, note="new")])
    assert await online_column(other, "driver_stats:note", [{"driver_id": 1}]) == ["new"]


async def test_writes_go_on_while_a_field_is_added(store: fs.FeatureStore, open_store):
    other = await open_store()
    await store.apply([driver_stats()])
    wider = with_fields(CONV_RATE, fs.Field("trips", fs.Int64))

    async def writes() -> None:
        for number in range(30):
            await other.push("driver_stats", [stats(number, hour(0), trips=number)])

    writing = asyncio.create_task(writes())
    await asyncio.sleep(0.02)
    await store.apply([wider])
    await writing
    keys = [{"driver_id": number} for number in range(30)]
    assert await online_column(store, "driver_stats:trips", keys) == list(range(30))


async def test_projects_share_a_database_and_nothing_else(
    store: fs.FeatureStore, open_store, tmp_path: Path
):
    other = await open_store(project="other")
    path = parquet(tmp_path, driver_stats(), [stats(1, hour(0), trips=3)])
    await store.apply([driver_stats(), fs.FeatureService("model", features=[driver_stats()])])
    assert await views_of(other) == []
    assert await other.list_services() == []
    theirs = weather("driver_stats")  # another view of the same name
    await other.apply([theirs])
    assert await store.get_view("driver_stats") == driver_stats()

    mine = await store.ingest("driver_stats", path)
    await other.push("driver_stats", [report("jfk", hour(0), 1.5)])
    assert len(await store.loads()) == len(await other.loads()) == 1
    assert await other.repository("driver_stats").count() == 1
    with pytest.raises(fs.NotFoundError):
        await other.undo_load(mine.loads[0].load_id)

    await other.apply([driver_stats("stats_too")])
    again = await other.ingest("stats_too", path)
    assert not again.loads[0].skipped
    assert (await store.materialize()).keys_changed.keys() == {"driver_stats"}
    with pytest.raises(fs.NotFoundError):
        await store.get_view("stats_too")


# --- a database that nothing has been made in -------------------------------------------------


@pytest.fixture
def empty_url(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[str]:
    """A database of the same kind without any tables."""
    if database_url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: PostgresServer = request.getfixturevalue("featurestore_postgres")
    name = f"empty_{uuid4().hex[:12]}"
    server.create_database(name)
    yield server.url(name)
    server.drop_database(name)


async def test_apply_migrates_an_empty_database_first(empty_url: str):
    async with fs.FeatureStore(empty_url) as store:
        assert await store.apply([driver_stats()])
        await store.push("driver_stats", [stats(1, hour(0), trips=2)])
        assert await online_column(store, "driver_stats:trips", [{"driver_id": 1}]) == [2]


async def test_first_applies_at_the_same_time_all_take_place(empty_url: str):
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(fs.FeatureStore(empty_url)) for _ in range(5)]
        views = [driver_stats(f"view_{number}") for number in range(5)]
        outcomes = await asyncio.gather(
            *(store.apply([view]) for store, view in zip(stores, views, strict=True)),
            return_exceptions=True,
        )
        assert [error for error in outcomes if isinstance(error, BaseException)] == []
        assert await views_of(stores[0]) == [view.name for view in views]


async def test_a_first_apply_waits_for_another_program_that_writes_to_the_file(tmp_path: Path):
    """A SQLite file that is no feature store yet, nor in the store's journal mode."""
    path = tmp_path / "shared.db"
    held, release = threading.Event(), threading.Event()

    def another_program() -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE theirs (x)")
        held.set()
        release.wait(10)
        connection.execute("COMMIT")
        connection.close()

    writing = asyncio.create_task(asyncio.to_thread(another_program))
    assert await asyncio.to_thread(held.wait, 10)
    async with fs.FeatureStore(f"sqlite:///{path}") as store:
        applying = asyncio.create_task(store.apply([driver_stats()]))
        await asyncio.sleep(0.3)
        release.set()
        await writing
        assert await applying
        assert await views_of(store) == ["driver_stats"]


async def test_an_empty_database_asks_for_a_migration(empty_url: str):
    async with fs.FeatureStore(empty_url) as store:
        for call in (
            lambda: store.push("driver_stats", [stats(1, hour(0))]),
            lambda: store.list_views(),
            lambda: store.get_online_features(["driver_stats:trips"], [{"driver_id": 1}]),
        ):
            with pytest.raises(fs.MigrationRequiredError):
                await call()
