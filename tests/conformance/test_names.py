"""Names: SQL's reserved words, the longest ones, and what the store might use inside."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pytest
from builders import DRIVER, entity_rows, hour, online, table_of, training

import featurestore as fs

RESERVED = [
    *("select", "order", "group", "user", "table", "all", "from", "null", "primary", "end"),
    *("nothing", "returning", "asked", "at"),  # which lists of such words leave out
]
INSIDE = [
    "arrival",
    "created",
    "created_at",
    "created_time",
    "created_timestamp",
    "event",
    "event_time",
    "event_timestamps",
    "id",
    "idx",
    "key",
    "keys",
    "load",
    "load_id",
    "matched",
    "n",
    "now",
    "ordinal",
    "ordinality",
    "position",
    "rank",
    "row",
    "row_number",
    "rows",
    "rule",
    "status",
    "t",
    "time",
    "timestamp",
    "value",
    "values",
    "view",
]


def numbers_view(name: str, names: list[str], key: str = "number") -> fs.FeatureView:
    """A view of int fields of these names."""
    return fs.FeatureView(
        name,
        entities=[fs.Entity(name, join_keys={key: fs.Int64})],
        fields=[fs.Field(field, fs.Int64) for field in names],
        timestamp_field="moment",
    )


@pytest.mark.parametrize(
    ("view", "key"),
    [
        (numbers_view("table", RESERVED, "where"), "where"),
        (numbers_view("user", INSIDE, "k"), "k"),
        (numbers_view("history", ["online", "history_online"], "arrival"), "arrival"),
        (numbers_view("loads", ["x"], "event_time"), "event_time"),
    ],
    ids=["reserved words", "inside names", "tables", "key"],
)
async def test_any_valid_name_works_all_the_way(store: fs.FeatureStore, view, key: str):
    await store.apply([view])
    values = {field.name: number for number, field in enumerate(view.fields)}
    row = {key: 7, "moment": hour(0)} | values
    await store.push(view.name, [row])
    await store.ingest(view.name, table_of(view, [row | {key: 8}]))
    assert await online(store, [f"{view.name}:*"], [{key: 7}]) == [{key: 7} | values]
    repository = store.repository(view.name)
    for number in (7, 8):
        found = await repository.get(**{key: number})
        assert {name: found[name] for name in values} == values
        history = await repository.history(**{key: number})
        assert history.select(list(values)).to_pylist() == [values]
    entities = pa.table(
        {key: [8, 9], "asked at": pa.array([hour(1)] * 2, fs.Timestamp.arrow), "_row": [1, 2]}
    )
    found = await training(store, entities, [view], timestamp_column="asked at")
    assert [{name: row[name] for name in values} for row in found] == [
        values,
        dict.fromkeys(values),
    ]
    await repository.delete(**{key: 7})
    assert await repository.count() == 1


async def test_an_entity_column_may_have_any_name_that_is_no_output(store: fs.FeatureStore):
    view = numbers_view("plain", ["feature"])
    await store.apply([view])
    await store.push("plain", [{"number": 1, "moment": hour(0), "feature": 5}])
    extra = {name: pa.array([name]) for name in [*RESERVED, *INSIDE, "ctid", "Feature", "moment"]}
    entities = pa.table(
        {"number": [1], "event_timestamp": pa.array([hour(1)], fs.Timestamp.arrow)} | extra
    )
    (row,) = await training(store, entities, ["plain:feature"])
    assert row["feature"] == 5
    assert {name: row[name] for name in extra} == {name: name for name in extra}


async def test_the_longest_names_are_told_apart(open_store):
    """40 characters each: databases cut names at 63 bytes, and columns of a training set too."""
    store = await open_store(project="p" * 40)
    twin = await open_store(project="p" * 39 + "q")
    views = [numbers_view("v" * 39 + end, ["f" * 39 + "a", "f" * 39 + "b"]) for end in "ab"]
    values = itertools.count()
    wanted: dict[str, int] = {}
    for one in (store, twin):
        await one.apply(views)
        for view in views:
            row = {"number": 1, "moment": hour(0)}
            for field in view.fields:
                row[field.name] = next(values)
                if one is store:
                    wanted[f"{view.name}__{field.name}"] = row[field.name]
            await one.push(view.name, [row])
    (found,) = await online(store, views, [{"number": 1}], full_feature_names=True)
    assert found == {"number": 1} | wanted
    entities = entity_rows((1, hour(1)), key="number")
    (row,) = await training(store, entities, views, full_feature_names=True)
    assert {name: row[name] for name in wanted} == wanted


async def test_times_may_have_any_column_name(store: fs.FeatureStore):
    view = fs.FeatureView(
        "timed",
        entities=[DRIVER],
        fields=[fs.Field("trips", fs.Int32)],
        timestamp_field='Event "Time" %s',
        created_timestamp_field="event_time",
    )
    await store.apply([view])
    row = {"driver_id": 1, "trips": 3, view.timestamp_field: hour(0), "event_time": hour(1)}
    await store.push("timed", [row])
    await store.ingest("timed", table_of(view, [row]))
    history = await store.repository("timed").history(driver_id=1)
    assert history[view.timestamp_field].to_pylist() == [hour(0)] * 2
    found = await training(store, entity_rows((1, hour(1))), [view])
    assert found[0]["trips"] == 3


async def test_a_view_of_hundreds_of_fields(store: fs.FeatureStore):
    view = numbers_view("wide", [f"f{number}" for number in range(400)])
    await store.apply([view])
    values = {f"f{number}": number for number in range(400)}
    rows = [{"number": n, "moment": hour(0)} | values for n in range(20)]
    await store.push("wide", rows)
    await store.ingest("wide", table_of(view, rows))
    assert await online(store, ["wide:*"], [{"number": 3}]) == [{"number": 3} | values]
    (row,) = await training(store, entity_rows((3, hour(1)), key="number"), ["wide:*"])
    assert {name: row[name] for name in values} == values
