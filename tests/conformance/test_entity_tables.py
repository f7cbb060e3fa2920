"""Entity tables of every sort, and what is refused of them before any history is read."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal as Number
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa
from builders import (
    DRIVER,
    Cases,
    driver_stats,
    entity_rows,
    hour,
    read_bytes,
    report,
    stats,
    table_of,
    training,
    weather,
    write_bytes,
    write_parquet,
)
from ways import WAYS, asked

import featurestore as fs
from featurestore.storage.tables import EVENT
from featurestore.training.pruning import FEW_KEYS
from featurestore.training.threads import FEW_BYTES

VIEW = driver_stats()
FEATURES = ["driver_stats:trips"]
ASKED = entity_rows((1, hour(3)), (2, hour(3)), (1, hour(1.5)))
TRIPS = [3, None, 1]


@pytest.fixture
async def trips_store(store: fs.FeatureStore) -> fs.FeatureStore:
    """Driver 1 with trips 0 … 3 by the hour, and an airport."""
    await store.apply([VIEW, weather()])
    await store.push(VIEW, [stats(1, hour(n), n / 4, n) for n in range(4)])
    await store.push("weather", [report("jfk", hour(0), 3.5)])
    return store


@asynccontextmanager
async def statements(store: fs.FeatureStore) -> AsyncIterator[list[str]]:
    """The statements that read history meanwhile."""
    seen: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "__history" in statement and not statement.startswith("LOCK"):
            seen.append(statement)

    engine = store.engine.sync_engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


# --- names ------------------------------------------------------------------------------------


async def test_the_names_that_the_join_uses_are_ordinary_columns(trips_store: fs.FeatureStore):
    ours = ["__row", "__at", "__arrival", "event", "asked", "id", "r", "a", "c", "t", "k0", "c0"]
    entities = ASKED
    for number, name in enumerate(ours):
        entities = entities.append_column(name, pa.array([number, None, -number], pa.int16()))
    for way in WAYS:
        found = (await asked(trips_store, entities, FEATURES, way)).to_arrow()
        assert found.select(entities.column_names).equals(entities), way
        assert found["trips"].to_pylist() == TRIPS, way


async def test_the_time_column_may_have_such_a_name_and_a_key_may_not(
    trips_store: fs.FeatureStore,
):
    for name in ("__row", "__at", "__arrival"):
        entities = ASKED.rename_columns(["driver_id", name])
        for way in WAYS:
            found = await asked(trips_store, entities, FEATURES, way, timestamp_column=name)
            assert found.to_arrow()["trips"].to_pylist() == TRIPS, (name, way)
    for name in ("__row", "__at"):
        mapped = VIEW[["trips"]].with_join_key_map({"driver_id": name})
        entities = ASKED.rename_columns([name, "event_timestamp"])
        with pytest.raises(fs.DefinitionError, match=f"{name}.*another name"):
            await trips_store.get_historical_features(entities, [mapped])


async def test_features_and_keys_may_have_the_names_that_the_join_uses(store: fs.FeatureStore):
    """Such names as a, which the statements of an engine have for something of their own."""
    names = ["a", "b", "c", "e", "h", "w", "t", "v", "r", "id", "asked", "k0", "k1", "best"]
    names += ["ties", "history", "entity", "rows_of_history", "found_0"]
    keyed = fs.Entity("keyed", join_keys={"k1": fs.Int64, "a": fs.String})
    view = fs.FeatureView(
        "odd",
        entities=[keyed],
        fields=[fs.Field(name, fs.Int64) for name in names if name not in keyed.join_keys],
        timestamp_field="event_timestamp",
        created_timestamp_field="made",
    )
    features = [field.name for field in view.fields]
    plain = fs.FeatureView(
        "plain",
        entities=[DRIVER],
        fields=[fs.Field(name, fs.Int64) for name in names],
        timestamp_field="event_timestamp",
    )
    await store.apply([view, plain])

    def values(number: int, of: list[str]) -> dict[str, int]:
        return {name: 1000 * number + index for index, name in enumerate(of)}

    for number in range(3):  # a tie: the last counts
        times = {"event_timestamp": hour(1), "made": hour(2)}
        await store.push(view, [{"k1": 1, "a": "x", **times, **values(number, features)}])
        await store.push(
            plain, [{"driver_id": 1, "event_timestamp": hour(1), **values(number, names)}]
        )
    two = pa.table({"k1": [1, 1], "a": ["x", "y"], "event_timestamp": [hour(1), hour(1)]})
    one = entity_rows((1, hour(1)), (2, hour(1)))
    for way in WAYS:
        for entities, read, of in ((two, view, features), (one, plain, names)):
            found = (await asked(store, entities, [read], way)).to_arrow()
            rows = found.select(of).to_pylist()
            assert rows == [values(2, of), dict.fromkeys(of)], (way, read.name)
            late = await asked(store, entities, [read], way, known_by="created_timestamp")
            assert late.to_arrow().num_rows == 2


# --- rows that do not fit ---------------------------------------------------------------------


async def test_null_times_are_told_with_their_rows_wherever_they_are(trips_store: fs.FeatureStore):
    count = 200_000
    bad = [3, 65_535, 65_536, 131_071, 131_072, count - 1]
    times = pa.repeat(pa.scalar(hour(1), fs.Timestamp.arrow), count)
    mask = pc.is_in(pa.arange(0, count), value_set=pa.array(bad))
    entities = pa.table(
        {
            "driver_id": pa.repeat(1, count),
            "event_timestamp": pc.if_else(mask, None, times),
        }
    )
    async with statements(trips_store) as seen:
        with pytest.raises(fs.InvalidRowsError, match="event_timestamp is null") as caught:
            await trips_store.get_historical_features(entities, FEATURES, engine="duckdb")
    assert [row.row for row in caught.value.rows] == bad
    assert caught.value.count == len(bad)
    assert not seen

    half = entities.set_column(0, "driver_id", pc.if_else(mask, 0.5, pa.repeat(1.0, count)))
    with pytest.raises(fs.InvalidRowsError) as caught:
        await trips_store.get_historical_features(half, FEATURES)
    assert caught.value.count == 2 * len(bad)
    shown = [(row.row, row.reason.split()[0]) for row in caught.value.rows]
    assert shown == sorted(shown)
    assert {row for row, _ in shown} <= set(bad)


def iso_times(kind: pa.DataType) -> pa.Table:
    return ASKED.set_column(1, "event_timestamp", pa.array(["2024-01-01T03:00:00Z"] * 3, kind))


async def test_what_cannot_be_asked_is_refused_before_history_is_read(
    trips_store: fs.FeatureStore, tmp_path: Path
):
    doubled = pa.Table.from_arrays([*ASKED.columns, ASKED.column(0)], [*ASKED.column_names, "x"])
    doubled = doubled.rename_columns(["driver_id", "event_timestamp", "driver_id"])
    text = ASKED.set_column(0, "driver_id", pa.array(["1", "2", "1"]))
    cases: list[tuple[Any, Any, dict[str, Any], type[fs.FeatureStoreError], str]] = [
        (ASKED.drop_columns(["driver_id"]), FEATURES, {}, fs.SchemaMismatchError, "'driver_id'"),
        (ASKED.rename_columns(["driver", "event_timestamp"]), FEATURES, {},
         fs.SchemaMismatchError, "Did you mean 'driver'"),
        (text, FEATURES, {}, fs.SchemaMismatchError, "string, which cannot become int64"),
        (doubled, FEATURES, {}, fs.SchemaMismatchError, "two columns named 'driver_id'"),
        (ASKED, ["driver_stats:trip"], {}, fs.NotFoundError, "Did you mean 'trips'"),
        (ASKED, ["driver_stat:trips"], {}, fs.NotFoundError, "Did you mean 'driver_stats'"),
        (ASKED, ["driver_stats:trips", VIEW.with_name("again")], {}, fs.DefinitionError,
         "full_feature_names"),
        (ASKED, "driver_stats", {}, fs.NotFoundError, r"but a view: write 'driver_stats:\*'"),
        (ASKED.append_column("trips", pa.array([1, 2, 3])), FEATURES, {}, fs.DefinitionError,
         "'trips', which is also the name of driver_stats:trips in the result"),
        (iso_times(pa.string()), FEATURES, {}, fs.SchemaMismatchError, "pandas.to_datetime"),
        (iso_times(pa.large_string()), FEATURES, {}, fs.SchemaMismatchError, "Parse the text"),
        (ASKED, FEATURES, {"timestamp_column": 3}, fs.DefinitionError, "timestamp_column"),
        (ASKED, FEATURES, {"engine": "duckbd"}, fs.DefinitionError, "'duckdb'"),
        (ASKED, FEATURES, {"memory_limit": "much"}, fs.DefinitionError, "'4GB'"),
        (ASKED, FEATURES, {"memory_limit": "1MB"}, fs.DefinitionError, "128 MiB are the least"),
        (ASKED, FEATURES, {"memory_limit": -1}, fs.DefinitionError, "128 MiB are the least"),
        (ASKED, FEATURES, {"memory_limit": True}, fs.DefinitionError, "'4GB'"),
        (ASKED, FEATURES, {"read_from": "files"}, fs.DefinitionError, "'history' or 'source'"),
        (ASKED, FEATURES, {"read_from": {"driver_stats": 1}}, fs.DefinitionError, "or 'source'"),
        (ASKED, FEATURES, {"read_from": {"driver_stat": "source"}}, fs.NotFoundError,
         "Did you mean 'driver_stats'"),
        (ASKED, FEATURES, {"read_from": "source"}, fs.DefinitionError, "has no source"),
        (ASKED.append_column("airport", pa.array(["jfk"] * 3)), [VIEW, weather()],
         {"read_from": {"weather": "source"}, "engine": "duckdb"},
         fs.DefinitionError, "'weather' has no source"),
        (ASKED, FEATURES, {"as_of": "yesterday"}, fs.DefinitionError, "no time and no mark"),
        (ASKED, FEATURES, {"as_of": 5}, fs.DefinitionError, "as_of"),
        (ASKED, FEATURES, {"as_of": dt.date(2024, 1, 1)}, fs.DefinitionError, "as_of"),
        (ASKED, FEATURES, {"known_by": "made"}, fs.DefinitionError, "'created_timestamp'"),
        (ASKED, FEATURES, {"known_by": True}, fs.DefinitionError, "'created_timestamp'"),
        (ASKED, FEATURES, {"progress": 3}, fs.DefinitionError, "progress"),
    ]  # fmt: skip
    with Cases() as told:
        for entities, features, options, error, words in cases:
            with told.case(features, options, words):
                async with statements(trips_store) as seen:
                    with pytest.raises(error, match=words) as caught:
                        await trips_store.get_historical_features(entities, features, **options)
                assert "\n" not in str(caught.value)
                assert not seen


async def test_rows_without_columns_are_not_taken_for_no_rows(trips_store: fs.FeatureStore):
    frame = ASKED.to_pandas()
    without = {
        "Arrow": ASKED.select([]),
        "a batch": ASKED.to_batches()[0].select([]),
        "a stream": ASKED.select([]).to_reader(),
        "pandas": frame[[]],
        "mappings": [{}, {}],
    }
    with Cases() as told:
        for name, entities in without.items():
            with told.case(name), pytest.raises(fs.SchemaMismatchError) as caught:
                await trips_store.get_historical_features(entities, FEATURES)
            assert "needs a column 'driver_id' (int64). It has no columns" in str(caught.value)
        nothing = {"mappings": [], "Arrow": ASKED.slice(0, 0), "pandas": frame[:0]}
        nothing |= {f"{name} without columns": table[:0] for name, table in without.items()
                    if name in ("Arrow", "pandas", "mappings")}  # fmt: skip
        for name, entities in nothing.items():
            with told.case(name):
                found = await trips_store.get_historical_features(entities, FEATURES)
                assert found.to_arrow().column_names == ["driver_id", "event_timestamp", "trips"]
                assert len(found) == 0


async def test_columns_that_are_in_the_index_of_a_frame_are_told_so(
    trips_store: fs.FeatureStore,
):
    frame = ASKED.to_pandas()
    label = frame.assign(label=[0, 1, 2])
    cases = [
        (frame.set_index(["driver_id", "event_timestamp"]), "'driver_id', 'event_timestamp'"),
        (label.set_index(["driver_id", "event_timestamp"]), "'driver_id', 'event_timestamp'"),
        (label.set_index("event_timestamp"), "'event_timestamp'"),
        (label.set_index(["label", "driver_id"]), "'driver_id'"),
    ]
    with Cases() as told:
        for entities, names in cases:
            words = (
                rf"needs a column '\w+', and the frame has {names} in its index.*reset_index\(\)"
            )
            with told.case(names), pytest.raises(fs.SchemaMismatchError, match=words):
                await trips_store.get_historical_features(entities, FEATURES)
            rows = await training(trips_store, entities.reset_index(), FEATURES)
            assert [row["trips"] for row in rows] == TRIPS
        both = frame.set_index("driver_id", drop=False)
        rows = await training(trips_store, both, FEATURES)
        assert [row["trips"] for row in rows] == TRIPS


async def test_mappings_have_the_columns_of_all_of_them(trips_store: fs.FeatureStore):
    rows = [
        {"event_timestamp": hour(3)},
        {"driver_id": 1, "event_timestamp": hour(2)},
        {"label": 1, "driver_id": 1, "event_timestamp": hour(1)},
    ]
    found = (await trips_store.get_historical_features(rows, FEATURES)).to_arrow()
    assert found.column_names == ["event_timestamp", "driver_id", "label", "trips"]
    assert found["label"].to_pylist() == [None, None, 1]
    assert found["trips"].to_pylist() == [None, 2, 1]
    for odd in ([1, 2], [{"driver_id": 1}, None], [["driver_id"]]):
        with pytest.raises(fs.SchemaMismatchError, match="entity table cannot be read"):
            await trips_store.get_historical_features(odd, FEATURES)


async def test_a_limit_of_memory_may_be_larger_than_any_machine(trips_store: fs.FeatureStore):
    for limit in ("9999 TB", 1 << 70):
        rows = await training(trips_store, ASKED, FEATURES, engine="duckdb", memory_limit=limit)
        assert [row["trips"] for row in rows] == TRIPS


async def test_a_progress_callback_that_fails_ends_the_call_and_no_more(
    trips_store: fs.FeatureStore,
):
    def fail(progress: fs.TrainingProgress) -> None:
        raise LookupError(progress.stage)

    for way in WAYS:
        with pytest.raises(LookupError):
            await asked(trips_store, ASKED, FEATURES, way, progress=fail)
        found = await asked(trips_store, ASKED, FEATURES, way)
        assert found.to_arrow()["trips"].to_pylist() == TRIPS


# --- paths ------------------------------------------------------------------------------------


async def test_paths_that_are_no_parquet_file_are_refused_by_name(
    trips_store: fs.FeatureStore, tmp_path: Path
):
    write_parquet(tmp_path / "good.parquet", ASKED)
    write_bytes(tmp_path / "empty.parquet", b"")
    write_bytes(tmp_path / "text.parquet", b"driver_id,event_timestamp\n1,2024-01-01\n" * 10)
    write_bytes(tmp_path / "labels.csv", b"driver_id,event_timestamp\n1,2024-01-01\n" * 10)
    whole = write_parquet(tmp_path / "whole.parquet", ASKED)
    write_bytes(tmp_path / "half.parquet", read_bytes(whole)[:-20])
    cases = {
        "": "empty text",
        "  ": "empty text",
        str(tmp_path): "is a folder.*pyarrow.dataset",
        str(tmp_path / "*.parquet"): r"\*.parquet: the .* not a pattern of them.*pyarrow.dataset",
        str(tmp_path / "labels.csv"): "labels.csv cannot be read as Parquet.*is CSV.*Polars first",
        str(tmp_path / "missing.parquet"): "missing.parquet: there is no such Parquet file",
        str(tmp_path / "empty.parquet"): "empty.parquet cannot be read as Parquet",
        str(tmp_path / "text.parquet"): "text.parquet cannot be read as Parquet",
        str(tmp_path / "half.parquet"): "half.parquet cannot be read as Parquet",
    }
    with Cases() as told:
        for path, words in cases.items():
            with told.case(path), pytest.raises(fs.SourceError, match=words):
                await trips_store.get_historical_features(path, FEATURES)
    good = tmp_path / "good.parquet"
    for several in ([good, str(good)], (good,)):
        with pytest.raises(fs.SourceError, match=r"one Parquet file, not a list.*pyarrow\.dataset"):
            await trips_store.get_historical_features(several, FEATURES)
    rows = await training(trips_store, str(good), FEATURES)
    assert [row["trips"] for row in rows] == TRIPS


async def test_a_path_that_begins_as_a_query_does_is_a_path(
    trips_store: fs.FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("values.parquet", "table-1.parquet", "with/it.parquet", "select.parquet"):
        write_parquet(tmp_path / name, ASKED)
        rows = await training(trips_store, name, FEATURES)
        assert [row["trips"] for row in rows] == TRIPS, name


# --- queries ----------------------------------------------------------------------------------


def history(store: fs.FeatureStore) -> str:
    return f"{store.project}__driver_stats__history"


def literal(store: fs.FeatureStore, moment: dt.datetime) -> str:
    """A time in a query of the store's database."""
    if store.engine.dialect.name == "sqlite":
        return str(int(moment.timestamp()) * 1_000_000)
    return f"timestamptz '{moment.isoformat()}'"


def selected(store: fs.FeatureStore) -> str:
    return f"SELECT 1 AS driver_id, {literal(store, hour(3))} AS event_timestamp"


async def test_queries_may_be_written_as_people_write_them(trips_store: fs.FeatureStore):
    one = selected(trips_store)
    texts = [
        f"{one};",
        f"{one} ; \n",
        f"  \n{one}",
        f"{one} -- that one",
        f"{one}; -- that one",
        f"-- the drivers; of today\n{one}",
        f"/* the drivers\n of today */ {one} /* all */",
        f"{one}\n-- and no more\n",
        f"WITH wanted AS ({one}) SELECT * FROM wanted",
        f"SELECT * FROM ({one}) x WHERE 'a;--b' <> 'it''s'",
        f"select*from ({one}) x",
    ]
    with Cases() as told:
        for text in texts:
            with told.case(text):
                rows = await training(trips_store, text, FEATURES)
                assert [row["trips"] for row in rows] == [3]


async def test_queries_that_are_wrong_are_the_users_to_mend(trips_store: fs.FeatureStore):
    one = selected(trips_store)
    wrong = {
        "SELECT * FORM drivers": "refuses the query of the entity table",
        "SELECT * FROM no_such_table": "no_such_table",
        "SELECT no_such_column": "no_such_column",
        "SELECT (1": "refuses the query of the entity table",
        f"{one}; {one}": "refuses the query of the entity table",
        f"{one}; DELETE FROM {history(trips_store)}": "refuses the query of the entity table",
    }
    with Cases() as told:
        for text, words in wrong.items():
            with told.case(text), pytest.raises(fs.DefinitionError, match=words) as caught:
                await trips_store.get_historical_features(text, FEATURES)
            assert "apply" not in str(caught.value)
            assert caught.value.__cause__ is not None
        for text, words in {
            "SELECT 1 AS driver_id": "'event_timestamp'",
            f"SELECT 1 AS driver, {literal(trips_store, hour(1))} AS event_timestamp": "driver_id",
            "SELECT 1 AS driver_id, 'soon' AS event_timestamp": "event_timestamp",
            "SELECT 'x' AS driver_id, '2024-01-01' AS event_timestamp": "driver_id",
        }.items():
            with told.case(text), pytest.raises(fs.SchemaMismatchError, match=words):
                await trips_store.get_historical_features(text, FEATURES)
    if trips_store.engine.dialect.name == "postgresql":  # SQLite calls the second one "x:1"
        doubled = f"SELECT 1 AS x, 2 AS x, y.* FROM ({one}) y"
        with pytest.raises(fs.SchemaMismatchError, match="two columns named 'x'"):
            await trips_store.get_historical_features(doubled, FEATURES)
    rows = await training(trips_store, one, FEATURES)
    assert [row["trips"] for row in rows] == [3]


async def test_json_of_a_query_comes_as_its_text(trips_store: fs.FeatureStore):
    one = selected(trips_store)
    text = """{"b": 1.10, "a": [1, 12345678901234567890, null]}"""
    if trips_store.engine.dialect.name == "sqlite":
        columns = f"'{text}' AS j, '[1]' AS l, NULL AS n"
        wanted: list[Any] = [text, "[1]", None]
    else:
        columns = (
            f"""'{text}'::jsonb AS j, '[1, {{}}]'::json AS "L '"""
            + '""'
            + """ x", NULL::json AS n,
            ARRAY['{"a": 1}'::jsonb, NULL] AS many"""
        )
        wanted = ['{"a": [1, 12345678901234567890, null], "b": 1.10}', "[1, {}]", None,
                  ['{"a": 1}', None]]  # fmt: skip
    for query in (
        f"SELECT q.*, {columns} FROM ({one}) q",
        f"SELECT q.*, {columns} FROM ({one}) q ; -- the payload; of all",
    ):
        found = (await trips_store.get_historical_features(query, FEATURES)).to_arrow()
        assert [column[0].as_py() for column in found.columns[2:-1]] == wanted
        assert found["trips"].to_pylist() == [3]
        if trips_store.engine.dialect.name != "sqlite":
            assert {found["j"].type, found["n"].type} == {pa.string()}


async def test_json_of_many_rows_keeps_their_order(trips_store: fs.FeatureStore):
    if trips_store.engine.dialect.name == "sqlite":
        return
    query = (
        f"SELECT q.*, n, to_jsonb(n) AS j FROM ({selected(trips_store)}) q, "
        f"generate_series(1, 40000) n ORDER BY n % 7, n DESC"
    )
    found = (await trips_store.get_historical_features(query, FEATURES)).to_arrow()
    numbers = found["n"].to_pylist()
    assert numbers == sorted(range(1, 40_001), key=lambda n: (n % 7, -n))
    assert found["j"].to_pylist() == [str(n) for n in numbers]


async def test_values_that_no_table_holds_are_to_be_cast(trips_store: fs.FeatureStore):
    one = selected(trips_store)
    if trips_store.engine.dialect.name == "postgresql":
        values = {
            "inet '10.0.0.1'": "10.0.0.1/32",
            "cidr '10.0.0.0/8'": "10.0.0.0/8",
            "int4range(1, 5)": "[1,5)",
            "'NaN'::numeric": "NaN",
        }
        for value, text in values.items():
            query = f"SELECT q.*, {value} AS v FROM ({one}) q"
            with pytest.raises(fs.SchemaMismatchError, match=r"'v' .*CAST\(… AS text\) AS v"):
                await trips_store.get_historical_features(query, FEATURES)
            query = f"SELECT q.*, CAST({value} AS text) AS v FROM ({one}) q"
            rows = await training(trips_store, query, FEATURES)
            assert [row["v"] for row in rows] == [text]
        return
    mixed = f"SELECT q.*, {{}} AS v FROM ({one}) q, (SELECT 1 AS w UNION ALL SELECT 'a')"
    with pytest.raises(fs.SchemaMismatchError, match=r"'v' .*CAST\(… AS text\) AS v"):
        await trips_store.get_historical_features(mixed.format("w"), FEATURES)
    rows = await training(trips_store, mixed.format("CAST(w AS text)"), FEATURES)
    assert [row["v"] for row in rows] == ["1", "a"]


async def test_queries_that_write_are_refused_and_change_nothing(trips_store: fs.FeatureStore):
    table, one = history(trips_store), selected(trips_store)
    writing = [
        f"WITH gone AS (DELETE FROM {table} RETURNING *) SELECT * FROM gone",
        f"WITH x AS ({one}) DELETE FROM {table} RETURNING *",
        f"WITH x AS ({one}) UPDATE {table} SET trips = 9 RETURNING *",
        f"SELECT * INTO TABLE stolen FROM ({one}) x",
    ]
    with Cases() as told:
        for text in writing:
            with told.case(text), pytest.raises(fs.DefinitionError, match="entity table"):
                await trips_store.get_historical_features(text, FEATURES)
    assert await trips_store.repository("driver_stats").count() == 4
    # The connection that it ran on writes again.
    for _ in range(3):
        await trips_store.push("driver_stats", [stats(7, hour(1))])


async def test_a_query_of_the_stores_own_history(trips_store: fs.FeatureStore):
    columns = f"driver_id, {EVENT} AS event_timestamp"
    text = f"SELECT {columns} FROM {history(trips_store)} ORDER BY trips DESC"
    for way in WAYS:
        found = (await asked(trips_store, text, FEATURES, way)).to_arrow()
        assert found["trips"].to_pylist() == [3, 2, 1, 0], way
        assert found["event_timestamp"].to_pylist() == [hour(n) for n in (3, 2, 1, 0)]
    empty = await trips_store.get_historical_features(
        f"SELECT {columns} FROM {history(trips_store)} WHERE trips > 9", FEATURES
    )
    assert empty.to_arrow().column_names == ["driver_id", "event_timestamp", "trips"]
    assert len(empty) == 0


async def test_a_query_of_more_rows_than_are_fetched_at_a_time(trips_store: fs.FeatureStore):
    """Types that only a later chunk tells, and nulls before it."""
    text = (
        f"WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 49999) "
        f"SELECT n % 3 AS driver_id, {literal(trips_store, hour(1))} AS event_timestamp, "
        f"CASE WHEN n > 40000 THEN n END AS late, "
        f"CASE WHEN n > 40000 THEN n / 2.0 ELSE n END AS number FROM n ORDER BY n"
    )
    for way in WAYS:
        found = (await asked(trips_store, text, FEATURES, way)).to_arrow()
        assert found.num_rows == 50_000
        assert found["driver_id"].to_pylist()[:4] == [0, 1, 2, 0]
        trips = found["trips"]
        assert trips.null_count == 50_000 - 16_667, way
        assert found["late"].null_count == 40_001
        assert float(found["number"][49_999].as_py()) == 24_999.5


KINDS: dict[str, tuple[fs.FeatureType, list[Any], list[str], list[str]]] = {
    "truth": (fs.Bool, [True, False], ["1", "0"], ["true", "false"]),
    "small": (fs.Int32, [-5, 7], ["-5", "7"], ["-5::int4", "7::int8"]),
    "large": (fs.Int64, [2**53 + 1, -1], [str(2**53 + 1), "-1"], [str(2**53 + 1), "-1"]),
    "words": (fs.String, ["it's", "é"], ["'it''s'", "'é'"], ["'it''s'", "'é'::varchar"]),
    "day": (
        fs.Date,
        [dt.date(2024, 2, 29), dt.date(1969, 12, 31)],
        ["'2024-02-29'", "'1969-12-31'"],
        ["date '2024-02-29'", "date '1969-12-31'"],
    ),
    "moment": (
        fs.Timestamp,
        [hour(0), hour(0) + dt.timedelta(microseconds=1)],
        ["'2024-01-01 00:00:00'", "'2024-01-01T00:00:00.000001'"],
        ["timestamptz '2024-01-01 01:00:00+01'", "timestamp '2024-01-01 00:00:00.000001'"],
    ),
    "price": (
        fs.Decimal(20, 4),
        [Number("1.5000"), Number("-0.0001")],
        ["'1.5'", "'-0.0001'"],
        ["1.5::numeric", "-0.0001::numeric(20,4)"],
    ),
}


@pytest.mark.parametrize("name", KINDS)
async def test_keys_of_a_query_are_their_types(store: fs.FeatureStore, name: str):
    kind, values, sqlite, postgresql = KINDS[name]
    view = fs.FeatureView(
        "keyed",
        entities=[fs.Entity("key", join_keys={"id": kind})],
        fields=[fs.Field("number", fs.Int64)],
        timestamp_field="at",
    )
    await store.apply([view])
    await store.push(view, [{"id": v, "at": hour(0), "number": n} for n, v in enumerate(values)])
    texts = sqlite if store.engine.dialect.name == "sqlite" else postgresql
    for position, text in enumerate(texts):
        query = f"SELECT {text} AS id, {literal(store, hour(1))} AS event_timestamp"
        rows = await training(store, query, [view])
        assert [row["number"] for row in rows] == [position], text
    for empty in (f"SELECT NULL AS id, {literal(store, hour(1))} AS event_timestamp",):
        if store.engine.dialect.name == "sqlite":
            assert [row["number"] for row in await training(store, empty, [view])] == [None]


async def test_times_of_a_query_as_each_database_has_them(trips_store: fs.FeatureStore):
    wanted = {hour(1.5): 1, hour(0): 0, hour(-1): None}
    with Cases() as told:
        for moment, trips in wanted.items():
            naive = moment.replace(tzinfo=None)
            if trips_store.engine.dialect.name == "sqlite":
                texts = [
                    str(int(moment.timestamp()) * 1_000_000),
                    f"'{naive.isoformat()}'",
                    f"'{naive.isoformat(sep=' ')}'",
                    f"'{moment.isoformat()}'",
                    f"'{naive.isoformat()}Z'",
                    f"datetime('{naive.isoformat()}')",
                ]
            else:
                texts = [f"timestamptz '{moment.isoformat()}'", f"timestamp '{naive.isoformat()}'"]
            for text in texts:
                with told.case(text):
                    query = f"SELECT 1 AS driver_id, {text} AS event_timestamp"
                    rows = await training(trips_store, query, FEATURES)
                    assert [row["trips"] for row in rows] == [trips]


# --- packages that are missing ----------------------------------------------------------------

WITHOUT = """
import asyncio, importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

def hidden(finder):
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in {missing!r} else finder(name, path, target)
    return find_spec

for finder in sys.meta_path:
    finder.find_spec = hidden(finder.find_spec)

import featurestore as fs

async def main():
    view = fs.FeatureView(
        "stats", entities=[fs.Entity("driver", join_keys={{"driver_id": fs.Int64}})],
        fields=[fs.Field("trips", fs.Int32)], timestamp_field="at",
        source=fs.ParquetSource("none.parquet"),
    )
    rows = [{{"driver_id": 1, "event_timestamp": "2024-01-01T00:00:00Z"}}]
    import pyarrow as pa
    rows = pa.table({{"driver_id": [1], "event_timestamp": pa.array([0], pa.timestamp("us"))}})
    async with fs.FeatureStore({url!r}, project={project!r}) as store:
        await store.apply([view])
        asked = [{{"engine": "duckdb"}}, {{"read_from": "source"}}, {{"engine": "daft"}}, {{}}]
        for options in asked:
            try:
                found = await store.get_historical_features(rows, [view], **options)
            except fs.FeatureStoreError as error:
                print(type(error).__name__, error)
            else:
                print(found.explain().engine, len(found))

asyncio.run(main())
"""


async def test_an_engine_that_is_not_installed_says_which_extra_brings_it(
    store: fs.FeatureStore, database_url: str
):
    await store.apply([VIEW])
    program = WITHOUT.format(
        missing=("duckdb", "daft", "adbc_driver_postgresql"),
        url=database_url,
        project=f"{store.project}_without",
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    duckdb, source, daft, auto = done.stdout.splitlines()
    assert duckdb.startswith(
        "DefinitionError engine='duckdb' needs the package duckdb: pip install"
    )
    assert "'featurestore[duckdb]'" in duckdb
    assert source.startswith("DefinitionError read_from='source' needs the package duckdb")
    assert "'featurestore[duckdb]'" in source
    assert "'featurestore[distributed]'" in daft
    assert auto == "sql 1"


async def test_duckdb_does_without_numpy(store: fs.FeatureStore, database_url: str):
    await store.apply([VIEW])
    program = WITHOUT.format(
        missing=("numpy",), url=database_url, project=f"{store.project}_without"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "duckdb 1"


# --- inside of a transaction ------------------------------------------------------------------


async def test_every_engine_sees_what_the_transaction_has_written(trips_store: fs.FeatureStore):
    async with trips_store.transaction() as tx:
        await tx.push(VIEW, [stats(2, hour(2), 0.5, 42)])
        for way in WAYS:
            found = await asked(tx, ASKED, FEATURES, way)
            assert found.to_arrow()["trips"].to_pylist() == [3, 42, 1], way
    rows = await training(trips_store, ASKED, FEATURES)
    assert [row["trips"] for row in rows] == [3, 42, 1]


async def test_a_transaction_goes_on_after_a_training_set_that_failed(
    trips_store: fs.FeatureStore,
):
    def fail(progress: fs.TrainingProgress) -> None:
        raise LookupError(progress.stage)

    async with trips_store.transaction() as tx:
        await tx.push(VIEW, [stats(2, hour(2), 0.5, 42)])
        for text in (
            "SELECT * FORM drivers",
            "SELECT no_such_column",
            f"WITH x AS (DELETE FROM {history(trips_store)} RETURNING *) SELECT * FROM x",
            "SELECT 1 AS driver_id",
        ):
            with pytest.raises(fs.FeatureStoreError):
                await tx.get_historical_features(text, FEATURES)
        for way in WAYS:
            with pytest.raises(LookupError):
                await asked(tx, ASKED, FEATURES, way, progress=fail)
            with pytest.raises(fs.FeatureStoreError):
                await asked(tx, ASKED, ["driver_stats:nothing"], way)
        await tx.push(VIEW, [stats(3, hour(2), 0.5, 43)])
        wanted = entity_rows((2, hour(3)), (3, hour(3)))
        rows = await training(tx, wanted, FEATURES)
        assert [row["trips"] for row in rows] == [42, 43]
    assert await trips_store.repository("driver_stats").count() == 6


async def test_a_query_beside_writes_of_one_transaction(trips_store: fs.FeatureStore):
    """None of them is lost, and none is refused for the query's being read only."""
    async with trips_store.transaction() as tx:
        for turn in range(5):
            await asyncio.gather(
                *(tx.push(VIEW, [stats(10 + n, hour(turn))]) for n in range(3)),
                training(tx, selected(trips_store), FEATURES),
                *(tx.push(VIEW, [stats(20 + n, hour(turn))]) for n in range(3)),
            )
    assert await trips_store.repository("driver_stats").count() == 4 + 30


# --- the loop ---------------------------------------------------------------------------------


async def test_large_and_wide_entity_tables_do_not_hold_up_the_loop(
    trips_store: fs.FeatureStore,
):
    """Each test is guarded. Nor do thousands of keys that go into a statement one by one."""
    await trips_store.ingest(
        VIEW, table_of(VIEW, [stats(n, hour(0), 0.5, n) for n in range(2_000)]), force=True
    )
    wide = {f"extra_{n}": pa.nulls(20_000, pa.int8()) for n in range(500)}
    keys = pa.array([n % 2_000 for n in range(20_000)])
    times = pa.repeat(pa.scalar(hour(1), fs.Timestamp.arrow), 20_000)
    for way in WAYS:
        entities = pa.table({"driver_id": keys, "event_timestamp": times, **wide})
        found = await asked(trips_store, entities, FEATURES, way)
        assert found.to_arrow()["trips"].null_count == 0


async def test_entity_tables_of_thousands_of_chunks_do_not_hold_up_the_loop(
    trips_store: fs.FeatureStore,
):
    """Even to find how many bytes these have takes long: it is once too often on the loop."""
    extra = {f"extra_{n}": pa.array([n], pa.int8()) for n in range(20)}
    one = pa.table({"driver_id": [1], "event_timestamp": [hour(1)], **extra})
    entities = pa.concat_tables([one] * 1_500)
    assert one.nbytes * 1_500 <= FEW_BYTES, "few rows, but for their chunks"
    for way in WAYS:
        found = await asked(trips_store, entities, FEATURES, way)
        assert found.to_arrow()["trips"].unique().to_pylist() == [1], way


async def test_thousands_of_composite_keys_do_not_hold_up_the_loop(store: fs.FeatureStore):
    keys: dict[str, fs.FeatureType] = {"word": fs.String, "number": fs.Int64, "day": fs.Date}
    view = fs.FeatureView(
        "composite",
        entities=[fs.Entity("key", join_keys=keys)],
        fields=[fs.Field("value", fs.Int64)],
        timestamp_field="event_timestamp",
    )
    await store.apply([view])
    numbers = pa.arange(0, FEW_KEYS)
    entities = pa.table(
        {
            "word": numbers.cast(pa.string()),
            "number": numbers,
            "day": numbers.cast(pa.int32()).cast(pa.date32()),
            "event_timestamp": pa.repeat(pa.scalar(hour(1), fs.Timestamp.arrow), FEW_KEYS),
        }
    )
    await store.ingest(view, entities.append_column("value", numbers))
    for way in ("sql", "duckdb in memory", "duckdb on disk"):
        found = await asked(store, entities, [view], way)
        assert found.to_arrow()["value"].equals(pa.chunked_array([numbers])), way
