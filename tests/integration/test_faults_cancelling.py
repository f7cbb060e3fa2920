"""A cancelled call stops its statement at the server, and its connection stays of use."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from cancelling import HOWS, How, by_scope, by_task
from faults import (
    NAME,
    START,
    VIEW,
    Complaints,
    becomes_idle,
    busy,
    checked_out,
    new_project,
    opened,
    rows_table,
    state,
    write_file,
)

import featurestore as fs
from featurestore.storage.engine import Database
from featurestore.storage.session import Session
from featurestore.testing import PostgresServer

postgresql = pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)
both = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)
every_way = pytest.mark.parametrize("how", HOWS)

ROW = {"driver_id": 1, "event_timestamp": START, "conv_rate": 0.5, "trips": 1, "city": "Oslo"}
BATCH = pa.record_batch({"a": pa.arange(0, 20_000)})
SLEEP = sa.select(sa.cast(sa.func.pg_sleep(30), sa.Text))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("files") / "rows.parquet", rows_table(4000))


# --- what runs at a PostgreSQL server ---------------------------------------------------------


async def a_statement(session: Session) -> None:
    await session.execute(SLEEP)


async def a_drivers_query(session: Session) -> None:
    await session.rows(SLEEP)


async def a_cursor(session: Session) -> None:
    rows = sa.func.generate_series(1, 10_000).table_valued("n")
    query = sa.select(sa.cast(sa.func.pg_sleep(0.01), sa.Text)).select_from(rows)
    async for _ in session.stream(query, size=100):
        pass


async def synchronous_code(session: Session) -> None:
    await session.run_sync(lambda connection: connection.execute(SLEEP))


async def many_statements(session: Session) -> None:
    """Between any two of them there is nothing to cancel at the server."""

    def run(connection: sa.Connection) -> None:
        for _ in range(3000):
            connection.execute(sa.select(sa.cast(sa.func.pg_sleep(0.01), sa.Text)))

    await session.run_sync(run)


async def a_lock(session: Session) -> None:
    await session.dialect.lock_name(session, "held")


async def a_copy(session: Session) -> None:
    """It has begun, and its source has nothing more."""
    table = sa.Table("copied", sa.MetaData(), sa.Column("a", sa.BigInteger))
    await session.execute(sa.schema.CreateTable(table))

    async def batches() -> AsyncIterator[pa.RecordBatch]:
        for _ in range(20):
            yield BATCH
        await asyncio.sleep(30)

    await session.insert(table, batches(), {"a": fs.Int64})


WHATS: list[Callable[[Session], Coroutine[Any, Any, None]]] = [
    a_statement,
    a_drivers_query,
    a_cursor,
    synchronous_code,
    many_statements,
    a_lock,
    a_copy,
]


@postgresql
@every_way
async def test_nothing_runs_on_at_the_server(
    featurestore_url: str, featurestore_postgres: PostgresServer, how: How
):
    database = Database(featurestore_url, None)
    holder = Database(featurestore_url, None)
    with Complaints():
        for what in WHATS:

            async def work(what=what) -> None:
                async with database.transaction() as session:
                    await what(session)

            async def at_work() -> None:
                nonlocal began
                # One is the holder, which waits for us.
                while len(await busy(featurestore_postgres, featurestore_url)) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.03)
                began = time.monotonic()

            began = 0.0
            async with holder.transaction() as held:
                await held.dialect.lock_name(held, "held")
                await how(work(), at_work)
                took = time.monotonic() - began
                assert took < 10, f"{what.__name__} took {took:.1f} s to end"
            await becomes_idle(featurestore_postgres, featurestore_url)
            assert checked_out(database) == 0
            async with database.session() as session:
                assert await session.rows(sa.select(sa.literal(1))) == [(1,)]
            backends = await asyncio.to_thread(
                featurestore_postgres.backends, featurestore_url.rpartition("/")[2]
            )
            assert backends == 2, f"{what.__name__}: connections were thrown away"
        await database.close()
        await holder.close()


@postgresql
@every_way
async def test_opening_a_connection_is_cancelled_without_a_trace(
    featurestore_url: str, featurestore_postgres: PostgresServer, how: How
):
    """At each of the moments that opening one has, and while one is waited for."""
    with Complaints():
        for pause in (0, 0.002, 0.004, 0.008, 0.012):
            database = Database(featurestore_url, None)

            async def work(database=database) -> None:
                async with database.session() as session:
                    await session.rows(sa.select(sa.cast(sa.func.pg_sleep(30), sa.Text)))

            async def soon(pause=pause) -> None:
                await asyncio.sleep(pause)

            await how(work(), soon)
            await becomes_idle(featurestore_postgres, featurestore_url)
            assert checked_out(database) == 0
            await database.close()


# --- loads that wait --------------------------------------------------------------------------


@postgresql
@pytest.mark.parametrize("how", [by_task, by_scope])
@pytest.mark.parametrize("table", ["history", "online"])
async def test_a_load_that_waits_for_a_lock_is_cancelled_there(
    featurestore_url: str,
    featurestore_postgres: PostgresServer,
    file: Path,
    how: How,
    table: str,
):
    project = new_project()
    with Complaints():
        async with opened(featurestore_url, project) as store, opened(featurestore_url) as other:
            await store.apply([VIEW])
            await store.push(NAME, [ROW])
            before = await state(store)
            async with other.engine.begin() as holder:
                name = f"{project}__{NAME}__{table}"
                await holder.execute(sa.text(f"LOCK TABLE {name} IN SHARE MODE"))

                async def waits() -> None:
                    query = sa.text(
                        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                        "AND datname = current_database()"
                    )
                    while not (await holder.execute(query)).scalar_one():
                        await holder.execute(sa.text("SELECT pg_stat_clear_snapshot()"))
                        await asyncio.sleep(0.01)

                await how(store.ingest(NAME, file, on_invalid="quarantine"), waits)
            await becomes_idle(featurestore_postgres, featurestore_url)
            assert (await state(store)).difference(before) == ""
            report = await store.ingest(NAME, file, on_invalid="quarantine")
            assert report.rows_read == 4000


# --- a user's transaction ---------------------------------------------------------------------


async def push_for(tx: fs.Transaction, seconds: float) -> None:
    """Push until it is over."""
    async with asyncio.timeout(seconds):
        for driver in range(10_000):
            await tx.push(NAME, [{**ROW, "driver_id": 10 + driver}])


@both
async def test_a_cancelled_write_takes_back_itself_or_all_of_its_transaction(
    featurestore_url: str,
):
    """The rest is kept, or told to be gone: never lost in silence."""

    async def two_pushes(store: fs.FeatureStore, pause: float) -> None:
        async with store.transaction() as tx:
            await tx.push(NAME, [{**ROW, "driver_id": 2}])
            with pytest.raises(TimeoutError):
                await push_for(tx, pause)
            await tx.push(NAME, [{**ROW, "driver_id": 3}])

    async with opened(featurestore_url) as store:
        kept = 0
        for pause in (0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032):
            try:
                await two_pushes(store, pause)
            except fs.StoreUnavailableError as error:
                gone = str(error)
            else:
                gone = ""
                kept += 1
            assert not gone or "Repeat it" in gone
            for driver in (2, 3):
                history = await store.repository(NAME).history(driver_id=driver)
                assert history.num_rows == kept
        assert kept


@postgresql
async def test_a_read_that_breaks_off_does_not_lose_a_transaction_in_silence(
    featurestore_url: str,
):
    """PostgreSQL answers a COMMIT with a rollback then, and calls it no error."""
    other = replace(VIEW, name="other_stats")
    project = new_project()

    async def read_for(tx: fs.Transaction, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            await tx.get_online_features(["other_stats:trips"], [ROW])

    async def push_and_read(store: fs.FeatureStore) -> None:
        async with store.transaction() as tx, store.engine.begin() as holder:
            await tx.push(NAME, [ROW])
            table = f"{project}__other_stats__online"
            await holder.execute(sa.text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
            with pytest.raises(TimeoutError):
                await read_for(tx, 0.2)

    async with opened(featurestore_url, project) as store:
        await store.apply([VIEW, other])
        with pytest.raises(fs.StoreUnavailableError, match="nothing of it was kept"):
            await push_and_read(store)
        assert (await state(store)).empty
        async with store.transaction() as tx:
            await tx.push(NAME, [ROW])
        assert await store.repository(NAME).count() == 1


# --- the end of a store -----------------------------------------------------------------------


@both
async def test_a_store_that_is_closed_under_a_call_leaves_no_connection(
    featurestore_url: str, featurestore_postgres: PostgresServer, file: Path
):
    with Complaints(), warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        project = new_project()
        store = fs.FeatureStore(featurestore_url, project=project)
        await store.apply([VIEW])
        loading = asyncio.create_task(store.ingest(NAME, file, on_invalid="quarantine"))
        await asyncio.sleep(0.02)
        assert not loading.done()
        await store.close()
        assert (await loading).rows_read == 4000
        assert checked_out(store) == 0
        if featurestore_url.startswith("postgresql"):
            name = featurestore_url.rpartition("/")[2]
            assert await asyncio.to_thread(featurestore_postgres.backends, name) == 0
        del store, loading
    async with opened(featurestore_url, project) as again:
        assert (await again.ingest(NAME, file)).loads[0].skipped


# --- SQLite -----------------------------------------------------------------------------------

ENDLESS = (
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1000000000000) "
    "SELECT count(*) FROM c"
)


Begin = Callable[[], None]
"""Called where the statement that is to be stopped begins."""


async def sqlite_statement(session: Session, begin: Begin) -> None:
    begin()
    await session.execute(sa.text(ENDLESS))


async def sqlite_drivers_query(session: Session, begin: Begin) -> None:
    begin()
    await session.raw_rows(ENDLESS, [])


async def sqlite_synchronous_code(session: Session, begin: Begin) -> None:
    begin()
    await session.run_sync(lambda connection: connection.execute(sa.text(ENDLESS)))


async def sqlite_upsert(session: Session, begin: Begin) -> None:
    await session.execute(sa.text("CREATE TABLE t (a INTEGER PRIMARY KEY, b INTEGER)"))
    begin()
    await session.execute(
        sa.text(
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1000000000) "
            "INSERT INTO t SELECT x % 1000, x FROM c WHERE true "
            "ON CONFLICT (a) DO UPDATE SET b = excluded.b"
        )
    )


async def sqlite_index(session: Session, begin: Begin) -> None:
    await session.execute(sa.text("CREATE TABLE t (a INTEGER)"))
    await session.execute(
        sa.text(
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1500000) "
            "INSERT INTO t SELECT x * 7919 % 1000003 FROM c"
        )
    )
    begin()
    await session.execute(sa.text("CREATE INDEX i ON t (a)"))


@pytest.mark.parametrize(
    "what",
    [sqlite_statement, sqlite_drivers_query, sqlite_synchronous_code, sqlite_upsert, sqlite_index],
)
@pytest.mark.parametrize("how", [by_task, by_scope])
async def test_sqlite_stops_at_once(featurestore_url: str, how: How, what: Any):
    database = Database(featurestore_url, None)
    stopped = time.monotonic()
    begun = asyncio.Event()

    async def work() -> None:
        async with database.transaction() as session:
            await what(session, begun.set)

    async def soon() -> None:
        nonlocal stopped
        await begun.wait()
        await asyncio.sleep(0.1)
        stopped = time.monotonic()

    with Complaints():
        await how(work(), soon)
        assert time.monotonic() - stopped < 10
        assert checked_out(database) == 0
        async with asyncio.timeout(10), database.transaction() as session:
            found = await session.raw_rows("SELECT count(*) FROM sqlite_master", [])
            assert found == [(0,)], "something was kept"
        await database.close()
