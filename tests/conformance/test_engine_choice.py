"""engine="auto": which engine is taken, and what is told of it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from builders import driver_stats, entity_rows, hour, parquet, stats, table_of

import featurestore as fs

VIEW = driver_stats()


@pytest.fixture
async def filled(store: fs.FeatureStore) -> fs.FeatureStore:
    """5,000 drivers with a row each."""
    await store.apply([VIEW])
    await store.ingest(VIEW, table_of(VIEW, [stats(n, hour(0), 0.5, n) for n in range(5_000)]))
    return store


def many(count: int, drivers: int = 5_000) -> pa.Table:
    """Entity rows of so many drivers, in turn."""
    numbers = pa.arange(0, count)
    ids = pc.subtract(numbers, pc.multiply(pc.divide(numbers, drivers), drivers))
    times = pa.repeat(pa.scalar(hour(1), fs.Timestamp.arrow), count)
    return pa.table({"driver_id": ids, "event_timestamp": times})


async def test_few_rows_are_looked_up_in_the_database(filled: fs.FeatureStore):
    plan = (await filled.get_historical_features(many(100), [VIEW])).explain()
    assert (plan.engine, plan.estimates, plan.reads) == ("sql", {}, ())
    assert plan.rows == 100
    assert str(plan).startswith("engine sql: ")


async def test_the_cheaper_engine_is_taken_and_both_estimates_are_told(filled: fs.FeatureStore):
    plan = (await filled.get_historical_features(many(200_000), [VIEW])).explain()
    assert plan.engine == "duckdb"
    assert plan.estimates["duckdb"] < plan.estimates["sql"]
    assert [(read.view, read.rows) for read in plan.reads] == [("driver_stats", 5_000)]
    assert "5,000 rows of driver_stats" in plan.reason
    told = str(plan)
    assert "estimated at" in told
    assert "5,000 rows of history read" in told

    plan = (await filled.get_historical_features(many(6_000), [VIEW])).explain()
    assert plan.engine == "sql"
    assert plan.estimates["sql"] < plan.estimates["duckdb"]


async def test_the_entities_keys_and_times_bound_what_is_brought_out(filled: fs.FeatureStore):
    later = [stats(n, hour(10), 0.5, n) for n in range(5_000)]
    await filled.ingest(VIEW, table_of(VIEW, later))
    found = await filled.get_historical_features(many(20_000, drivers=50), [VIEW], engine="duckdb")
    assert [read.rows for read in found.explain().reads] == [50]
    assert found.match_rate == {"driver_stats": 1.0}


async def test_a_transaction_reads_where_it_has_written(filled: fs.FeatureStore):
    async with filled.transaction() as tx:
        await tx.push(VIEW, [stats(1, hour(0.5), 0.75, 77)])
        found = await tx.get_historical_features(many(20_000), [VIEW])
    assert found.explain().engine == "sql"
    assert found.to_arrow()["trips"][1].as_py() == 77


async def test_files_are_joined_by_the_engine_that_can(filled: fs.FeatureStore, tmp_path: Path):
    parquet(tmp_path, VIEW, [stats(1, hour(0), 0.25, 5)], "rows.parquet")
    view = driver_stats(source=fs.ParquetSource(str(tmp_path / "*.parquet")))
    await filled.apply([view])
    asked = entity_rows((1, hour(1)))
    found = await filled.get_historical_features(asked, [view], read_from="source")
    assert found.explain().engine == "duckdb"
    assert found.to_arrow()["trips"].to_pylist() == [5]
    mixed = await filled.get_historical_features(
        asked, [view], read_from={"driver_stats": "history"}
    )
    assert mixed.to_arrow()["trips"].to_pylist() == [1]
    with pytest.raises(fs.DefinitionError, match="duckdb"):
        await filled.get_historical_features(asked, [view], engine="sql", read_from="source")


async def test_an_engine_that_is_asked_for_is_taken(filled: fs.FeatureStore):
    for engine in ("sql", "duckdb"):
        found = await filled.get_historical_features(many(10), [VIEW], engine=engine)
        assert (found.explain().engine, found.explain().reason) == (engine, "it was asked for")


async def test_progress_tells_of_history_and_rows(filled: fs.FeatureStore):
    told: list[fs.TrainingProgress] = []
    await filled.get_historical_features(
        many(150_000), [VIEW], engine="duckdb", progress=told.append
    )
    assert {(one.stage, one.view) for one in told} == {("history", VIEW.name), ("rows", None)}
    assert told[-1] == fs.TrainingProgress("rows", 150_000, 150_000)
