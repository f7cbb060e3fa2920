"""Replay: a manifest gives the same rows later, or says what of them is gone."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from builders import (
    Cases,
    driver_stats,
    entity_rows,
    hour,
    parquet,
    read_bytes,
    report,
    stats,
    weather,
    write_bytes,
    write_parquet,
)

import featurestore as fs

OpenStore = Callable[..., Awaitable[fs.FeatureStore]]

VIEW = driver_stats(ttl=dt.timedelta(hours=4))
CREATED = driver_stats("late_stats", created_timestamp_field="created")
SERVICE = fs.FeatureService("model", features=[weather(), VIEW[["trips"]]])
ENTITIES = pa.table(
    {
        "driver_id": pa.array([1, 2, None, 1, 3], pa.int64()),
        "event_timestamp": pa.array([hour(3), hour(3), hour(3), hour(9), hour(1)]),
        "airport": ["jfk", "lax", "jfk", None, "bos"],
        "dest": ["lax", "lax", "bos", "jfk", "jfk"],
        "label": [1.5, None, 2.5, 3.5, 4.5],
    }
)


@pytest.fixture
async def made(store: fs.FeatureStore) -> fs.FeatureStore:
    """Drivers 1 and 2, two airports, a service."""
    await store.apply([VIEW, CREATED, weather(), SERVICE])
    await store.push(VIEW, [stats(1, hour(n), n / 4, n) for n in range(4)])
    await store.push(VIEW, [stats(2, hour(2), None, 20)])
    await store.push("weather", [report("jfk", hour(0), 3.5), report("lax", hour(1), 20.0)])
    await store.push(
        CREATED, [stats(1, hour(n), n / 4, n, created=hour(n + 1.5)) for n in range(4)]
    )
    return store


async def more_data(store: fs.FeatureStore) -> None:
    """What would change each value: late rows, ties that win, corrections, new keys."""
    await store.push(VIEW, [stats(1, hour(3), 9.0, 99), stats(2, hour(3), 9.0, 99)])
    await store.push(VIEW, [stats(1, hour(8.5), 9.0, 99), stats(3, hour(0.5), 9.0, 99)])
    await store.push("weather", [report(name, hour(1), 99.0) for name in ("jfk", "lax", "bos")])
    await store.push(CREATED, [stats(1, hour(n), 9.0, 99, created=hour(n)) for n in range(9)])


def same(one: fs.TrainingSet, two: fs.TrainingSet) -> None:
    assert two.to_arrow().schema == one.to_arrow().schema
    assert two.to_arrow().equals(one.to_arrow())
    assert two.match_rate == one.match_rate
    assert two.features == one.features
    assert two.leaked == one.leaked


THERE = weather().with_name("there").with_join_key_map({"airport": "dest"})
QUESTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "some features": (["driver_stats:trips", "weather:temp"], {}),
    "a view": ([VIEW], {}),
    "in another order": (["driver_stats:trips", "weather:temp", "driver_stats:conv_rate"], {}),
    "full names": ([VIEW, weather(), THERE], {"full_feature_names": True}),
    "one view under another key": ([THERE], {}),
    "a service": ("model", {}),
    "known by": ([CREATED], {"known_by": "created_timestamp"}),
}


@pytest.mark.parametrize("name", QUESTIONS)
async def test_the_same_rows_come_again_by_any_engine_whatever_came_in(
    made: fs.FeatureStore, tmp_path: Path, name: str
):
    features, options = QUESTIONS[name]
    sets = {
        engine: await made.get_historical_features(ENTITIES, features, engine=engine, **options)
        for engine in ("sql", "duckdb")
    }
    await more_data(made)
    now = await made.get_historical_features(ENTITIES, features, **options)
    assert not now.to_arrow().equals(sets["sql"].to_arrow())  # it would show
    for one in sets.values():
        for engine in ("sql", "duckdb", "auto"):
            same(one, await made.replay(one.manifest, engine=engine))
    # From files: JSON, which does not have the entity table, and the set's own.
    manifest = one.manifest
    assert manifest is not None
    path = tmp_path / "manifest.json"
    await asyncio.to_thread(manifest.save, path)
    assert await asyncio.to_thread(fs.Manifest.load, path) == manifest
    same(one, await made.replay(path, ENTITIES))
    same(one, await made.replay(str(path), ENTITIES))
    with pytest.raises(fs.DefinitionError, match="entity_df"):
        await made.replay(path)
    await asyncio.to_thread(one.to_parquet, tmp_path / "set.parquet")
    again = await made.replay(tmp_path / "set.parquet")
    same(one, again)
    # And of what was replayed, once more.
    same(one, await made.replay(again.manifest))


async def test_a_stream_is_replayed_by_its_summary(made: fs.FeatureStore):
    stream = made.stream_historical_features(ENTITIES, "model")
    rows = pa.Table.from_batches([batch async for batch in stream])
    await more_data(made)
    assert stream.summary is not None
    assert (await made.replay(stream.summary.manifest)).to_arrow().equals(rows)


async def test_it_is_read_in_a_transaction_as_well(made: fs.FeatureStore):
    one = await made.get_historical_features(ENTITIES, "model")
    async with made.transaction() as tx:
        await tx.push(VIEW, [stats(1, hour(3), trips=99)])
        same(one, await tx.replay(one.manifest))
        inside = await tx.get_historical_features(ENTITIES, "model")
    with pytest.raises(fs.DefinitionError, match="inside a transaction"):
        await made.replay(inside.manifest)


# --- definitions that changed -----------------------------------------------------------------


async def test_it_goes_by_the_ttl_and_the_types_of_then(made: fs.FeatureStore):
    one = await made.get_historical_features(ENTITIES, [VIEW])
    assert one.to_arrow()["trips"].to_pylist()[3] is None  # past its ttl
    assert one.to_arrow().schema.field("trips").type == pa.int32()
    wider = [
        fs.Field("more", fs.String),
        fs.Field("trips", fs.Int64),
        fs.Field("conv_rate", fs.Float64),
    ]
    await made.apply([driver_stats(fields=wider, ttl=None)])
    await made.push(VIEW.name, [stats(1, hour(9), trips=2**40, more="x")])
    await made.push(VIEW.name, [stats(7, hour(0), trips=2**40, more="x")])
    for engine in ("sql", "duckdb"):
        same(one, await made.replay(one.manifest, engine=engine))


async def test_a_field_that_is_gone_is_named(made: fs.FeatureStore):
    one = await made.get_historical_features(ENTITIES, [VIEW])
    rates = await made.get_historical_features(ENTITIES, ["driver_stats:conv_rate"])
    await made.apply([replace(SERVICE, features=[weather()])])
    without = driver_stats(fields=[fs.Field("conv_rate", fs.Float64)], ttl=VIEW.ttl)
    await made.apply([without], allow={"drop"})
    with pytest.raises(fs.NotFoundError, match=r"'trips'.*driver_stats"):
        await made.replay(one.manifest)
    same(rates, await made.replay(rates.manifest))
    # There again, it has none of its values.
    await made.apply([VIEW])
    with pytest.raises(fs.NotFoundError, match="driver_stats: values of field trips"):
        await made.replay(one.manifest)
    same(rates, await made.replay(rates.manifest))


async def test_a_field_that_was_narrowed_is_named(store: fs.FeatureStore):
    await store.apply([VIEW])
    await store.push(VIEW, [stats(1, hour(0), conv_rate=0.1)])
    entities = entity_rows((1, hour(1)))
    one = await store.get_historical_features(entities, [VIEW])
    narrow = [fs.Field("conv_rate", fs.Float32), fs.Field("trips", fs.Int32)]
    await store.apply([driver_stats(fields=narrow, ttl=VIEW.ttl)], allow={"narrow"})
    with pytest.raises(fs.NotFoundError, match="field conv_rate, which was dropped or narrowed"):
        await store.replay(one.manifest)
    await store.apply([VIEW])
    with pytest.raises(fs.NotFoundError, match="field conv_rate, which was dropped or narrowed"):
        await store.replay(one.manifest)


async def test_other_join_keys_and_unknown_views_are_told(made: fs.FeatureStore):
    one = await made.get_historical_features(ENTITIES, ["driver_stats:trips"])
    [join] = one.manifest.joins
    other = replace(one.manifest, joins=(replace(join, columns=(("taxi_id", "driver_id"),)),))
    with pytest.raises(fs.DefinitionError, match="other join keys"):
        await made.replay(other)
    other = replace(one.manifest, joins=(replace(join, view="driver_stat"),))
    with pytest.raises(fs.NotFoundError, match="driver_stats"):
        await made.replay(other)


# --- rows that are gone -----------------------------------------------------------------------


async def test_an_undone_load_is_named_where_it_was_used(made: fs.FeatureStore, tmp_path: Path):
    used = await asyncio.to_thread(
        parquet, tmp_path, VIEW, [stats(3, hour(0), trips=30)], "used.parquet"
    )
    unused = await asyncio.to_thread(
        parquet, tmp_path, VIEW, [stats(8, hour(0), trips=80)], "unused.parquet"
    )
    [first] = (await made.ingest(VIEW, used)).loads
    [second] = (await made.ingest(VIEW, unused)).loads
    one = await made.get_historical_features(ENTITIES, "model")
    await made.undo_load(second.load_id)
    same(one, await made.replay(one.manifest))
    await made.undo_load(first.load_id)
    with pytest.raises(fs.NotFoundError) as caught:
        await made.replay(one.manifest)
    told = str(caught.value)
    assert f"driver_stats: 1 row of load {first.load_id}" in told
    assert "used.parquet), undone at 20" in told
    assert str(second.load_id) not in told
    # Loaded once more, they are other rows: what came when is part of what was known.
    await made.ingest(VIEW, used)
    with pytest.raises(fs.NotFoundError, match=f"load {first.load_id} "):
        await made.replay(one.manifest)


async def test_an_erasure_is_told_where_it_matters_and_names_nobody(made: fs.FeatureStore):
    await made.push(VIEW, [stats(4_711_000_815, hour(1), trips=1), stats(5, hour(1), trips=1)])
    entities = entity_rows((1, hour(3)), (4_711_000_815, hour(3)))
    one = await made.get_historical_features(entities, [VIEW])
    await made.repository(VIEW).delete(driver_id=5)
    same(one, await made.replay(one.manifest))
    await made.repository(VIEW).delete(driver_id=4_711_000_815)
    with pytest.raises(fs.NotFoundError) as caught:
        await made.replay(one.manifest)
    told = str(caught.value)
    assert "driver_stats: 1 row of an entity that was erased at 20" in told
    assert "4711000815" not in told.replace("_", "").replace(",", "")


# --- entity tables ----------------------------------------------------------------------------


async def test_only_the_entity_table_of_the_manifest_will_do(made: fs.FeatureStore):
    one = await made.get_historical_features(ENTITIES, "model")
    manifest = replace(one.manifest, entity_table=None)
    pieces = pa.concat_tables([ENTITIES[:2], ENTITIES[2:3], ENTITIES[3:]])
    coded = ENTITIES.set_column(2, "airport", ENTITIES["airport"].dictionary_encode())
    for entities in (ENTITIES, pieces, pieces.to_reader(), coded):
        found = await made.replay(manifest, entities)
        assert found.to_arrow()["temp"].equals(one.to_arrow()["temp"])
    others = {
        "order": ENTITIES.take([1, 0, 2, 3, 4]),
        "rows": ENTITIES[:4],
        "a value": ENTITIES.set_column(4, "label", pa.array([1.5, None, 2.5, 3.5, 4.6])),
        "a null": ENTITIES.set_column(4, "label", pa.array([1.5, 0.0, 2.5, 3.5, 4.5])),
        "a name": ENTITIES.rename_columns([*ENTITIES.column_names[:4], "target"]),
        "no label": ENTITIES.drop_columns(["label"]),
    }
    with Cases() as cases:
        for name, entities in others.items():
            with (
                cases.case(name),
                pytest.raises(fs.SchemaMismatchError, match="not the one of the manifest"),
            ):
                await made.replay(manifest, entities)


async def test_another_entity_table_is_told_by_what_differs(made: fs.FeatureStore):
    one = await made.get_historical_features(ENTITIES, "model")
    bare = replace(one.manifest, entity_table=None)
    small = ENTITIES.set_column(4, "label", ENTITIES["label"].cast(pa.float32()))
    dates = ENTITIES["event_timestamp"].cast(pa.timestamp("s", "UTC"))
    cases = [
        (one.manifest, small, "its column 'label' was double, and is float here"),
        (one.manifest, ENTITIES.set_column(1, "event_timestamp", dates),
         r"column 'event_timestamp' was timestamp\[us, tz=UTC\], and is timestamp\[s"),
        (one.manifest, ENTITIES.take([1, 0, 2, 3, 4]), "manifest: the content differs"),
        (bare, small, "the content of a column differs, or its type"),
        (bare, ENTITIES.drop_columns(["label"]), "dest, label; this has driver_id"),
        (bare, ENTITIES[:4], "5 rows, this has 4"),
    ]  # fmt: skip
    with Cases() as told:
        for manifest, entities, words in cases:
            with told.case(words), pytest.raises(fs.SchemaMismatchError, match=words):
                await made.replay(manifest, entities)


async def test_a_frame_is_replayed_with_the_file_that_it_wrote(
    made: fs.FeatureStore, tmp_path: Path
):
    tags = pa.array([["a"], [], None, ["b", None], ["c"]])
    frame = pl.from_arrow(ENTITIES.append_column("tags", tags))
    assert isinstance(frame, pl.DataFrame)
    one = await made.get_historical_features(frame, "model")
    manifest = fs.Manifest.from_json(one.manifest.to_json())
    path = tmp_path / "frame.parquet"
    await asyncio.to_thread(frame.write_parquet, path)
    again = [path, frame, ENTITIES.append_column("tags", tags)]
    for entities in again:
        found = await made.replay(manifest, entities)
        assert found.to_arrow()["temp"].equals(one.to_arrow()["temp"])


async def test_a_set_and_what_its_json_holds_are_replayed(made: fs.FeatureStore):
    one = await made.get_historical_features(ENTITIES, "model")
    await more_data(made)
    same(one, await made.replay(one))
    document = json.loads(one.manifest.to_json())
    same(one, await made.replay(document, ENTITIES))
    assert document == json.loads(one.manifest.to_json())
    wrong: list[tuple[Any, str]] = [
        (replace(one, manifest=None), "has no manifest"),
        ({}, "no manifest of a training set"),
        ({"format": {1, 2}}, "no manifest of a training set"),
        (ENTITIES, "manifest: it is a training set, its manifest, or the path of either"),
        (None, "not NoneType"),
        (b"set.parquet", "not bytes"),
    ]
    with Cases() as told:
        for given, words in wrong:
            with told.case(words), pytest.raises(fs.DefinitionError, match=words):
                await made.replay(given, ENTITIES)


async def test_a_path_and_a_query_are_read_again(made: fs.FeatureStore, tmp_path: Path):
    path = await asyncio.to_thread(write_parquet, tmp_path / "entities.parquet", ENTITIES)
    query = "SELECT 1 AS driver_id, '2024-01-01 03:00:00+00:00' AS event_timestamp, 'x' AS word"
    if not made.engine.dialect.name.startswith("sqlite"):
        query = query.replace("AS event", "::timestamptz AS event")
    by_path = await made.get_historical_features(path, "model")
    by_query = await made.get_historical_features(query, ["driver_stats:trips"])
    assert by_query.to_arrow()["trips"].to_pylist() == [3]
    await more_data(made)
    for one in (by_path, by_query):
        # As from a file of JSON, which has the source and not the table.
        manifest = fs.Manifest.from_json(one.manifest.to_json())
        same(one, await made.replay(manifest))
    with pytest.raises(fs.SchemaMismatchError, match="not the one of the manifest"):
        await made.replay(by_query.manifest, query.replace("'x'", "'y'"))
    await asyncio.to_thread(write_parquet, path, ENTITIES[:3])
    with pytest.raises(fs.SchemaMismatchError, match=r"5 rows.*this has 3"):
        await made.replay(fs.Manifest.from_json(by_path.manifest.to_json()))


FRAME = pd.DataFrame(
    {
        "driver_id": [1, 2, 1],
        "event_timestamp": pd.to_datetime(["2024-01-01T03:00"] * 3, utc=True),
        "word": ["a", None, "c"],
        "group": pd.Categorical(["x", "y", "x"]),
    },
    index=pd.Index([7, 3, 5], name="number"),
)
COUNT = 3
TIMES = pa.array([hour(3)] * COUNT, pa.timestamp("us", "UTC"))
TABLES: dict[str, Any] = {
    "pandas": FRAME,
    "pandas of Arrow types": FRAME.convert_dtypes(dtype_backend="pyarrow"),
    "polars": pl.from_pandas(FRAME),
    "metadata": pa.table(
        {"driver_id": [1, 1, 2], "event_timestamp": TIMES},
        metadata={"made by": "hand", "featurestore": "x"},
    ),
    "no rows": ENTITIES.select(["driver_id", "event_timestamp", "label"])[:0],
    "duplicates": pa.concat_tables([ENTITIES.select(["driver_id", "event_timestamp"])] * 3),
    "mappings": [{"driver_id": 1, "event_timestamp": hour(2), "word": None}],
}
TABLES |= {
    f"times in {unit} {zone}": pa.table(
        {"driver_id": [1] * COUNT, "event_timestamp": TIMES.cast(pa.timestamp(unit, zone))}
    )
    for unit in ("s", "ms", "us", "ns")
    for zone in (None, "UTC", "Asia/Kolkata", "+02:00")
}
TABLES["further columns"] = pa.table(
    {
        "driver_id": pa.array([1, None, 2], pa.int16()),
        "event_timestamp": TIMES,
        "coded": pa.array(["a", None, "a"]).dictionary_encode(),
        "small codes": pa.DictionaryArray.from_arrays(
            pa.array([1, 0, None], pa.int8()), ["a", "b"]
        ),
        "large": pa.array(["a", None, "c"], pa.large_string()),
        "view": pa.array(["a", None, "c"], pa.string_view()),
        "date64": pa.array([0, 86_400_000, None], pa.date64()),
        "time": pa.array([1, 2, None], pa.time32("s")),
        "span": pa.array([1, 2, None], pa.duration("s")),
        "decimal": pa.array([Decimal("1.50"), None, Decimal("2.00")], pa.decimal256(60, 2)),
        "half": pa.array([1.5, None, 2.5], pa.float32()).cast(pa.float16()),
        "list": pa.array([[1, None], None, []], pa.large_list(pa.uint8())),
        "pair": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)),
        "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int8())),
        "struct": pa.array(
            [{"a": [None]}, None, {"a": None}], pa.struct({"a": pa.list_(pa.date32())})
        ),
        "nothing": pa.nulls(COUNT),
        "id": pa.array([b"0" * 16, None, b"1" * 16], pa.uuid()),
    }
)


async def test_a_sets_own_file_has_all_that_its_replay_needs(made: fs.FeatureStore, tmp_path: Path):
    sets = {
        name: await made.get_historical_features(table, [VIEW]) for name, table in TABLES.items()
    }
    await more_data(made)
    with Cases() as cases:
        for name, one in sets.items():
            path = tmp_path / "set.parquet"
            with cases.case(name):
                await asyncio.to_thread(one.to_parquet, path)
                again = await made.replay(path)
                assert again.to_arrow().equals(one.to_arrow())
                assert again.to_arrow().schema.metadata == one.to_arrow().schema.metadata


async def test_a_file_of_another_kind_has_no_manifest(made: fs.FeatureStore, tmp_path: Path):
    path = await asyncio.to_thread(write_parquet, tmp_path / "plain.parquet", ENTITIES)
    with pytest.raises(fs.DefinitionError, match="no manifest"):
        await made.replay(path)
    with pytest.raises(fs.SourceError, match="missing"):
        await made.replay(tmp_path / "missing.json")
    broken = await asyncio.to_thread(write_bytes, tmp_path / "broken", b"PAR1 and no more")
    with pytest.raises(fs.SourceError, match="broken"):
        await made.replay(broken)
    odd = await asyncio.to_thread(write_bytes, tmp_path / "odd", b"\xff\xfe{}")
    with pytest.raises(fs.DefinitionError, match="odd: this is no manifest"):
        await made.replay(odd)


# --- straight from the files ------------------------------------------------------------------


async def test_a_source_must_still_hold_what_it_held(store: fs.FeatureStore, tmp_path: Path):
    path = tmp_path / "source.parquet"
    rows = [stats(1, hour(n), n / 4, n) for n in range(4)]
    await asyncio.to_thread(parquet, tmp_path, VIEW, rows, path.name)
    await store.apply([replace(VIEW, source=fs.ParquetSource(str(path)))])
    entities = entity_rows((1, hour(2)), (1, hour(3)), (9, hour(1)))
    options: dict[str, Any] = {"read_from": "source"}
    one = await store.get_historical_features(entities, ["driver_stats:trips"], **options)
    assert one.to_arrow()["trips"].to_pylist() == [2, 3, None]
    content = await asyncio.to_thread(read_bytes, path)
    same(one, await store.replay(one.manifest))
    await store.push(VIEW, [stats(1, hour(3), trips=99)])  # of no concern to the file
    same(one, await store.replay(one.manifest))

    changes = {
        "a value": [*rows[:2], stats(1, hour(2), 0.5, 77), rows[3]],
        "a null": [*rows[:2], stats(1, hour(2), 0.5, None), rows[3]],
        "one row more": [*rows, stats(1, hour(2), 0.5, 77)],
        "fewer rows": rows[:2],
        "order": rows[::-1],
    }
    with Cases() as cases:
        for name, changed in changes.items():
            await asyncio.to_thread(parquet, tmp_path, VIEW, changed, path.name)
            with cases.case(name), pytest.raises(fs.SourceError, match="'driver_stats'"):
                await store.replay(one.manifest)
    # What the set did not read may be another.
    unread = [{**row, "conv_rate": 77.0} for row in rows]
    await asyncio.to_thread(parquet, tmp_path, VIEW, unread, path.name)
    same(one, await store.replay(one.manifest))
    await asyncio.to_thread(write_bytes, path, content)
    same(one, await store.replay(one.manifest))


# --- manifests --------------------------------------------------------------------------------


async def test_a_manifest_of_another_project_is_refused(
    made: fs.FeatureStore, open_store: OpenStore
):
    one = await made.get_historical_features(ENTITIES, "model")
    other = await open_store(project=f"{made.project}_other")
    with pytest.raises(fs.DefinitionError, match=made.project):
        await other.replay(one.manifest)


async def test_a_damaged_manifest_is_told_so(made: fs.FeatureStore):
    one = await made.get_historical_features(ENTITIES, "model")
    whole = json.loads(one.manifest.to_json())
    join = whole["joins"][0]
    damages: dict[str, Any] = {
        "no JSON": "{",
        "nothing": "",
        "a list": "[]",
        "a number": "7",
        "another object": "{}",
        "another format": {**whole, "format": 99},
        "no mark": {key: value for key, value in whole.items() if key != "mark"},
        "an odd mark": {**whole, "mark": "now"},
        "a number for a mark": {**whole, "mark": 7},
        "a word too much": {**whole, "more": 1},
        "no joins": {**whole, "joins": None},
        "an output of no join": {**whole, "outputs": [["x", 7, 0]]},
        "an output of no feature": {**whole, "outputs": [["x", 0, 7]]},
        "an output without a name": {**whole, "outputs": [[None, 0, 0]]},
        "an unknown type": {**whole, "joins": [{**join, "types": ["money"]}]},
        "types for nothing": {**whole, "joins": [{**join, "types": join["types"] * 2}]},
        "an endless ttl": {**whole, "joins": [{**join, "ttl": [10**12, 0, 0]}]},
        "odd blocks": {**whole, "joins": [{**join, "blocks": [[2, 1]]}]},
        "odd columns": {**whole, "joins": [{**join, "columns": [["a", 7]]}]},
        "no digest": {**whole, "entity_digest": None},
        "an odd time": {**whole, "created_at": "yesterday"},
    }
    with Cases() as cases:
        for name, damaged in damages.items():
            text = damaged if isinstance(damaged, str) else json.dumps(damaged)
            with cases.case(name), pytest.raises(fs.DefinitionError, match=r"manifest|is no type"):
                fs.Manifest.from_json(text)
    assert fs.Manifest.from_json(json.dumps(whole)) == one.manifest


async def test_a_manifest_of_an_older_format_is_told_so_and_its_digests_are_not_compared(
    made: fs.FeatureStore, tmp_path: Path
):
    """In format 1 the digests were of another function: the same rows had other ones."""
    one = await made.get_historical_features(ENTITIES, "model")
    older = {**json.loads(one.manifest.to_json()), "format": 1, "entity_digest": "0" * 40}
    path = tmp_path / "older.json"
    await asyncio.to_thread(write_bytes, path, json.dumps(older).encode())
    for read in (fs.Manifest.load, lambda path: fs.Manifest.from_json(json.dumps(older))):
        with pytest.raises(fs.DefinitionError, match=r"another version.*format 1.*reads format"):
            await asyncio.to_thread(read, path)
    with pytest.raises(fs.DefinitionError, match=r"another version.*Make the training set anew"):
        await made.replay(path, ENTITIES)


async def test_a_view_of_single_pushes_has_a_manifest_of_reasonable_size(store: fs.FeatureStore):
    view = driver_stats(online=False)
    await store.apply([view])
    for start in range(0, 3_000, 100):
        pushes = [store.push(view, [stats(n, hour(0), trips=n)]) for n in range(start, start + 100)]
        await asyncio.gather(*pushes)
    # Every third of them: hardly two blocks are next to each other.
    entities = entity_rows(*((number, hour(1)) for number in range(0, 3_000, 3)))
    one = await store.get_historical_features(entities, [view])
    assert len(one.manifest.to_json()) < 64_000
    await store.push(view, [stats(n, hour(0), trips=-1) for n in range(100)])
    same(one, await store.replay(fs.Manifest.from_json(one.manifest.to_json()), entities))
    assert len(str(one.manifest.mark)) < 200


# --- known_by ---------------------------------------------------------------------------------


async def test_a_row_that_came_too_late_does_not_hide_one_that_was_known(store: fs.FeatureStore):
    view = driver_stats("late_stats", created_timestamp_field="created", ttl=dt.timedelta(hours=2))
    await store.apply([view])
    await store.push(
        view,
        [
            stats(1, hour(1), trips=1, created=hour(1)),
            stats(1, hour(2), trips=2, created=hour(9)),  # newest, and a back-fill
            stats(2, hour(1), trips=3, created=hour(9)),  # nothing else is there
            stats(3, hour(0), trips=4, created=hour(0)),  # known, and past the ttl
            stats(3, hour(2), trips=5, created=hour(3)),  # known just in time
            stats(4, hour(1), trips=6, created=hour(1)),  # the ttl's very end
            stats(4, hour(2), trips=7, created=hour(3) + dt.timedelta(microseconds=1)),
        ],
    )
    asked = entity_rows(*((driver, hour(3)) for driver in (1, 2, 3, 4, 5)))
    for engine in ("sql", "duckdb"):
        options: dict[str, Any] = {"engine": engine}
        plain = await store.get_historical_features(asked, ["late_stats:trips"], **options)
        assert plain.to_arrow()["trips"].to_pylist() == [2, 3, 5, 7, None]
        assert plain.leaked == {"late_stats": 3}
        options["known_by"] = "created_timestamp"
        known = await store.get_historical_features(asked, ["late_stats:trips"], **options)
        assert known.to_arrow()["trips"].to_pylist() == [1, None, 5, 6, None]
        assert known.leaked == {"late_stats": 3}
        assert known.match_rate == {"late_stats": 0.6}
        assert known.manifest.known_by == "created_timestamp"
        same(known, await store.replay(known.manifest))
    # Past the ttl by a microsecond, the newest known row uncovers nothing.
    later = entity_rows((4, hour(3) + dt.timedelta(microseconds=1)), (1, hour(9)))
    for engine in ("sql", "duckdb"):
        found = await store.get_historical_features(
            later, [view], engine=engine, known_by="created_timestamp"
        )
        assert found.to_arrow()["trips"].to_pylist() == [7, None]
