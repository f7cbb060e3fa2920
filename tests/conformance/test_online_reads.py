"""get_online_features: what an answer holds, for whom, under which names."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from builders import (
    DRIVER,
    ROUTE,
    Cases,
    ago,
    calendar,
    driver_stats,
    hour,
    online,
    report,
    stats,
    statuses,
    weather,
)

import featurestore as fs


@pytest.fixture
async def stats_store(store: fs.FeatureStore) -> fs.FeatureStore:
    """Drivers 1 (present), 2 (a null) and 3 (past its ttl of a day)."""
    await store.apply([driver_stats(ttl=dt.timedelta(days=1))])
    await store.push(
        "driver_stats",
        [
            stats(1, ago(hours=1), 0.25, 10),
            stats(2, ago(hours=2), None, 20),
            stats(3, ago(days=2), 0.75, 30),
        ],
    )
    return store


async def test_each_feature_has_a_status(stats_store: fs.FeatureStore):
    rows = [{"driver_id": number} for number in (1, 2, 3, 4)]
    answer = await stats_store.get_online_features(["driver_stats:*"], rows)
    assert answer.to_dicts() == [
        {"driver_id": 1, "conv_rate": 0.25, "trips": 10},
        {"driver_id": 2, "conv_rate": None, "trips": 20},
        {"driver_id": 3, "conv_rate": None, "trips": None},
        {"driver_id": 4, "conv_rate": None, "trips": None},
    ]
    assert answer.statuses == [
        {"conv_rate": fs.Status.PRESENT, "trips": fs.Status.PRESENT},
        {"conv_rate": fs.Status.NULL_VALUE, "trips": fs.Status.PRESENT},
        {"conv_rate": fs.Status.OUTSIDE_MAX_AGE, "trips": fs.Status.OUTSIDE_MAX_AGE},
        {"conv_rate": fs.Status.NOT_FOUND, "trips": fs.Status.NOT_FOUND},
    ]


async def test_event_timestamps_are_kept_past_the_ttl(store: fs.FeatureStore):
    await store.apply([driver_stats(ttl=dt.timedelta(days=1))])
    fresh, stale = ago(hours=1), ago(days=300)
    await store.push("driver_stats", [stats(1, fresh), stats(2, stale)])
    rows = [{"driver_id": number} for number in (1, 2, 3)]
    answer = await store.get_online_features(["driver_stats:trips"], rows)
    assert answer.event_timestamps == [
        {"driver_stats": fresh},
        {"driver_stats": stale},
        {"driver_stats": None},
    ]
    assert all(
        moment is None or moment.utcoffset() == dt.timedelta(0)
        for row in answer.event_timestamps
        for moment in row.values()
    )


async def test_only_future_rows_are_not_found(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(1, ago(hours=-5))])
    answer = await store.get_online_features(["driver_stats:trips"], [{"driver_id": 1}])
    assert statuses(answer) == [{"trips": "NOT_FOUND"}]
    assert answer.event_timestamps == [{"driver_stats": None}]


async def test_rows_keep_their_order_and_duplicates(stats_store: fs.FeatureStore):
    asked = [2, 9, 1, 1, 2, 3, 9, 1]
    rows = await online(stats_store, ["driver_stats:trips"], [{"driver_id": n} for n in asked])
    trips = {1: 10, 2: 20}
    assert rows == [{"driver_id": n, "trips": trips.get(n)} for n in asked]


async def test_join_keys_come_first_then_the_features_as_asked(stats_store: fs.FeatureStore):
    rows = [{"note": "ignored", "driver_id": 1, "trips": -1}]
    features = ["driver_stats:trips", "driver_stats:conv_rate"]
    (row,) = await online(stats_store, features, rows)
    assert list(row.items()) == [("driver_id", 1), ("trips", 10), ("conv_rate", 0.25)]


async def test_a_null_key_is_not_found(stats_store: fs.FeatureStore):
    answer = await stats_store.get_online_features(["driver_stats:trips"], [{"driver_id": None}])
    assert answer.to_dicts() == [{"driver_id": None, "trips": None}]
    assert statuses(answer) == [{"trips": "NOT_FOUND"}]


async def test_no_rows_give_an_empty_answer_with_its_columns(stats_store: fs.FeatureStore):
    answer = await stats_store.get_online_features(["driver_stats:*"], [])
    assert (answer.to_dicts(), answer.statuses, answer.event_timestamps) == ([], [], [])
    assert answer.to_arrow().schema.names == ["driver_id", "conv_rate", "trips"]
    assert answer.to_arrow().num_rows == 0
    assert list(answer.to_pandas().columns) == ["driver_id", "conv_rate", "trips"]


async def test_arrow_and_pandas_hold_the_same_with_the_types_of_the_view(
    stats_store: fs.FeatureStore,
):
    rows = [{"driver_id": 2}, {"driver_id": 1}]
    answer = await stats_store.get_online_features(["driver_stats:*"], rows)
    expected = pa.table(
        {
            "driver_id": pa.array([2, 1], pa.int64()),
            "conv_rate": pa.array([None, 0.25], pa.float64()),
            "trips": pa.array([20, 10], pa.int32()),
        }
    )
    assert answer.to_arrow().equals(expected)
    frame = answer.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert frame["trips"].tolist() == [20, 10]
    assert frame["conv_rate"].isna().tolist() == [True, False]


async def test_numpy_keys_from_a_frame_are_keys(stats_store: fs.FeatureStore):
    rows = [{"driver_id": number} for number in np.array([1, 2], dtype="int32")]
    assert [row["trips"] for row in await online(stats_store, ["driver_stats:trips"], rows)] == [
        10,
        20,
    ]


WRONG_KEYS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({}, fs.SchemaMismatchError),
    ({"driver": 1}, fs.SchemaMismatchError),
    ({"driver_id": "1"}, fs.SchemaMismatchError),
    ({"driver_id": True}, fs.SchemaMismatchError),
    ({"driver_id": 2**63}, fs.InvalidRowsError),
    ({"driver_id": 1.5}, fs.InvalidRowsError),
]


async def test_a_key_that_is_missing_or_does_not_fit_is_refused(stats_store: fs.FeatureStore):
    with Cases() as cases:
        for row, error in WRONG_KEYS:
            with cases.case(row), pytest.raises(error, match="driver_id"):
                await stats_store.get_online_features(["driver_stats:*"], [{"driver_id": 1}, row])


# --- what may be asked for --------------------------------------------------------------------


async def test_the_ways_of_naming_features_are_the_same(stats_store: fs.FeatureStore):
    view = driver_stats(ttl=dt.timedelta(days=1))
    await stats_store.apply([fs.FeatureService("model", features=[view])])
    ways = [
        ["driver_stats:*"],
        ["driver_stats:conv_rate", "driver_stats:trips"],
        [view],
        [view[["conv_rate"]], "driver_stats:trips"],
        [view["conv_rate"], view["trips"]],
        fs.FeatureService("model", features=[view]),
        "model",
    ]
    for features in ways:
        assert await online(stats_store, features, [{"driver_id": 1}]) == [
            {"driver_id": 1, "conv_rate": 0.25, "trips": 10}
        ], features


UNKNOWN: list[tuple[Any, str, str]] = [
    (["driver_stat:trips"], "driver_stat", "driver_stats"),
    (["driver_stats:trip"], "trip", "trips"),
    ([driver_stats("driver_state")], "driver_state", "driver_stats"),
    ("modell", "modell", "model"),
]


async def test_an_unknown_name_is_refused_with_the_closest_names(stats_store: fs.FeatureStore):
    view = driver_stats(ttl=dt.timedelta(days=1))
    await stats_store.apply([fs.FeatureService("model", features=[view])])
    with Cases() as cases:
        for features, name, close in UNKNOWN:
            with cases.case(name):
                with pytest.raises(fs.NotFoundError, match=close) as caught:
                    await stats_store.get_online_features(features, [{"driver_id": 1}])
                assert caught.value.name == name
                assert close in caught.value.candidates


async def test_what_names_no_feature_is_refused(stats_store: fs.FeatureStore):
    with Cases() as cases:
        for features in (["trips"], [7], ["driver_stats:"], [":trips"]):
            with cases.case(features), pytest.raises((fs.FeatureStoreError, TypeError)):
                await stats_store.get_online_features(features, [{"driver_id": 1}])


async def test_a_view_without_online_is_refused(store: fs.FeatureStore):
    await store.apply([driver_stats(online=False)])
    await store.push("driver_stats", [stats(1, ago(hours=1))])
    with pytest.raises(fs.DefinitionError, match="driver_stats"):
        await store.get_online_features(["driver_stats:*"], [{"driver_id": 1}])
    with pytest.raises(fs.DefinitionError, match="driver_stats"):
        await store.repository("driver_stats").get(driver_id=1)


# --- several views ----------------------------------------------------------------------------


@pytest.fixture
async def trips_store(store: fs.FeatureStore) -> fs.FeatureStore:
    """Drivers, airports, routes (a composite key) and a calendar (a global view)."""
    routes = fs.FeatureView(
        "routes",
        entities=[ROUTE],
        fields=[fs.Field("minutes", fs.Int32)],
        timestamp_field="event_timestamp",
    )
    await store.apply([driver_stats(), weather(), routes, calendar()])
    await store.push("driver_stats", [stats(1, ago(hours=1), 0.25, 10)])
    await store.push("weather", [report("jfk", ago(hours=1), 3.5), report("lax", ago(hours=1), 20)])
    times = {"event_timestamp": ago(hours=1)}
    await store.push(
        "routes",
        [
            {"origin": "jfk", "dest": "lax", "minutes": 330, **times},
            {"origin": "lax", "dest": "jfk", "minutes": 300, **times},
        ],
    )
    await store.push("calendar", [{"holiday": True, **times}])
    return store


async def test_several_views_answer_in_one_vector(trips_store: fs.FeatureStore):
    features = ["driver_stats:trips", "weather:temp", "routes:minutes", "calendar:holiday"]
    rows = [
        {"driver_id": 1, "airport": "lax", "origin": "jfk", "dest": "lax"},
        {"driver_id": 2, "airport": "jfk", "origin": "jfk", "dest": "jfk"},
        {"driver_id": None, "airport": "", "origin": "lax", "dest": "jfk"},
    ]
    answer = await trips_store.get_online_features(features, rows)
    names = ("trips", "temp", "minutes", "holiday")
    assert [tuple(row[name] for name in names) for row in answer.to_dicts()] == [
        (10, 20.0, 330, True),
        (None, 3.5, None, True),
        (None, None, 300, True),
    ]
    assert [{key: row[key] for key in rows[0]} for row in answer.to_dicts()] == rows
    assert [set(moments) for moments in answer.event_timestamps] == [
        {"driver_stats", "weather", "routes", "calendar"}
    ] * 3


async def test_a_global_view_answers_every_row(trips_store: fs.FeatureStore):
    assert await online(trips_store, ["calendar:*"], [{}, {"driver_id": 5}]) == [
        {"holiday": True},
        {"holiday": True},
    ]
    assert await trips_store.repository("calendar").get() is not None


async def test_a_view_joins_under_another_name_and_key(trips_store: fs.FeatureStore):
    there = weather().with_name("dest_weather").with_join_key_map({"airport": "dest"})
    answer = await trips_store.get_online_features(
        [weather(), there], [{"airport": "jfk", "dest": "lax"}], full_feature_names=True
    )
    assert answer.to_dicts() == [
        {"airport": "jfk", "dest": "lax", "weather__temp": 3.5, "dest_weather__temp": 20.0}
    ]
    assert set(answer.event_timestamps[0]) == {"weather", "dest_weather"}
    assert statuses(answer) == [{"weather__temp": "PRESENT", "dest_weather__temp": "PRESENT"}]


async def test_another_name_alone_changes_nothing_but_outputs(trips_store: fs.FeatureStore):
    renamed = weather().with_name("dest_weather")
    assert await online(trips_store, [renamed], [{"airport": "jfk"}]) == [
        {"airport": "jfk", "temp": 3.5}
    ]
    assert [view.name for view in await trips_store.list_views()].count("dest_weather") == 0
    with pytest.raises(fs.NotFoundError):
        await online(trips_store, ["dest_weather:temp"], [{"airport": "jfk"}])


async def test_two_features_of_one_name_are_an_error_that_names_both(
    trips_store: fs.FeatureStore,
):
    there = weather().with_name("dest_weather").with_join_key_map({"airport": "dest"})
    with pytest.raises(fs.FeatureStoreError, match="full_feature_names=True") as caught:
        await online(trips_store, [weather(), there], [{"airport": "jfk", "dest": "lax"}])
    assert "dest_weather" in str(caught.value)
    assert "weather:temp" in str(caught.value) or "weather__temp" in str(caught.value)


async def test_a_feature_with_the_name_of_a_join_key_of_another_view_is_refused(
    trips_store: fs.FeatureStore,
):
    clash = fs.FeatureView(
        "last_trip",
        entities=[DRIVER],
        fields=[fs.Field("airport", fs.String)],
        timestamp_field="event_timestamp",
    )
    await trips_store.apply([clash])
    features = ["last_trip:airport", "weather:temp"]
    rows = [{"driver_id": 1, "airport": "jfk"}]
    with pytest.raises(fs.FeatureStoreError, match="airport"):
        await online(trips_store, features, rows)
    (row,) = await online(trips_store, features, rows, full_feature_names=True)
    assert row == {
        "driver_id": 1,
        "airport": "jfk",
        "last_trip__airport": None,
        "weather__temp": 3.5,
    }


async def test_a_service_with_two_features_of_one_name_is_read_with_full_names(
    trips_store: fs.FeatureStore,
):
    here = weather().with_name("origin_weather").with_join_key_map({"airport": "origin"})
    there = weather().with_name("dest_weather").with_join_key_map({"airport": "dest"})
    service = fs.FeatureService("eta", features=[here, there, driver_stats()[["trips"]]])
    await trips_store.apply([service])
    rows = [{"origin": "jfk", "dest": "lax", "driver_id": 1}]
    with pytest.raises(fs.FeatureStoreError, match="full_feature_names"):
        await online(trips_store, "eta", rows)
    assert await online(trips_store, "eta", rows, full_feature_names=True) == [
        {
            "origin": "jfk",
            "dest": "lax",
            "driver_id": 1,
            "origin_weather__temp": 3.5,
            "dest_weather__temp": 20.0,
            "driver_stats__trips": 10,
        }
    ]


async def test_one_view_of_a_composite_key_with_its_keys_swapped(trips_store: fs.FeatureStore):
    routes = await trips_store.get_view("routes")
    back = routes.with_name("back").with_join_key_map({"origin": "dest", "dest": "origin"})
    rows = [{"origin": "jfk", "dest": "lax"}]
    assert await online(trips_store, [routes, back], rows, full_feature_names=True) == [
        {"origin": "jfk", "dest": "lax", "routes__minutes": 330, "back__minutes": 300}
    ]


async def test_many_rows_in_one_request(store: fs.FeatureStore):
    await store.apply([driver_stats()])
    await store.push("driver_stats", [stats(n, hour(0), trips=n) for n in range(0, 6000, 2)])
    rows = [{"driver_id": n} for n in range(6000)]
    found = await online(store, ["driver_stats:trips"], rows)
    assert [row["trips"] for row in found] == [n if n % 2 == 0 else None for n in range(6000)]
