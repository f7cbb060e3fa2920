"""Marks on PostgreSQL while others write: what is committed later is never seen by them, and what
a server that was copied to another knows of its transactions does not matter there."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

import featurestore as fs
from featurestore.storage.engine import Database
from featurestore.testing import PostgresServer

ROOT = Path(__file__).resolve().parents[2]
T0 = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
KEYS = range(20)
VIEW = fs.FeatureView(
    "driver_stats",
    entities=[fs.Entity("driver", join_keys={"driver_id": fs.Int64})],
    fields=[fs.Field("trips", fs.Int64)],
    timestamp_field="at",
)
ASKED = pa.table({"driver_id": list(KEYS), "event_timestamp": [T0] * len(KEYS)})


@pytest.fixture
def url(featurestore_postgres: PostgresServer, featurestore_template: str) -> Iterator[str]:
    name = f"marks_{uuid4().hex[:16]}"
    featurestore_postgres.create_database(name, featurestore_template)
    yield featurestore_postgres.url(name)
    featurestore_postgres.drop_database(name)


@pytest.fixture
async def store(url: str) -> AsyncIterator[fs.FeatureStore]:
    async with fs.FeatureStore(url) as store:
        await store.apply([VIEW])
        yield store


def rows(driver: int, trips: int) -> list[dict[str, Any]]:
    """All of one time: the last to arrive wins, so that any row too much shows."""
    return [{"driver_id": driver, "at": T0, "trips": trips}]


async def known(store: Any, as_of: Any = None, **options: Any) -> list[Any]:
    found = await store.get_historical_features(ASKED, [VIEW], as_of=as_of, **options)
    return list(found.to_arrow()["trips"].to_pylist())


async def execute(url: str, statement: str) -> Any:
    database = Database(url, None)
    try:
        async with database.transaction() as session:
            return await session.execute(sa.text(statement))
    finally:
        await database.close()


async def test_loads_committed_after_later_ones_are_not_seen(store: fs.FeatureStore, url: str):
    async with fs.FeatureStore(url) as other:
        await store.push(VIEW, rows(1, 10))
        async with store.transaction() as tx:
            early = (await tx.push(VIEW, rows(1, 11))).load_id
            late = (await other.push(VIEW, rows(2, 20))).load_id
            assert early < late
            mark = await other.mark()
            made = await other.get_historical_features(ASKED, [VIEW])
            assert await known(other, mark) == made.to_arrow()["trips"].to_pylist()
            assert mark.arrival >> 20 >= late
        assert (await known(other))[1] == 11
        for engine in ("sql", "duckdb"):
            assert (await known(other, mark, engine=engine))[1:3] == [10, 20]
            again = await other.replay(made.manifest, engine=engine)
            assert again.to_arrow().equals(made.to_arrow())
        # Undone, it is no loss to the mark, which has not seen it.
        await other.undo_load(early)
        again = await other.get_historical_features(ASKED, [VIEW], as_of=mark)
        assert again.warnings == ()


class StopError(Exception):
    """Rolls a transaction back."""


async def _transaction(store: fs.FeatureStore, chance: random.Random) -> None:
    async with store.transaction() as tx:
        for _ in range(chance.randint(1, 3)):
            await tx.push(VIEW, rows(chance.choice(KEYS), chance.getrandbits(30)))
            await asyncio.sleep(chance.random() / 50)
        if chance.random() < 0.3:
            raise StopError


async def _writer(store: fs.FeatureStore, folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    for number in range(12):
        match chance.randint(0, 3):
            case 0 | 1:
                some = [store.push(VIEW, rows(chance.choice(KEYS), seed)) for _ in range(3)]
                await asyncio.gather(*some)  # gathered into one statement
            case 2:
                try:
                    await _transaction(store, chance)
                except StopError:
                    continue
            case 3:
                path = folder / f"{seed}-{number}.parquet"
                await asyncio.to_thread(_write, path, chance)
                await store.ingest(VIEW, path, commit_every=7)


def _write(path: Path, chance: random.Random) -> None:
    drivers = [chance.choice(KEYS) for _ in range(40)]
    trips = [chance.getrandbits(30) for _ in drivers]
    pq.write_table(
        pa.table({"driver_id": drivers, "at": [T0] * 40, "trips": trips}), path, row_group_size=7
    )


async def test_sets_made_while_others_write_are_replayed_exactly(
    store: fs.FeatureStore, url: str, tmp_path: Path
):
    # Transactions that bring keys online in any order would get into each other's way.
    await store.apply([replace(VIEW, online=False)])
    async with fs.FeatureStore(url) as other, fs.FeatureStore(url) as third:
        writers = [
            asyncio.create_task(_writer(one, tmp_path, seed))
            for seed, one in enumerate([store, other, store, other])
        ]
        made, marks = [], []
        while not all(writer.done() for writer in writers):
            made.append(await third.get_historical_features(ASKED, [VIEW]))
            mark = await third.mark()
            marks.append((mark, await known(third, mark)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*writers)
        assert len({tuple(trips) for _, trips in marks}) > 3  # they did write meanwhile
        for one in made[:: max(1, len(made) // 20)]:
            again = await third.replay(one.manifest)
            assert again.to_arrow().equals(one.to_arrow())
        for mark, trips in marks[:: max(1, len(marks) // 20)]:
            assert await known(third, str(mark)) == trips


# --- databases with a past --------------------------------------------------------------------


def alembic(url: str, *arguments: str) -> None:
    environment = {**os.environ, "FEATURESTORE_URL": url}
    command = [sys.executable, "-m", "alembic", *arguments]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)


@pytest.fixture(params=["sqlite", "postgresql"])
def old_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'old.db'}"
    return str(request.getfixturevalue("url"))


async def test_loads_from_before_marks_were_kept_are_there_for_all_of_them(old_url: str):
    url = old_url
    async with fs.FeatureStore(url) as store:
        await store.apply([VIEW])
        old = (await store.push(VIEW, rows(1, 10))).load_id
    await asyncio.to_thread(alembic, url, "downgrade", "0003")
    async with fs.FeatureStore(url) as store:
        with pytest.raises(fs.MigrationRequiredError):
            await known(store)
        assert await store.migrate() == ("0003", "0004")
        assert (await known(store))[1] == 10
        mark = await store.mark()
        made = await store.get_historical_features(ASKED, [VIEW])
        await store.push(VIEW, rows(1, 11))
        assert (await known(store, mark))[1] == 10
        assert (await store.replay(made.manifest)).to_arrow().equals(made.to_arrow())
        finished = (await store.loads())[0].finished_at
        assert (await known(store, finished))[1] == 10
        await store.undo_load(old)
        with pytest.raises(fs.NotFoundError, match=f"load {old} "):
            await store.replay(made.manifest)


async def test_marks_hold_in_a_database_that_was_restored_on_another_server(
    store: fs.FeatureStore, url: str
):
    """Dumped and restored, the ledger has numbers of transactions that the new server may never
    have heard of, or will reach only later."""
    await store.push(VIEW, rows(1, 10))
    gone = (await store.push(VIEW, rows(1, 11))).load_id
    async with store.transaction() as tx:
        await tx.push(VIEW, rows(3, 30))
        async with fs.FeatureStore(url) as other:
            before = await other.mark()
    await store.undo_load(gone)
    await execute(url, "UPDATE featurestore_load SET transaction_id = transaction_id + 200")
    await execute(url, "UPDATE featurestore_removal SET transaction_id = transaction_id + 200")

    async with fs.FeatureStore(url) as restored, fs.FeatureStore(url) as other:
        after = await restored.mark()
        assert (await known(restored, after))[1:4] == [10, None, 30]
        made = await restored.get_historical_features(ASKED, [VIEW], as_of=after)
        assert made.warnings == ()
        async with restored.transaction() as tx:
            await tx.push(VIEW, rows(1, 12))
            await other.push(VIEW, rows(2, 20))
            between = await other.mark()
        for mark, wanted in ((after, [10, None, 30]), (between, [10, 20, 30])):
            assert (await known(other, fs.Mark.parse(str(mark))))[1:4] == wanted
        assert (await other.replay(made.manifest)).to_arrow().equals(made.to_arrow())
        # Time goes on: the numbers come to be reached.
        for number in range(250):
            await execute(url, f"SELECT {number}, pg_current_xact_id()::text")
        assert (await known(other, after))[1:4] == [10, None, 30]
        assert (await known(other))[1:4] == [12, 20, 30]
    assert before.since == 0
    assert after.since > 0
