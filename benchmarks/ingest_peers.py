"""What `ingest.py` compares with: other ways to bring the same rows into the same databases.

Each takes a file from Parquet to committed rows, and nothing more: no check of what is in it, no
ledger, no online table. Connections and tables are there before the clock runs.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi
import adbc_driver_sqlite.dbapi
import asyncpg
import numpy as np
import pandas  # noqa: F401 - here, and not when the clock runs
import pyarrow as pa
import sqlalchemy as sa
from ingest_data import COLUMNS, encoded, plain_batches, plain_schema, python_rows
from sqlalchemy.ext.asyncio import create_async_engine

from featurestore.storage.tables import ARRIVAL, CREATED, EVENT, table_names

KEY = "(item_id, event_timestamp)"
NAMES = list(COLUMNS)

PYTHON_ROWS = 200_000
LITERAL_ROWS = 10_000
"""How many rows the slow ways are given: their rate is per row, and more would tell no more."""

STATEMENT = 1_000
"""Rows per statement, where one statement holds many. PostgreSQL takes 65,535 values in one,
asyncpg 32,767, and fewer rows were no slower."""

Done = tuple[int, float]
"""Rows that came in, and the seconds that it took."""


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self._began


# --- PostgreSQL ---------------------------------------------------------------------------------


@asynccontextmanager
async def bare_table(url: str, *, after: str = "") -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database with an empty table `bare` for the file's columns."""
    connection = await asyncpg.connect(url)
    try:
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        await connection.execute(f"CREATE TABLE bare ({columns})")
        if after:
            await connection.execute(after)
        yield connection
    finally:
        await connection.close()


INDEX = f"CREATE INDEX bare_key ON bare {KEY}"


async def copy_then_index(url: str, path: Path) -> Done:
    """pgpq into asyncpg's COPY, then CREATE INDEX: the practical limit for these rows."""
    async with bare_table(url) as connection:
        clock = Clock()
        status = await connection.copy_to_table("bare", source=encoded(path), format="binary")
        await connection.execute(INDEX)
        return copied(status), clock()


async def server_copy(url: str, path: Path) -> Done:
    """COPY FROM a file that the server reads by itself: the bytes that pgpq makes, made before."""
    async with bare_table(url) as connection:
        return await _server_copy(connection, path)


async def server_copy_then_index(url: str, path: Path) -> Done:
    async with bare_table(url) as connection:
        clock = Clock()
        rows, _ = await _server_copy(connection, path)
        await connection.execute(INDEX)
        return rows, clock()


async def _server_copy(connection: asyncpg.Connection, path: Path) -> Done:
    quoted = str(path).replace("'", "''")
    clock = Clock()
    status = await connection.execute(f"COPY bare FROM '{quoted}' WITH (FORMAT binary)")
    return copied(status), clock()


async def copy_beside(url: str, path: Path) -> Done:
    """pgpq into asyncpg's COPY, into the store's own history table as a load has left it."""
    history, _ = table_names("default", "bench")
    connection = await asyncpg.connect(url)
    try:
        first = await connection.fetchval(f'SELECT max("{ARRIVAL}") + 1 FROM "{history}"')  # noqa: S608 - our names
        names = ["item_id", EVENT, CREATED, *NAMES[3:], ARRIVAL]

        def stamped(batch: pa.RecordBatch) -> pa.RecordBatch:
            nonlocal first
            arrivals = np.arange(first, first + batch.num_rows)
            first += batch.num_rows
            return pa.record_batch([*batch.columns, pa.array(arrivals)], names=names)

        clock = Clock()
        status = await connection.copy_to_table(
            history, source=encoded(path, stamped), columns=names, format="binary"
        )
        return copied(status), clock()
    finally:
        await connection.close()


async def copy_records(url: str, path: Path) -> Done:
    """asyncpg's copy_records_to_table, from Python rows."""
    async with bare_table(url) as connection:
        clock = Clock()
        count = 0
        async with connection.transaction():
            for rows in python_rows(path, PYTHON_ROWS):
                count += copied(await connection.copy_records_to_table("bare", records=rows))
        return count, clock()


async def insert_list(url: str, path: Path) -> Done:
    """SQLAlchemy's insert() with a list of rows, which asyncpg sends as one executemany."""
    return await _insert(url, path, PYTHON_ROWS, lambda table, rows: (table.insert(), rows))


async def insert_values(url: str, path: Path) -> Done:
    """SQLAlchemy's insert().values() with many rows in the statement."""
    return await _insert(
        url, path, LITERAL_ROWS, lambda table, rows: (table.insert().values(rows),)
    )


Rows = list[dict[str, Any]]


async def _insert(
    url: str, path: Path, limit: int, call: Callable[[sa.TableClause, Rows], tuple[Any, ...]]
) -> Done:
    async with bare_table(url):
        pass
    table = sa.table("bare", *(sa.column(name) for name in NAMES))
    engine = create_async_engine(url.replace("://", "+asyncpg://", 1))
    try:
        async with engine.connect() as connection:
            clock = Clock()
            count = 0
            for batch in python_rows(path, limit):
                for start in range(0, len(batch), STATEMENT):
                    rows = [dict(zip(NAMES, row, strict=True)) for row in batch[start:][:STATEMENT]]
                    await connection.execute(*call(table, rows))
                    count += len(rows)
            await connection.commit()
            return count, clock()
    finally:
        await engine.dispose()


def adbc_indexed(url: str, path: Path) -> Done:
    """ADBC's ingest into a table that has its index."""
    return _adbc(url, path, INDEX)


def adbc_primary_key(url: str, path: Path) -> Done:
    """ADBC's ingest into a table with a primary key."""
    return _adbc(url, path, f"ALTER TABLE bare ADD PRIMARY KEY {KEY}")


def _adbc(url: str, path: Path, after: str) -> Done:
    async def prepare() -> None:
        async with bare_table(url, after=after):
            pass

    asyncio.run(prepare())
    with adbc_driver_postgresql.dbapi.connect(url) as connection, connection.cursor() as cursor:
        clock = Clock()
        rows = cursor.adbc_ingest("bare", _reader(path), mode="append")
        connection.commit()
        return rows, clock()


def pandas_postgresql(url: str, path: Path) -> Done:
    """pandas' to_sql through psycopg, as it comes."""
    return _pandas(url.replace("://", "+psycopg://", 1), path, PYTHON_ROWS)


def pandas_multi(url: str, path: Path) -> Done:
    """pandas' to_sql through psycopg, many rows in each statement."""
    url = url.replace("://", "+psycopg://", 1)
    return _pandas(url, path, LITERAL_ROWS, method="multi", chunksize=STATEMENT)


def copied(status: str) -> int:
    """The rows of a COPY, from its answer (`COPY 123`)."""
    return int(status.split()[-1])


def _reader(path: Path) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(plain_schema(path), plain_batches(path))


def _pandas(url: str, path: Path, limit: int, **options: Any) -> Done:
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            clock = Clock()
            frame = pa.Table.from_batches(list(plain_batches(path, limit))).to_pandas()
            frame.to_sql("bare", connection, if_exists="append", index=False, **options)
            connection.commit()
            return len(frame), clock()
    finally:
        engine.dispose()


# --- SQLite -------------------------------------------------------------------------------------


@contextmanager
def sqlite_file(path: Path) -> Iterator[sqlite3.Connection]:
    """A SQLite file with the settings of the store: a log that is synced at each commit."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        yield connection
    finally:
        connection.close()


def sqlite_adbc(url: str, path: Path) -> Done:
    """ADBC's ingest into a bare table of a SQLite file."""
    with sqlite_file(file_of(url)) as connection:
        connection.execute(f"CREATE TABLE bare ({', '.join(NAMES)})")
    with (
        adbc_driver_sqlite.dbapi.connect(str(file_of(url))) as connection,
        connection.cursor() as cursor,
    ):
        clock = Clock()
        rows = cursor.adbc_ingest("bare", _reader(path), mode="append")
        connection.commit()
        return rows, clock()


def sqlite_executemany(url: str, path: Path) -> Done:
    """sqlite3's executemany into a bare table, then the index; times as numbers."""
    with sqlite_file(file_of(url)) as connection:
        connection.execute(f"CREATE TABLE bare ({', '.join(NAMES)})")
        insert = f"INSERT INTO bare VALUES ({', '.join('?' * len(NAMES))})"  # noqa: S608 - our names
        clock = Clock()
        connection.execute("BEGIN")
        count = 0
        for batch in plain_batches(path):
            columns = [
                (c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c).to_pylist()
                for c in batch.columns
            ]
            connection.executemany(insert, zip(*columns, strict=True))
            count += batch.num_rows
        connection.execute(INDEX)
        connection.execute("COMMIT")
        return count, clock()


def pandas_sqlite(url: str, path: Path) -> Done:
    """pandas' to_sql into a SQLite file, as it comes."""
    with sqlite_file(file_of(url)):
        pass
    return _pandas(url, path, PYTHON_ROWS)


def file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


PEERS: dict[str, Callable[[str, Path], Done | Awaitable[Done]]] = {
    "copy_then_index": copy_then_index,
    "adbc_indexed": adbc_indexed,
    "adbc_primary_key": adbc_primary_key,
    "server_copy": server_copy,
    "server_copy_then_index": server_copy_then_index,
    "copy_records": copy_records,
    "insert_list": insert_list,
    "insert_values": insert_values,
    "pandas_postgresql": pandas_postgresql,
    "pandas_multi": pandas_multi,
    "copy_beside": copy_beside,
    "sqlite_adbc": sqlite_adbc,
    "sqlite_executemany": sqlite_executemany,
    "pandas_sqlite": pandas_sqlite,
}
"""By name: a function of a database's URL and a file, of which the slow ones take the first rows
only."""
