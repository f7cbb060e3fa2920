"""A training set that is cancelled, or left early, leaves nothing: no query at the server, no
connection, no temporary table, no file, no thread at work."""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from cancelling import HOWS, by_scope, by_task, cancelled_at, waits_of
from faults import (
    DRIVERS,
    NAME,
    START,
    VIEW,
    Complaints,
    becomes_idle,
    checked_out,
    new_project,
    opened,
    rows_table,
    spread,
)
from ways import WAYS, asked, streamed

import featurestore as fs
from featurestore.testing import PostgresServer
from featurestore.training.duckdb_join.answers import InMemory

both = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)

ENTITY_ROWS = 20_000
FEATURES = [f"{NAME}:trips", f"{NAME}:city"]
QUERY = f"SELECT driver_id, __event_time AS event_timestamp FROM {{project}}__{NAME}__history"  # noqa: S608

Work = Callable[["fs.FeatureStore", "Given"], Coroutine[Any, Any, int]]


@dataclass(frozen=True)
class Given:
    """What the training sets are asked of."""

    entities: pa.Table
    path: str


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, for this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("entities")
    numbers = range(ENTITY_ROWS)
    entities = pa.table(
        {
            "driver_id": [number % (2 * DRIVERS) for number in numbers],
            "event_timestamp": pa.repeat(
                pa.scalar(START.replace(year=2025), fs.Timestamp.arrow), ENTITY_ROWS
            ),
        }
    )
    pq.write_table(entities, folder / "entities.parquet", row_group_size=3_000)
    pq.write_table(rows_table(6_000, bad_every=10_000), folder / "source.parquet")
    return Given(entities, str(folder / "entities.parquet"))


def whole(way: str, **options: Any) -> Work:
    async def work(store: fs.FeatureStore, given: Given) -> int:
        return len(await asked(store, given.entities, FEATURES, way, **options))

    return work


async def by_path(store: fs.FeatureStore, given: Given) -> int:
    return len(await asked(store, given.path, FEATURES, "sql, result on disk"))


async def by_query(store: fs.FeatureStore, given: Given) -> int:
    text = QUERY.format(project=store.project)
    return len(await asked(store, text, FEATURES, "duckdb in memory"))


def as_stream(way: str) -> Work:
    async def work(store: fs.FeatureStore, given: Given) -> int:
        return sum(
            [batch.num_rows async for batch in streamed(store, given.entities, FEATURES, way)]
        )

    return work


async def in_a_transaction(store: fs.FeatureStore, given: Given) -> int:
    async with store.transaction() as tx:
        await tx.push(NAME, rows_table(1))
        return len(await asked(tx, given.entities, FEATURES, "sql"))


WORKS: dict[str, Work] = {way: whole(way) for way in WAYS}
WORKS |= {
    "source": whole("duckdb on disk", read_from="source"),
    "path": by_path,
    "query": by_query,
    "stream": as_stream("duckdb on disk"),
    "transaction": in_a_transaction,
}
OTHER_ROWS = {"query": 6_000}


@dataclass(frozen=True)
class Left:
    """Checks that nothing is left."""

    store: fs.FeatureStore
    server: PostgresServer
    url: str
    temporary: Path

    async def nothing(self) -> None:
        assert checked_out(self.store) == 0
        deadline = time.monotonic() + 2
        while left := await asyncio.to_thread(self._files):
            # A thread may be at its last 65,536 rows, and the loop has the last task's error.
            assert time.monotonic() < deadline, left
            await asyncio.sleep(0.005)
            gc.collect()
        if self.url.startswith("postgresql"):
            await becomes_idle(self.server, self.url)
            name = self.url.rpartition("/")[2]
            backends = await asyncio.to_thread(self.server.backends, name)
            assert backends <= self.store.engine.pool.checkedin()
        else:
            assert await self._temporary_tables() == []

    def _files(self) -> list[str]:
        """Files there, and files that are gone from there but still held open or mapped."""
        left = os.listdir(self.temporary)
        if os.path.exists("/proc/self/maps"):
            lines = Path("/proc/self/maps").read_text().splitlines()
            left += [line for line in lines if str(self.temporary) in line]
            links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
            targets = [os.readlink(link) for link in links if os.path.islink(link)]
            left += [target for target in targets if str(self.temporary) in target]
        return left

    async def _temporary_tables(self) -> list[Any]:
        """Of all connections in the pool."""
        idle = [
            await self.store.engine.connect() for _ in range(self.store.engine.pool.checkedin())
        ]
        found = []
        for connection in idle:
            rows = await connection.execute(sa.text("SELECT name FROM sqlite_temp_master"))
            found += rows.fetchall()
            await connection.close()
        return found


@pytest.fixture
async def ready(
    featurestore_url: str, featurestore_postgres: PostgresServer, given: Given, temporary: Path
) -> Iterator[Left]:
    """A store with the view's history and source."""
    source = fs.ParquetSource(str(Path(given.path).with_name("source.parquet")))
    with Complaints():
        async with opened(featurestore_url) as store:
            await store.apply([replace(VIEW, source=source)])
            await store.ingest(NAME)
            yield Left(store, featurestore_postgres, featurestore_url, temporary)


@both
@pytest.mark.parametrize("name", WORKS)
async def test_cancelled_at_any_wait_it_leaves_nothing(ready: Left, given: Given, name: str):
    work, store = WORKS[name], ready.store
    last = await waits_of(work(store, given))
    await ready.nothing()
    reached = 0
    for index, wait in enumerate(spread(15, last)):
        how = HOWS[index % len(HOWS)]
        reached += await cancelled_at(wait, how, work(store, given))
        await ready.nothing()
    assert reached >= 3
    assert await work(store, given) == OTHER_ROWS.get(name, ENTITY_ROWS)
    await ready.nothing()
    assert (await store.push(NAME, rows_table(1))).rows_written == 1


# --- streams that are left early --------------------------------------------------------------

STREAMED = ["sql", "duckdb in memory", "duckdb on disk"]


@both
@pytest.mark.parametrize("way", STREAMED)
async def test_a_stream_left_early_leaves_nothing(ready: Left, given: Given, way: str):
    store = ready.store
    rows = streamed(store, given.entities, FEATURES, way)
    await anext(rows)
    assert checked_out(store) == 1
    await rows.aclose()
    await ready.nothing()

    async for batch in streamed(store, given.entities, FEATURES, way):
        assert batch.num_rows
        break  # and nobody closes it
    del batch
    deadline = time.monotonic() + 5
    while checked_out(store):
        assert time.monotonic() < deadline
        gc.collect()
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # what closes it is a task of the loop's
    await ready.nothing()
    assert await WORKS[way](store, given) == ENTITY_ROWS


@both
@pytest.mark.parametrize("how", [by_task, by_scope])
async def test_a_reader_that_is_cancelled_between_batches_leaves_nothing(
    ready: Left, given: Given, how: Any
):
    for way in STREAMED:
        waits = asyncio.Event()

        async def reader(way=way, waits=waits) -> None:
            async for _ in streamed(ready.store, given.entities, FEATURES, way):
                waits.set()
                await asyncio.sleep(30)

        async def when(waits=waits) -> None:
            await waits.wait()

        await how(reader(), when)
        deadline = time.monotonic() + 5
        while checked_out(ready.store) and time.monotonic() < deadline:
            gc.collect()
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        await ready.nothing()


@both
async def test_a_stream_left_early_in_a_transaction_lets_it_go_on(ready: Left, given: Given):
    store = ready.store
    async with store.transaction() as tx:
        await tx.push(NAME, rows_table(1))
        for way in STREAMED * 2:
            rows = streamed(tx, given.entities, FEATURES, way)
            await anext(rows)
            await rows.aclose()
        await tx.push(NAME, rows_table(1, first=1))
        assert len(await asked(tx, given.entities, FEATURES, "sql")) == ENTITY_ROWS
    await ready.nothing()
    assert await store.repository(NAME).count() == 6_002


# --- work that takes long ---------------------------------------------------------------------


@both
async def test_no_thread_gathers_on(ready: Left, given: Given, monkeypatch: pytest.MonkeyPatch):
    running: list[str] = []
    began = threading.Event()
    taken = InMemory._taken

    def slow(self: InMemory, *arguments: Any) -> pa.Array:
        running.append("one")
        began.set()
        time.sleep(0.2)
        found = taken(self, *arguments)
        running.pop()
        return found

    monkeypatch.setattr(InMemory, "_taken", slow)
    task = asyncio.create_task(asked(ready.store, given.entities, FEATURES, "duckdb in memory"))
    assert await asyncio.to_thread(began.wait, 20)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert running == []
    await ready.nothing()


async def _is_idle() -> None:
    """This process does no more work than waiting takes."""
    before = time.process_time()
    await asyncio.sleep(0.3)
    used = time.process_time() - before
    assert used < 0.15, f"{used:.2f} s of CPU in 0.3 s"


async def test_no_thread_computes_on(featurestore_url: str, tmp_path: Path, temporary: Path):
    """DuckDB is interrupted in the middle of a join of minutes; a long file is read no further."""
    view = replace(VIEW, fields=VIEW.fields[:1])
    count = 300_000
    times = pa.repeat(pa.scalar(START, fs.Timestamp.arrow), count)
    entities = pa.table({"driver_id": pa.repeat(1, count), "event_timestamp": times})
    path = tmp_path / "long.parquet"

    def write() -> None:
        with pq.ParquetWriter(path, entities.schema) as writer:
            for _ in range(60):
                writer.write_table(entities)

    await asyncio.to_thread(write)
    with Complaints():
        async with opened(featurestore_url, new_project()) as store:
            await store.apply([view])
            await store.push(NAME, rows_table(10))
            for given in (str(path), pa.concat_tables([entities] * 30)):
                for pause in (0.3, 0.8):
                    task = asyncio.create_task(
                        asked(store, given, [f"{NAME}:conv_rate"], "duckdb on disk")
                    )
                    await asyncio.sleep(pause)
                    assert not task.done()
                    began = time.monotonic()
                    task.cancel()
                    await asyncio.wait([task])
                    assert task.cancelled()
                    assert time.monotonic() - began < 3
                    await _is_idle()
            assert await asyncio.to_thread(os.listdir, temporary) == []
