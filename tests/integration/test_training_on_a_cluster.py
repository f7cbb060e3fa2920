"""engine="daft" from beginning to end: the same set as the database gives, and what it refuses."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

T0 = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
DRIVER = fs.Entity("driver", join_keys={"driver_id": fs.Int64})
TRIPS = fs.FeatureView(
    "trips",
    entities=[DRIVER],
    fields=[fs.Field("count", fs.Int64), fs.Field("note", fs.String)],
    timestamp_field="at",
    created_timestamp_field="made",
    ttl=dt.timedelta(hours=3),
)


def hour(number: float) -> dt.datetime:
    return T0 + dt.timedelta(hours=number)


def row(driver: int, at: float, count: int, made: float | None = None) -> dict[str, object]:
    created = hour(at if made is None else made)
    note = f"{driver}/{count}"
    return {"driver_id": driver, "at": hour(at), "made": created, "count": count, "note": note}


ASKED = pa.table(
    {
        "driver_id": [2, 1, 1, None, 3, 1],
        "event_timestamp": pa.array([hour(n) for n in (1, 5, 2, 1, 1, 0)], fs.Timestamp.arrow),
        "label": ["a", "b", "c", "d", "e", "f"],
    }
)


async def test_a_set_from_copies_is_the_one_of_the_database(tmp_path: Path):
    async with fs.FeatureStore(f"sqlite:///{tmp_path / 'x.db'}") as store:
        await store.apply([TRIPS])
        # The newest of driver 1 at hour 2 was made at hour 4: by then another one was known.
        rows = [row(1, 0, 1), row(1, 1, 2, made=4), row(2, 1, 3), row(2, 1, 4), row(1, 0.5, 5)]
        await store.push(TRIPS, rows)
        await store.export_history(TRIPS, tmp_path / "trips")
        await store.push(TRIPS, [row(1, 1.5, 9)])  # which the copy does not have

        found = await store.get_historical_features(
            ASKED, [TRIPS], engine="daft", known_by="created_timestamp"
        )
        assert found.explain().engine == "daft"
        assert "as of" in found.explain().reason
        assert found.to_arrow()["count"].to_pylist() == [4, None, 5, None, None, 1]
        mark = found.manifest.mark
        for engine in ("sql", "duckdb"):
            other = await store.get_historical_features(
                ASKED, [TRIPS], engine=engine, known_by="created_timestamp", as_of=mark
            )
            assert other.to_arrow().equals(found.to_arrow())
            assert other.leaked == found.leaked == {"trips": 1}
            assert other.match_rate == found.match_rate
        again = await store.replay(found.manifest)
        assert again.to_arrow().equals(found.to_arrow())
        left = await asyncio.to_thread(os.listdir, tmp_path)
        assert [name for name in left if name.startswith("_training")] == []

        with pytest.raises(fs.DefinitionError, match="export_history"):
            await store.get_historical_features(
                ASKED, [TRIPS], engine="daft", as_of=await store.mark()
            )
        await store.repository(TRIPS).delete(driver_id=2)
        with pytest.raises(fs.NotFoundError, match="export_history"):
            await store.get_historical_features(ASKED, [TRIPS], engine="daft")


async def test_a_copy_without_the_later_steps_of_a_load_is_refused(tmp_path: Path):
    class StopError(Exception):
        pass

    def stop(now: fs.Progress) -> None:
        if now.rows_done >= 20:
            raise StopError

    def write() -> None:
        rows = pa.Table.from_pylist([row(1, 0, number) for number in range(40)])
        pq.write_table(rows, tmp_path / "trips.parquet", row_group_size=2)

    await asyncio.to_thread(write)
    async with fs.FeatureStore(f"sqlite:///{tmp_path / 'x.db'}") as store:
        await store.apply([TRIPS])
        with pytest.raises(StopError):
            await store.ingest(TRIPS, tmp_path / "trips.parquet", commit_every=10, progress=stop)
        await store.push(TRIPS, [row(2, 0, 1)])
        exported = await store.export_history(TRIPS, tmp_path / "trips")
        await store.ingest(TRIPS, tmp_path / "trips.parquet", commit_every=10)
        later = await store.mark()
        assert later.arrival == fs.Mark.parse(exported.mark).arrival
        with pytest.raises(fs.DefinitionError, match="older than what is asked for"):
            await store.get_historical_features(ASKED, [TRIPS], engine="daft", as_of=later)


async def test_what_it_cannot_do_it_refuses_before_it_begins(tmp_path: Path):
    async with fs.FeatureStore(f"sqlite:///{tmp_path / 'x.db'}") as store:
        await store.apply([TRIPS])
        with pytest.raises(fs.NotFoundError, match="export_history"):
            await store.get_historical_features(ASKED, [TRIPS], engine="daft")
        await store.export_history(TRIPS, tmp_path / "trips")
        async with store.transaction() as tx:
            await tx.push(TRIPS, [row(1, 0, 1)])
            with pytest.raises(fs.DefinitionError, match="transaction"):
                await tx.get_historical_features(ASKED, [TRIPS], engine="daft")
        sourced = replace(TRIPS, source=fs.ParquetSource("trips.parquet"))
        await store.apply([sourced])
        with pytest.raises(fs.DefinitionError, match="read_from"):
            await store.get_historical_features(
                ASKED, [TRIPS], engine="daft", read_from={"trips": "source"}
            )
    assert "daft" not in sys.modules
