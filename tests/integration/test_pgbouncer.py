"""Behind PgBouncer in transaction mode: any transaction may run on another server than the last.

``pytest --pgbouncer tests/conformance`` runs the whole of what the store means behind it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pyarrow as pa
import pytest
import sqlalchemy as sa
from cancelling import How, by_scope, by_task
from faults import (
    NAME,
    START,
    VIEW,
    Complaints,
    becomes_idle,
    busy,
    rows_table,
    state,
    write_file,
)
from pgbouncer import SERVERS, PgBouncer, program_or_skip
from sqlalchemy.ext.asyncio import create_async_engine

import featurestore as fs
from featurestore.storage.address import resolve_url
from featurestore.storage.engine import Database
from featurestore.storage.limits import DEFAULT_LIMITS
from featurestore.storage.session import Session
from featurestore.testing import PostgresServer

pytestmark = pytest.mark.pgbouncer

DATABASE = "pooled"
ZONE = "Asia/Kolkata"
CALLERS = 24


@pytest.fixture
def database(
    pgbouncer: PgBouncer, featurestore_postgres: PostgresServer, featurestore_template: str
) -> Iterator[str]:
    """A database whose servers have a zone of their own: what is set in them shows."""
    featurestore_postgres.create_database(DATABASE, featurestore_template)
    try:
        asyncio.run(
            _execute(featurestore_postgres, f"ALTER DATABASE {DATABASE} SET timezone={ZONE!r}")
        )
        yield DATABASE
    finally:
        featurestore_postgres.drop_database(DATABASE)


async def _execute(server: PostgresServer, statement: str) -> None:
    connection = await asyncpg.connect(server.url(DATABASE))
    await connection.execute(statement)
    await connection.close()


@pytest.fixture
async def store(pgbouncer: PgBouncer, database: str) -> AsyncIterator[fs.FeatureStore]:
    async with fs.FeatureStore(pgbouncer.url(database)) as store:
        await store.apply([VIEW])
        yield store


def row(driver: int, trips: int) -> dict[str, Any]:
    """A row later than those of the files, and than one of fewer trips."""
    return {
        "driver_id": driver,
        "event_timestamp": START + dt.timedelta(days=1, seconds=trips),
        "conv_rate": trips / 8,
        "trips": trips,
        "city": "Oslo",
    }


async def servers_of(pgbouncer: PgBouncer, query: str) -> dict[int, Any]:
    """What a query gives at each of the servers that PgBouncer has, by their process."""
    async with AsyncExitStack() as stack:
        found = {}
        for _ in range(SERVERS):  # each in a transaction, which keeps its server to itself
            connection = await asyncpg.connect(pgbouncer.url(DATABASE, ""), statement_cache_size=0)
            stack.push_async_callback(connection.close)
            await stack.enter_async_context(connection.transaction())
            process = await connection.fetchval("SELECT pg_backend_pid()")
            found[process] = [tuple(one) for one in await connection.fetch(query)]
    assert len(found) == SERVERS
    return found


async def trips(store: fs.FeatureStore, drivers: list[int]) -> list[int | None]:
    answer = await store.get_online_features([f"{NAME}:trips"], [{"driver_id": n} for n in drivers])
    return [values["trips"] for values in answer.to_dicts()]


# --- every call of the library ----------------------------------------------------------------

LEFT = """
    SELECT 'statement', name FROM pg_prepared_statements
    UNION ALL SELECT 'table', relname FROM pg_class
        WHERE relpersistence = 't' AND relname LIKE 'featurestore%'
    UNION ALL SELECT 'lock', objid::text FROM pg_locks WHERE locktype = 'advisory'
    UNION ALL SELECT 'zone', setting FROM pg_settings
        WHERE name = 'TimeZone' AND setting <> 'Asia/Kolkata'
"""
"""What a client could leave in its server for the next: PgBouncer cleans up nothing."""


@pytest.mark.parametrize("said", ["prepared_statement_cache_size=0", "statement_cache_size=0"])
async def test_every_call_works(said: str, pgbouncer: PgBouncer, database: str, tmp_path: Path):
    table = rows_table(3000, bad_every=10_000)
    files = [
        str(write_file(tmp_path / f"{part}.parquet", table.slice(part * 500, 500)))
        for part in range(6)
    ]
    url = pgbouncer.url(database, said)
    async with fs.FeatureStore(url) as one, fs.FeatureStore(url) as two:
        assert await one.apply([VIEW])
        assert not await two.apply([VIEW])
        loaded = await one.ingest(NAME, files, files_at_once=2 * SERVERS)
        assert loaded.rows_written == 3000
        whole = await state(one)
        await training_sets(two, table)
        await writes(one, two)
        for load in await one.loads(NAME):
            await one.undo_load(load.load_id)
        assert (await state(one)).history.num_rows == 0
        assert (await two.ingest(NAME, files)).rows_written == 3000
        await one.materialize()
        assert (await state(one)).history.equals(whole.history)
        await wider(two, one)
    assert not any((await servers_of(pgbouncer, LEFT)).values())


async def training_sets(store: fs.FeatureStore, table: pa.Table) -> None:
    times = pa.array([START + dt.timedelta(hours=1)] * 150, fs.Timestamp.arrow)
    entities = pa.table({"driver_id": pa.array(range(150), pa.int64()), "event_timestamp": times})
    training = (await store.get_historical_features(entities, [f"{NAME}:*"])).to_arrow()
    newest = {one["driver_id"]: one["trips"] for one in table.to_pylist()}
    assert training["trips"].to_pylist() == [newest[driver] for driver in range(150)]
    stream = store.stream_historical_features(entities, [f"{NAME}:*"])
    assert pa.Table.from_batches([batch async for batch in stream]).equals(training)


async def writes(one: fs.FeatureStore, two: fs.FeatureStore) -> None:
    """Pushes, a stream of them, an erasure, a transaction that fails."""

    async def rows() -> AsyncIterator[dict[str, Any]]:
        for number in range(100):
            yield row(1, number)

    await two.push_stream(NAME, rows(), max_rows=30)
    await one.push(NAME, [row(2, 7)])
    assert await trips(two, [1, 2]) == [99, 7]
    drivers = one.repository(NAME)
    assert (await drivers.history(driver_id=1)).num_rows == 20 + 100
    await drivers.delete(driver_id=1)

    async def fails() -> None:
        async with one.transaction() as tx:
            await tx.push(NAME, [row(2, 500)])
            assert (await tx.repository(NAME).get(driver_id=2))["trips"] == 500
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fails()
    assert await trips(two, [1, 2]) == [None, 7]


async def wider(one: fs.FeatureStore, two: fs.FeatureStore) -> None:
    """A view gets a wider field and one more, under the eyes of a store that reads it."""
    before = await trips(two, list(range(150)))
    fields = [fs.Field("trips", fs.Int64), fs.Field("rain", fs.Bool), *VIEW.fields[::2]]
    assert await one.apply(
        [
            fs.FeatureView(
                NAME, entities=VIEW.entities, fields=fields, timestamp_field="event_timestamp"
            )
        ]
    )
    assert await trips(two, list(range(150))) == before
    await one.push(NAME, [row(3, 5) | {"trips": 2**40, "rain": True}])
    assert await trips(two, [3]) == [2**40]
    assert (await two.repository(NAME).get(driver_id=3))["rain"] is True


# --- many callers on few servers --------------------------------------------------------------


async def test_each_caller_gets_its_own_answer(store: fs.FeatureStore, pgbouncer: PgBouncer):
    assert DEFAULT_LIMITS.connections > SERVERS
    used = defaultdict(set)

    async def caller(driver: int) -> None:
        for number in range(3):
            await store.push(NAME, [row(driver, number)])
            assert await trips(store, [driver, driver + CALLERS]) == [number, None]
            async with store.engine.connect() as connection:
                client = (await connection.get_raw_connection()).driver_connection
                server = await connection.scalar(sa.select(sa.func.pg_backend_pid()))
                used[client].add(server)

    async with asyncio.TaskGroup() as group:
        for driver in range(CALLERS):
            group.create_task(caller(driver))
    assert len(set.union(*used.values())) == SERVERS
    switched = [client for client, servers in used.items() if len(servers) > 1]
    assert switched, "each connection had one server all the time: nothing was tested"
    assert not any((await servers_of(pgbouncer, LEFT)).values())


@pytest.fixture
def one_server(
    request: pytest.FixtureRequest, featurestore_postgres: PostgresServer
) -> Iterator[PgBouncer]:
    """PgBouncer with a single server, for which it lets a client wait a second."""
    settings = {"default_pool_size": "1", "query_wait_timeout": "1"}
    with PgBouncer(program_or_skip(request.config), featurestore_postgres, **settings) as bouncer:
        yield bouncer


async def test_no_server_comes_free(one_server: PgBouncer, database: str):
    async with fs.FeatureStore(one_server.url(database)) as store:
        await store.apply([VIEW])
        await store.push(NAME, [row(1, 5)])
        other = await asyncpg.connect(one_server.url(database, ""), statement_cache_size=0)
        async with other.transaction():
            await other.execute("SELECT 1")
            with pytest.raises(fs.StoreUnavailableError, match="query_wait_timeout"):
                await trips(store, [1])
            with pytest.raises(fs.StoreUnavailableError):
                await store.push(NAME, [row(1, 6)])
        assert await trips(store, [1]) == [5]
        await other.close()


# --- cancelling -------------------------------------------------------------------------------

SLEEP = sa.select(sa.cast(sa.func.pg_sleep(30), sa.Text))


async def a_statement(session: Session) -> None:
    await session.execute(SLEEP)


async def a_drivers_query(session: Session) -> None:
    await session.rows(SLEEP)


async def a_cursor(session: Session) -> None:
    rows = sa.func.generate_series(1, 10_000).table_valued("n")
    query = sa.select(sa.cast(sa.func.pg_sleep(0.01), sa.Text)).select_from(rows)
    async for _ in session.stream(query, size=100):
        pass


@pytest.mark.parametrize("how", [by_task, by_scope])
@pytest.mark.parametrize("what", [a_statement, a_drivers_query, a_cursor])
async def test_a_cancelled_call_stops_at_the_server(
    pgbouncer: PgBouncer,
    featurestore_postgres: PostgresServer,
    database: str,
    what: Callable[[Session], Coroutine[Any, Any, None]],
    how: How,
):
    pooled = Database(pgbouncer.url(database), None)
    direct = featurestore_postgres.url(database)

    async def work() -> None:
        async with pooled.transaction() as session:
            await what(session)

    async def at_work() -> None:
        while not await busy(featurestore_postgres, direct):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.03)

    with Complaints():
        await how(work(), at_work)
        await becomes_idle(featurestore_postgres, direct)
        async with pooled.session() as session:
            assert await session.rows(sa.select(sa.literal(1))) == [(1,)]
        await pooled.close()


async def test_cancelling_some_callers_does_the_others_no_harm(
    store: fs.FeatureStore, featurestore_postgres: PostgresServer, database: str
):
    await store.push(NAME, [row(driver, driver) for driver in range(CALLERS)])
    direct = featurestore_postgres.url(database)
    holder = await asyncpg.connect(direct)
    async with holder.transaction():
        await holder.execute("LOCK TABLE default__driver_stats__online")
        callers = [asyncio.create_task(trips(store, [driver])) for driver in range(CALLERS)]
        while len(await busy(featurestore_postgres, direct)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for caller in callers[::3]:
            caller.cancel()
        await asyncio.wait(callers[::3])
    answers = await asyncio.gather(*callers, return_exceptions=True)
    for driver, answer in enumerate(answers):
        if driver % 3 == 0:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert answer == [driver]
    await holder.close()
    await becomes_idle(featurestore_postgres, direct)
    assert await trips(store, [1, 2]) == [1, 2]


# --- engines and URLs -------------------------------------------------------------------------


async def test_a_url_that_does_not_say_it_is_told_what_to_say(pgbouncer: PgBouncer, database: str):
    async with fs.FeatureStore(pgbouncer.url(database, "")) as store:
        calls = [store.loads() for _ in range(CALLERS)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    errors = [answer for answer in answers if answer != []]
    assert errors
    for error in errors:
        assert isinstance(error, fs.FeatureStoreError)
        assert "prepared_statement_cache_size=0" in str(error)
        assert error.__cause__ is not None


async def test_a_borrowed_engine(pgbouncer: PgBouncer, database: str):
    no_statements = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
    url = resolve_url(pgbouncer.url(database, ""))
    engine = create_async_engine(url, connect_args=no_statements)
    async with fs.FeatureStore(engine=engine) as store:
        await store.apply([VIEW])

        async def caller(driver: int) -> None:
            await store.push(NAME, [row(driver, driver)])
            assert await trips(store, [driver]) == [driver]

        await asyncio.gather(*[caller(driver) for driver in range(CALLERS)])
    assert not any((await servers_of(pgbouncer, LEFT)).values())
    await engine.dispose()
