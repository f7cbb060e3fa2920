"""Training sets: what entity tables may look like and what comes back with them."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import (
    AIRPORT,
    Cases,
    driver_stats,
    entity_rows,
    hour,
    read_bytes,
    report,
    stats,
    training,
    weather,
)

import featurestore as fs
from featurestore.cli.training import TrainingFile


@pytest.fixture
async def trips_store(store: fs.FeatureStore) -> fs.FeatureStore:
    """Driver 1 with trips 0 … 3 by the hour, two airports, and a service of both."""
    service = fs.FeatureService("model", features=[driver_stats()[["trips"]], weather()])
    await store.apply([driver_stats(), weather(), service])
    await store.push("driver_stats", [stats(1, hour(n), n / 4, n) for n in range(4)])
    await store.push("weather", [report("jfk", hour(0), 3.5), report("lax", hour(1), 20.0)])
    return store


ASKED = entity_rows((1, hour(3)), (2, hour(3)), (1, hour(1.5)), (1, hour(3)), (None, hour(3)))
TRIPS = [3, None, 1, 3, None]


async def test_rows_keep_their_order_and_duplicates_and_null_keys(trips_store: fs.FeatureStore):
    found = await trips_store.get_historical_features(ASKED, ["driver_stats:trips"])
    table = found.to_arrow()
    assert table.column_names == ["driver_id", "event_timestamp", "trips"]
    assert table.select(["driver_id", "event_timestamp"]).equals(ASKED)
    assert table["trips"].to_pylist() == TRIPS
    assert found.match_rate == {"driver_stats": pytest.approx(3 / 5)}


async def test_it_knows_the_view_of_each_feature(trips_store: fs.FeatureStore):
    entities = ASKED.append_column("airport", pa.array(["jfk"] * ASKED.num_rows))
    entities = entities.append_column("dest", entities["airport"])
    there = weather().with_name("dest_weather").with_join_key_map({"airport": "dest"})
    found = await trips_store.get_historical_features(
        entities, ["driver_stats:trips", there], full_feature_names=True
    )
    names = found.to_arrow().column_names[ASKED.num_columns + 2 :]
    assert names[0] == "driver_stats__trips"
    assert found.features == {
        name: "dest_weather" if name.startswith("dest_weather__") else "driver_stats"
        for name in names
    }
    assert "dest_weather" in found._repr_html_()


async def test_extra_columns_are_kept_with_their_types(trips_store: fs.FeatureStore):
    count = ASKED.num_rows
    extra = {
        "label": pa.array([True, None, False, True, False]),
        "small": pa.array(range(count), pa.int8()),
        "word": pa.array(["a", "b", None, "a", ""]).dictionary_encode(),
        "large": pa.array(["x"] * count, pa.large_string()),
        "nanos": pa.array(range(count), pa.timestamp("ns", "Asia/Kolkata")),
        "struct": pa.array([{"a": [1, None]}] * count),
        "decimal": pa.array([None] * count, pa.decimal256(60, 2)),
        "nothing": pa.nulls(count),
        "duration": pa.array(range(count), pa.duration("s")),
    }
    odd_names = ["Trips", "ctid", "rowid", "select", "we\"ird'", "Kolümne", "a b", "_row", "", "%s"]
    extra |= {name: pa.array(range(count)) for name in odd_names}
    entities = ASKED
    for name, column in extra.items():
        entities = entities.append_column(name, column)
    found = (await trips_store.get_historical_features(entities, ["driver_stats:*"])).to_arrow()
    assert found.select(entities.column_names).equals(entities)
    assert found.column_names == [*entities.column_names, "conv_rate", "trips"]
    assert found["trips"].to_pylist() == TRIPS


async def test_times_of_any_unit_and_zone_are_taken_and_given_back(trips_store: fs.FeatureStore):
    with Cases() as cases:
        for unit, zone in (("s", "UTC"), ("ms", None), ("us", "Asia/Kolkata"), ("ns", "UTC")):
            with cases.case(unit, zone):
                times = ASKED["event_timestamp"].cast(pa.timestamp(unit, zone))
                entities = ASKED.set_column(1, "event_timestamp", times)
                found = await trips_store.get_historical_features(entities, ["driver_stats:trips"])
                assert found.to_arrow()["trips"].to_pylist() == TRIPS
                assert found.to_arrow().select(entities.column_names).equals(entities)


async def test_nanoseconds_of_a_question_are_floored(trips_store: fs.FeatureStore):
    micros = int((hour(1) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) / dt.timedelta(microseconds=1))
    ticks = [micros * 1000 - 1, micros * 1000, micros * 1000 + 999]
    entities = pa.table(
        {"driver_id": [1, 1, 1], "event_timestamp": pa.array(ticks, pa.timestamp("ns", "UTC"))}
    )
    rows = await training(trips_store, entities, ["driver_stats:trips"])
    assert [row["trips"] for row in rows] == [0, 1, 1]


async def test_keys_are_cast_where_they_fit(trips_store: fs.FeatureStore):
    with Cases() as cases:
        for kind in (pa.int8(), pa.uint32(), pa.float64()):
            with cases.case(kind):
                entities = ASKED.set_column(0, "driver_id", ASKED["driver_id"].cast(kind))
                found = await trips_store.get_historical_features(entities, ["driver_stats:trips"])
                assert found.to_arrow()["trips"].to_pylist() == TRIPS


async def test_dictionary_keys_are_keys(trips_store: fs.FeatureStore):
    entities = pa.table(
        {
            "airport": pa.array(["lax", "jfk", None, "lax"]).dictionary_encode(),
            "event_timestamp": pa.array([hour(2)] * 4, fs.Timestamp.arrow),
        }
    )
    rows = await training(trips_store, entities, [weather()])
    assert [row["temp"] for row in rows] == [20.0, 3.5, None, 20.0]


async def test_another_time_column_can_be_named(trips_store: fs.FeatureStore):
    entities = ASKED.rename_columns(["driver_id", "Asked at"])
    rows = await training(
        trips_store, entities, ["driver_stats:trips"], timestamp_column="Asked at"
    )
    assert [row["trips"] for row in rows] == TRIPS
    with pytest.raises(fs.SchemaMismatchError, match="event_timestamp"):
        await trips_store.get_historical_features(entities, ["driver_stats:trips"])


# --- what is refused --------------------------------------------------------------------------


async def test_a_null_time_is_an_error(trips_store: fs.FeatureStore):
    entities = entity_rows((1, hour(1)), (1, None))
    with pytest.raises(fs.FeatureStoreError, match="event_timestamp"):
        await trips_store.get_historical_features(entities, ["driver_stats:trips"])
    with pytest.raises(fs.FeatureStoreError, match="event_timestamp"):
        async for _ in trips_store.stream_historical_features(entities, ["driver_stats:trips"]):
            pass


async def test_a_missing_key_column_is_an_error(trips_store: fs.FeatureStore):
    with pytest.raises(fs.SchemaMismatchError, match="driver_id"):
        await trips_store.get_historical_features(
            ASKED.drop_columns(["driver_id"]), ["driver_stats:trips"]
        )


async def test_a_column_of_a_wrong_type_is_an_error(trips_store: fs.FeatureStore):
    wrong = {"driver_id": ["1"], "event_timestamp": ["2024-01-01"]}
    columns = {"driver_id": pa.array([1]), "event_timestamp": ASKED["event_timestamp"][:1]}
    with Cases() as cases:
        for column, values in [*wrong.items(), ("driver_id", [True])]:
            entities = pa.table(columns | {column: pa.array(values)})
            with cases.case(column, values), pytest.raises(fs.SchemaMismatchError, match=column):
                await trips_store.get_historical_features(entities, ["driver_stats:trips"])


async def test_a_key_that_does_not_fit_is_an_error(trips_store: fs.FeatureStore):
    entities = ASKED.set_column(0, "driver_id", pa.array([1.0, 1.5, 1.0, 1.0, 1.0]))
    with pytest.raises(fs.InvalidRowsError, match="driver_id") as caught:
        await trips_store.get_historical_features(entities, ["driver_stats:trips"])
    assert [row.row for row in caught.value.rows] == [1]


async def test_an_entity_column_with_the_name_of_an_output_is_an_error(
    trips_store: fs.FeatureStore,
):
    entities = ASKED.append_column("trips", pa.array(range(5)))
    with pytest.raises(fs.FeatureStoreError, match="trips"):
        await trips_store.get_historical_features(entities, ["driver_stats:trips"])
    rows = await training(trips_store, entities, ["driver_stats:trips"], full_feature_names=True)
    assert [(row["trips"], row["driver_stats__trips"]) for row in rows] == list(enumerate(TRIPS))


async def test_two_columns_of_one_name_in_an_entity_table_are_an_error(
    trips_store: fs.FeatureStore,
):
    doubled = ASKED.append_column("driver_id", pa.array(range(5)))
    with pytest.raises((fs.FeatureStoreError, ValueError), match="driver_id"):
        await trips_store.get_historical_features(doubled, ["driver_stats:trips"])


async def test_unknown_names_are_not_found(trips_store: fs.FeatureStore):
    for features, close in (
        (["driver_stat:trips"], "driver_stats"),
        (["driver_stats:trip"], "trips"),
        ("modle", "model"),
    ):
        with pytest.raises(fs.NotFoundError, match=close):
            await trips_store.get_historical_features(ASKED, features)


async def test_what_is_no_table_is_refused(trips_store: fs.FeatureStore):
    for wrong in (None, 7, "entities"):
        with pytest.raises((fs.FeatureStoreError, TypeError, ValueError)):
            await trips_store.get_historical_features(wrong, ["driver_stats:trips"])


async def test_an_unknown_engine_is_refused(trips_store: fs.FeatureStore):
    with pytest.raises((fs.FeatureStoreError, ValueError), match="warp"):
        await trips_store.get_historical_features(ASKED, ["driver_stats:trips"], engine="warp")


# --- several views ----------------------------------------------------------------------------

BOTH = ASKED.append_column("airport", pa.array(["jfk", "lax", "lax", None, "bos"])).append_column(
    "dest", pa.array(["lax", "lax", "lax", "jfk", "jfk"])
)
TEMPS = [3.5, 20.0, 20.0, None, None]


async def test_a_service_by_itself_or_by_name(trips_store: fs.FeatureStore):
    (service,) = await trips_store.list_services()
    for features in (service, "model"):
        found = await trips_store.get_historical_features(BOTH, features)
        assert found.to_arrow()["trips"].to_pylist() == TRIPS
        assert found.to_arrow()["temp"].to_pylist() == TEMPS
        assert found.match_rate == {"driver_stats": 0.6, "weather": 0.6}


async def test_one_view_twice_under_two_names(trips_store: fs.FeatureStore):
    there = weather().with_name("dest_weather").with_join_key_map({"airport": "dest"})
    found = await trips_store.get_historical_features(
        BOTH, [weather(), there, "driver_stats:trips"], full_feature_names=True
    )
    table = found.to_arrow()
    added = ["weather__temp", "dest_weather__temp", "driver_stats__trips"]
    assert table.column_names == [*BOTH.column_names, *added]
    assert table["weather__temp"].to_pylist() == TEMPS
    assert table["dest_weather__temp"].to_pylist() == [20.0, 20.0, 20.0, 3.5, 3.5]
    assert table["driver_stats__trips"].to_pylist() == TRIPS
    assert set(found.match_rate) == {"weather", "dest_weather", "driver_stats"}
    with pytest.raises(fs.FeatureStoreError, match="full_feature_names=True"):
        await trips_store.get_historical_features(BOTH, [weather(), there])


async def test_views_of_one_name_of_key_with_two_types(trips_store: fs.FeatureStore):
    """driver_id is a number in one view and text in another: no column fits both."""
    other = fs.FeatureView(
        "texts",
        entities=[fs.Entity("texted", join_keys={"driver_id": fs.String})],
        fields=[fs.Field("text", fs.String)],
        timestamp_field="event_timestamp",
    )
    await trips_store.apply([other])
    with pytest.raises(fs.FeatureStoreError, match="driver_id"):
        await trips_store.get_historical_features(ASKED, ["driver_stats:trips", "texts:text"])


# --- the set itself ---------------------------------------------------------------------------


async def test_an_empty_entity_table_gives_an_empty_set_with_all_columns(
    trips_store: fs.FeatureStore, tmp_path: Path
):
    empty = BOTH.slice(0, 0)
    found = await trips_store.get_historical_features(empty, "model")
    assert found.to_arrow().schema.names == [*BOTH.column_names, "trips", "temp"]
    assert found.to_arrow().schema.field("trips").type == pa.int32()
    assert found.to_arrow().num_rows == 0
    assert list(found.to_pandas().columns) == [*BOTH.column_names, "trips", "temp"]
    assert found.to_polars().columns == [*BOTH.column_names, "trips", "temp"]
    assert set(found.match_rate) == {"driver_stats", "weather"}


async def test_it_goes_to_pandas_polars_and_parquet(trips_store: fs.FeatureStore, tmp_path: Path):
    found = await trips_store.get_historical_features(BOTH, "model")
    table = found.to_arrow()
    frame = found.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert frame["temp"].tolist()[:3] == [3.5, 20.0, 20.0]
    assert list(frame.columns) == table.column_names
    polars = found.to_polars()
    assert isinstance(polars, pl.DataFrame)
    assert polars["trips"].to_list() == TRIPS
    path = tmp_path / "set.parquet"
    await asyncio.to_thread(found.to_parquet, path)
    assert pq.read_table(pa.BufferReader(read_bytes(path))).equals(table)


NO_PARQUET = {
    "an interval": pa.array([pa.MonthDayNano([1, 2, 3])] * 5),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([5], pa.int32()), pa.array(["x"])),
    "a union": pa.UnionArray.from_sparse(
        pa.array([0, 1, 0, 1, 0], pa.int8()), [pa.arange(0, 5), pa.array(["s"] * 5)]
    ),
    "a null among categories": pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 0, 1, 0]), pa.array(["a", None])
    ),
}


async def write_by_batches(found: fs.TrainingSet, path: Path) -> None:
    async with TrainingFile(path) as file:
        for batch in found.table.to_batches():
            await file.add(batch)
        await file.finish(found)


async def test_a_column_that_parquet_cannot_hold_is_named_and_nothing_written(
    trips_store: fs.FeatureStore, tmp_path: Path
):
    path = tmp_path / "set.parquet"
    with Cases() as cases:
        for name, column in NO_PARQUET.items():
            entities = ASKED.append_column("odd", column)
            found = await trips_store.get_historical_features(entities, ["driver_stats:trips"])
            words = "cannot hold column 'odd'.*cast it to another type, or drop it"
            with cases.case(name), pytest.raises(fs.SchemaMismatchError, match=words):
                await asyncio.to_thread(found.to_parquet, path)
            assert await asyncio.to_thread(os.listdir, tmp_path) == []
            with cases.case(f"{name}, as the command line writes"):
                with pytest.raises(fs.SchemaMismatchError, match=words):
                    await write_by_batches(found, path)
                assert await asyncio.to_thread(os.listdir, tmp_path) == []


TURNED = [4, 2, 0, 1, 3]
FRAME = ASKED.append_column("word", pa.array(["a", "b", "c", "d", "é"])).to_pandas()
"""In it the null key is NaN, and the keys are floats, as is usual in pandas."""

TABLES = {
    "pandas": FRAME,
    "pandas turned": FRAME.iloc[TURNED],
    "pandas Arrow types": FRAME.convert_dtypes(dtype_backend="pyarrow"),
    "polars": pl.from_pandas(FRAME),
    "batch": pa.RecordBatch.from_pandas(FRAME),
}


async def test_any_table_may_ask(trips_store: fs.FeatureStore):
    with Cases() as cases:
        for library, table in TABLES.items():
            order = TURNED if library == "pandas turned" else range(5)
            with cases.case(library):
                found = await trips_store.get_historical_features(table, ["driver_stats:trips"])
                answer = found.to_arrow()
                assert answer.column_names == ["driver_id", "event_timestamp", "word", "trips"]
                assert answer["trips"].to_pylist() == [TRIPS[number] for number in order]
                words = [FRAME["word"][number] for number in order]
                assert found.to_pandas()["word"].tolist() == words


async def test_a_reader_may_ask_and_is_read_once(trips_store: fs.FeatureStore):
    rows = await training(trips_store, ASKED.to_reader(), ["driver_stats:trips"])
    assert [row["trips"] for row in rows] == TRIPS


async def test_a_stream_is_the_same_in_pieces(trips_store: fs.FeatureStore):
    repeated = pa.concat_tables([BOTH] * 300)
    whole = (await trips_store.get_historical_features(repeated, "model")).to_arrow()
    batches = [b async for b in trips_store.stream_historical_features(repeated, "model")]
    assert all(isinstance(batch, pa.RecordBatch) for batch in batches)
    assert pa.Table.from_batches(batches).equals(whole)
    assert whole["trips"].to_pylist() == TRIPS * 300


async def test_a_stream_can_be_left_early(trips_store: fs.FeatureStore):
    repeated = pa.concat_tables([BOTH] * 300)
    async for batch in trips_store.stream_historical_features(repeated, "model"):
        assert batch.num_rows > 0
        break
    assert await trips_store.repository("driver_stats").count() == 4


async def test_a_view_without_online_serves_training(store: fs.FeatureStore):
    await store.apply([driver_stats(online=False)])
    await store.push("driver_stats", [stats(1, hour(0), trips=4)])
    rows = await training(store, entity_rows((1, hour(1))), ["driver_stats:trips"])
    assert rows[0]["trips"] == 4


async def test_two_entities_of_one_view(store: fs.FeatureStore):
    driver = fs.Entity("driver", join_keys={"driver_id": fs.Int64})
    view = fs.FeatureView(
        "visits",
        entities=[driver, AIRPORT],
        fields=[fs.Field("visits", fs.Int32)],
        timestamp_field="event_timestamp",
    )
    await store.apply([view])
    rows = [
        {"driver_id": d, "airport": a, "visits": n, "event_timestamp": hour(0)}
        for n, (d, a) in enumerate([(1, "jfk"), (1, "lax"), (2, "jfk")])
    ]
    await store.push("visits", rows)
    entities = entity_rows((1, hour(1)), (2, hour(1)), (1, hour(1)), (None, hour(1)))
    entities = entities.append_column("airport", pa.array(["lax", "jfk", None, "jfk"]))
    found = await training(store, entities, ["visits:visits"])
    assert [row["visits"] for row in found] == [1, 2, None, None]
