"""What `online.py` compares with: the same reads and writes, as one writes them by hand.

Each way is a context: its connections are open before the clock runs. What it gives takes a key
(or keys) and answers with a dict of the key and its features (or a list of them). No peer checks
a ttl, tells why a value is missing, or knows what else is being read at the moment.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import sqlalchemy as sa
from online_data import FEATURES, READ, SEVERAL, WRITTEN, bare, names_of
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import featurestore as fs
from featurestore.storage.limits import DEFAULT_LIMITS

Row = dict[str, Any]
Read = Callable[[int], Awaitable[Row]]
ReadMany = Callable[[Sequence[int]], Awaitable[list[Row]]]
Write = Callable[[int], Awaitable[None]]
Opened = AbstractAsyncContextManager

VALUES = [0.5] * len(FEATURES)


def _select(view: fs.FeatureView, condition: str) -> str:
    names = ", ".join(["driver_id", *names_of(view)])
    return f"SELECT {names} FROM {bare(view)} WHERE {condition}"  # noqa: S608 - our names


ONE = _select(READ, "driver_id = $1")


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def _pooled(url: str) -> AsyncIterator[asyncpg.Pool]:
    """asyncpg's pool as it comes, as large as the store's."""
    size = DEFAULT_LIMITS.connections
    async with asyncpg.create_pool(url, min_size=size, max_size=size) as pool:
        yield pool


# --- reads --------------------------------------------------------------------------------------


@asynccontextmanager
async def prepared(url: str) -> AsyncIterator[Read]:
    """A prepared statement on a connection of its own: as little as a read can cost."""
    async with _connected(url) as connection:
        statement = await connection.prepare(ONE)

        async def read(key: int) -> Row:
            return dict(await statement.fetchrow(key))

        yield read


@asynccontextmanager
async def pool(url: str) -> AsyncIterator[Read]:
    """`asyncpg.Pool.fetchrow`; the pool keeps its statements prepared by itself."""
    async with _pooled(url) as connections:

        async def read(key: int) -> Row:
            return dict(await connections.fetchrow(ONE, key))

        yield read


@asynccontextmanager
async def sqlalchemy(url: str) -> AsyncIterator[Read]:
    """A connection of SQLAlchemy's engine for each read, and a Core select, as it comes: with a
    transaction around."""
    async with _engine(url.replace("://", "+asyncpg://", 1)) as engine:
        yield _core_read(engine)


@asynccontextmanager
async def autocommit(url: str) -> AsyncIterator[Read]:
    """The same without the transaction: two round trips fewer."""
    async with _engine(url.replace("://", "+asyncpg://", 1)) as engine:
        yield _core_read(engine.execution_options(isolation_level="AUTOCOMMIT"))


@asynccontextmanager
async def aiosqlite(path: Path) -> AsyncIterator[Read]:
    """SQLAlchemy and aiosqlite, a connection of the engine for each read."""
    async with _engine(f"sqlite+aiosqlite:///{path}") as engine:
        yield _core_read(engine)


@asynccontextmanager
async def _engine(url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url, pool_size=DEFAULT_LIMITS.connections, max_overflow=0)
    try:
        yield engine
    finally:
        await engine.dispose()


def _core_read(engine: AsyncEngine) -> Read:
    table = sa.table(bare(READ), *(sa.column(name) for name in ["driver_id", *FEATURES]))
    query = sa.select(table).where(table.c.driver_id == sa.bindparam("key"))

    async def read(key: int) -> Row:
        async with engine.connect() as connection:
            found = await connection.execute(query, {"key": key})
            return dict(found.mappings().one())

    return read


@asynccontextmanager
async def any_of(url: str) -> AsyncIterator[ReadMany]:
    """`= ANY($1)`, prepared, its rows made into dicts; they come in the table's order."""
    async with _connected(url) as connection:
        statement = await connection.prepare(_select(READ, "driver_id = ANY($1)"))

        async def read(keys: Sequence[int]) -> list[Row]:
            return [dict(row) for row in await statement.fetch(keys)]

        yield read


@asynccontextmanager
async def one_by_one(url: str) -> AsyncIterator[Read]:
    """Five prepared statements, one after the other."""
    async with _connected(url) as connection:
        statements = [await connection.prepare(_select(view, "driver_id = $1")) for view in SEVERAL]

        async def read(key: int) -> Row:
            found: Row = {}
            for statement in statements:
                found.update(await statement.fetchrow(key))
            return found

        yield read


# --- writes -------------------------------------------------------------------------------------

_NAMES = ", ".join(["driver_id", "event_timestamp", *FEATURES])
_PLACES = ", ".join(f"${n}" for n in range(1, len(FEATURES) + 3))
_SET = ", ".join(f"{name} = excluded.{name}" for name in ["event_timestamp", *FEATURES])
_TABLE = bare(WRITTEN)

LEDGER = f"INSERT INTO {_TABLE}_ledger (row_count) VALUES (1) RETURNING id"  # noqa: S608
HISTORY = (
    f"INSERT INTO {_TABLE}_history ({_NAMES}, load_id)"  # noqa: S608
    f" VALUES ({_PLACES}, ${len(FEATURES) + 3})"
)
ONLINE = (
    f"INSERT INTO {_TABLE} ({_NAMES}) VALUES ({_PLACES})"  # noqa: S608
    f" ON CONFLICT (driver_id) DO UPDATE SET {_SET}"
    f" WHERE excluded.event_timestamp > {_TABLE}.event_timestamp"
)


async def _write(connection: Any, key: int) -> None:
    """Ledger, history and online in one transaction: five round trips, one sync of the log."""
    row = (key, dt.datetime.now(dt.UTC), *VALUES)
    async with connection.transaction():
        load_id = await connection.fetchval(LEDGER)
        await connection.execute(HISTORY, *row, load_id)
        await connection.execute(ONLINE, *row)


@asynccontextmanager
async def transaction_each(url: str) -> AsyncIterator[Write]:
    """A transaction for each row, on asyncpg's pool."""
    async with _pooled(url) as connections:

        async def write(key: int) -> None:
            async with connections.acquire() as connection:
                await _write(connection, key)

        yield write


@asynccontextmanager
async def transaction_alone(url: str) -> AsyncIterator[Write]:
    """The same on a connection of one's own."""
    async with _connected(url) as connection:

        async def write(key: int) -> None:
            await _write(connection, key)

        yield write
