"""The engine, who owns it, and the sessions that every call runs on.

A :class:`Session` is one checked-out connection. :meth:`Database.transaction` commits at its
end or rolls back; neither can be torn in two by a cancellation: an answer to a COMMIT that was
sent is waited for, and a rollback is finished before the cancellation goes on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncTransaction,
    create_async_engine,
)
from sqlalchemy.pool import AsyncAdaptedQueuePool

from featurestore.errors import DefinitionError, FeatureStoreError, StoreUnavailableError
from featurestore.storage.dialect import compiled
from featurestore.storage.direct import on_driver
from featurestore.storage.faults import commit_unanswered, translated
from featurestore.storage.limits import Limits
from featurestore.storage.pool import Pool
from featurestore.storage.waiting import FINISH_SECONDS, answered, opened, uninterrupted
from featurestore.storage.watchdog import Watchdog

if TYPE_CHECKING:
    from featurestore.storage.dialect import Dialect, Found, Lookups, Types
    from featurestore.storage.push import Pushed, PushPlan, Rows

T = TypeVar("T")

DEFAULT_URL = "sqlite+aiosqlite:///featurestore.db"
POOL_SIZE = 10
"""Connections of an engine made here. None beyond: opening one costs more than a short wait."""

DEFAULT_LIMITS = Limits()

_DRIVERS = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
}


def resolve_url(url: str | sa.URL | None) -> sa.URL:
    """The URL with an async driver: ``url``, else ``FEATURESTORE_URL``, else SQLite here."""
    try:
        parsed = make_url(url or os.environ.get("FEATURESTORE_URL") or DEFAULT_URL)
    except (ArgumentError, ValueError) as error:
        raise DefinitionError(
            "The database URL cannot be read; it has the form "
            "postgresql://user:password@host/database or sqlite:///file.db."
        ) from error
    driver = _DRIVERS.get(parsed.drivername, parsed.drivername)
    if driver not in _DRIVERS.values():
        raise DefinitionError(
            f"{parsed.drivername!r} is no driver that featurestore runs on; use postgresql:// "
            f"(asyncpg) or sqlite:// (aiosqlite)."
        )
    parsed = parsed.set(drivername=driver)
    if "sslmode" in parsed.query:  # libpq's word for what asyncpg calls ssl
        parsed = parsed.update_query_dict({"ssl": parsed.query["sslmode"]})
        parsed = parsed.difference_update_query(["sslmode"])
    return parsed


def _create_engine(url: sa.URL, limits: Limits) -> AsyncEngine:
    sqlite = url.get_backend_name() == "sqlite"
    # A database in memory lives in its one connection, so that one is handed around.
    in_memory = sqlite and url.database in (None, "", ":memory:")
    open_connection: Callable[..., Any]
    statements: dict[str, int] = {}
    if sqlite:
        from featurestore.storage.sqlite_wire import open_connection
    else:
        from featurestore.storage.postgresql_wire import open_connection, statement_options

        statements = statement_options(url)
    try:
        return create_async_engine(
            url,
            connect_args={"async_creator_fn": open_connection, **statements},
            poolclass=Pool,
            pool_use_lifo=True,  # a few connections in use are faster than many in turn
            pool_size=1 if in_memory else POOL_SIZE,
            max_overflow=0,
            pool_timeout=limits.wait_seconds,
            # Transactions are ended where they began; a reset here would be one more round trip.
            pool_reset_on_return=None,
        )
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise DefinitionError(f"The database URL is not understood: {error}") from error


def label_of(url: sa.URL) -> str:
    """A database's name for people: its URL without what is secret in it."""
    secrets = {name: "***" for name in url.query if "pass" in name}
    return url.update_query_dict(secrets).render_as_string(hide_password=True)


class Session:
    """One connection at work: Core statements, raw reads, bulk inserts.

    Statements of several tasks are run one after the other. ``dialect`` has what differs between
    the databases.
    """

    def __init__(
        self, connection: AsyncConnection, driver: Any, dialect: Dialect, label: str
    ) -> None:
        self.connection = connection
        self.driver = driver
        self.dialect = dialect
        self.label = label
        self._lock = asyncio.Lock()
        self._temporary = 0
        self._broken = False

    def temporary_name(self) -> str:
        """A name for a temporary table that no other one of the session has."""
        self._temporary += 1
        return f"featurestore_temporary_{self._temporary}"

    async def execute(self, statement: sa.Executable, parameters: Any = None) -> Any:
        """Run a Core statement and return SQLAlchemy's buffered result."""
        async with self.alone():
            work = self.connection.execute(statement, parameters)
            return await self.dialect.finish(self.driver, work)

    async def run_sync(self, work: Callable[[sa.Connection], T]) -> T:
        """Run code written for SQLAlchemy's synchronous connection, as Alembic's is."""
        async with self.alone():
            return await self.dialect.finish(self.driver, self.connection.run_sync(work))

    async def insert(
        self, table: sa.Table, batches: AsyncIterator[pa.RecordBatch], types: Types
    ) -> int:
        """Bulk-insert record batches whose columns are named as the table's; the row count."""
        async with self.alone():
            return await self.dialect.insert(self, table, batches, types)

    async def rows(
        self, statement: sa.sql.ClauseElement, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[Sequence[Any]]:
        """All rows of a query as the driver gives them: values are not processed."""
        return await self.raw_rows(*self.compile(statement, parameters))

    async def raw_rows(self, sql: str, values: Sequence[Any]) -> Sequence[Sequence[Any]]:
        """All rows of a statement that :meth:`compile` gave."""
        async with self.alone():
            return await self.dialect.rows(self, sql, values)

    async def find_online(self, lookups: Lookups, keys: Sequence[Sequence[Any]]) -> Found:
        """Look up online rows, all as of one moment; see :meth:`Dialect.find_online`."""
        async with self.alone():
            return await self.dialect.find_online(self.driver, lookups, keys)

    async def push(self, plan: PushPlan, callers: Sequence[Rows], *, due: bool) -> Pushed:
        """Write rows of callers within the transaction; see :meth:`Dialect.push`."""
        async with self.alone():
            return await self.dialect.push(self.driver, plan, callers, due=due, begun=True)

    async def stream(
        self,
        statement: sa.sql.ClauseElement,
        parameters: Mapping[str, Any] | None = None,
        *,
        size: int,
    ) -> AsyncIterator[Sequence[Sequence[Any]]]:
        """The rows of a query, ``size`` at a time, without holding them all."""
        sql, values = self.compile(statement, parameters)
        chunks = self.dialect.stream(self, sql, values, size)
        try:
            while True:
                async with self.alone():
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            await chunks.aclose()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """The connection to oneself, errors of its driver translated."""
        async with self._lock:
            try:
                with translated(self.label):
                    yield
            except BaseException:
                # PostgreSQL answers COMMIT with a rollback then, and calls that no error.
                self._broken = self.dialect.failure_ends_transaction
                raise

    def check_open(self) -> None:
        """Raise :class:`StoreUnavailableError` where the transaction is gone: a call that failed
        or was cancelled, or a lost connection, has rolled it back."""
        if self._broken or not self.dialect.in_transaction(self.driver):
            raise StoreUnavailableError(
                f"The transaction on {self.label} was rolled back when a call in it broke off; "
                f"nothing of it was kept. Repeat it."
            )

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """What fails inside is taken back, the transaction around it goes on."""
        self.check_open()

        async def begin() -> AsyncTransaction:
            return await self.connection.begin_nested()

        async with self.alone():
            nested = await self.dialect.finish(self.driver, begin())
        try:
            yield
        except BaseException:
            try:
                with translated(self.label):
                    await uninterrupted(nested.rollback())
            except FeatureStoreError:
                self._broken = True  # what broke it is the error to tell
            else:
                self._broken = False
            raise
        with translated(self.label):
            await uninterrupted(nested.commit())

    def compile(
        self, statement: sa.sql.ClauseElement, parameters: Mapping[str, Any] | None = None
    ) -> tuple[str, list[Any]]:
        """A statement as the driver takes it: its text, and its values by position."""
        return compiled(statement, self.connection.dialect, parameters)

    def text(self, statement: sa.sql.ClauseElement) -> str:
        """A statement's text alone, to be kept and run with values of each call."""
        return str(statement.compile(dialect=self.connection.dialect))


class Database:
    """The engine and its owner. Made from a URL it is closed here; given, it is borrowed."""

    def __init__(
        self,
        url: str | sa.URL | None,
        engine: AsyncEngine | None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        if url is not None and engine is not None:
            raise DefinitionError("Give the store a url or an engine, not both.")
        self.owned = engine is None
        self.limits = limits
        self.engine = engine if engine is not None else _create_engine(resolve_url(url), limits)
        if not isinstance(self.engine, AsyncEngine):
            raise DefinitionError("engine must be a SQLAlchemy AsyncEngine (create_async_engine).")
        self.dialect = _dialect(self.engine, self.owned)
        self.closed = False
        self._watchdog = Watchdog(self.dialect.interrupt, self.dialect.terminate)
        self.label = label_of(self.engine.url)
        # SQLite has one writer at a time: waiting here is cheaper and fairer than its busy loop.
        self._writer = asyncio.Lock() if self.dialect.single_writer else None

    async def close(self) -> None:
        """Close all connections of an engine made here; leave a borrowed one alone.

        Calls under way go on to their end, and close their connections then.
        """
        if self.owned:
            self.closed = True
            self._watchdog.close()
            await uninterrupted(self.engine.dispose())

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A connection without a transaction: for single statements that read."""
        with translated(self.label):
            connection = await self._connect()
        try:
            raw = await connection.get_raw_connection()
            session = Session(connection, raw.driver_connection, self.dialect, self.label)
            with translated(self.label):
                await self.dialect.prepare(session.driver)
            yield session
        except BaseException:
            await uninterrupted(self._give_back(connection, failed=True))
            raise
        if self.owned and not self.closed and not connection.in_transaction():
            await connection.close()  # no more than putting it back: nothing to interrupt
        else:
            await uninterrupted(self._give_back(connection))

    async def _connect(self) -> AsyncConnection:
        pool = self.engine.pool
        if self.owned and isinstance(pool, AsyncAdaptedQueuePool) and pool.checkedin():
            return await self.engine.connect()  # an idle one, for which nothing is waited
        return await opened(_started(self.engine), AsyncConnection.close)

    async def _give_back(self, connection: AsyncConnection, *, failed: bool = False) -> None:
        """Return a connection to its pool as it came; one that is broken or hangs is dropped."""
        try:
            async with asyncio.timeout(FINISH_SECONDS / 2):
                await connection.rollback()
                if not connection.invalidated:
                    driver = (await connection.get_raw_connection()).driver_connection
                    if self.closed or (failed and not await self.is_usable(driver)):
                        # SQLAlchemy does not see what breaks beneath it.
                        await connection.invalidate()
                    elif not self.owned:
                        await self.dialect.release(driver)
        except (TimeoutError, SQLAlchemyError, OSError):
            await connection.invalidate()
        finally:
            await connection.close()

    @property
    def pool_size(self) -> int:
        """How many connections the engine's pool holds at the most, as far as it says."""
        return int(getattr(self.engine.pool, "size", lambda: POOL_SIZE)())

    @property
    def pool_in_use(self) -> int:
        """How many of them are in use."""
        return int(getattr(self.engine.pool, "checkedout", int)())

    async def on_driver(self, work: Callable[[Any], Awaitable[T]], *, again: bool = False) -> T:
        """Run ``work`` with a driver's connection; see :mod:`featurestore.storage.direct`."""
        return await on_driver(self, work, again=again)

    async def find_online(self, lookups: Lookups, keys: Sequence[Sequence[Any]]) -> Found:
        """Look up online rows in one round trip; see :meth:`Dialect.find_online`."""
        return await on_driver(self, lambda driver: self.find_on(driver, lookups, keys), again=True)

    async def find_on(self, driver: Any, lookups: Lookups, keys: Sequence[Sequence[Any]]) -> Found:
        """The same on a connection that is there, given up where the answer takes too long."""
        seconds = self.limits.answer_seconds + len(keys) / 1_000
        self._watchdog.begin(driver, seconds)
        try:
            found = await self.dialect.find_online(driver, lookups, keys)
        except Exception as error:
            if not self._watchdog.end(driver):
                raise
            raise StoreUnavailableError(
                f"{self.label} gave no answer to a read within {seconds:g} seconds. Trying again "
                f"may help."
            ) from error
        except BaseException:
            self._watchdog.end(driver)
            raise
        self._watchdog.end(driver)
        return found

    async def is_usable(self, driver: Any) -> bool:
        """Whether a connection on which a call failed may be given to others."""
        alive = await self.dialect.is_alive(driver)
        return alive and not self.dialect.in_transaction(driver)

    def turn_to_write(self) -> AbstractAsyncContextManager[None]:
        """The only writer for as long as it is open, on a database that has one at a time."""
        return nullcontext() if self._writer is None else self._writer

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        """A transaction that commits at the end and rolls back on any error."""
        begin = self.dialect.begin
        if self._writer is not None:
            async with self._writer, self._transaction(begin) as session:
                yield session
        else:
            async with self._transaction(begin) as session:
                yield session

    @asynccontextmanager
    async def snapshot(self, tables: Sequence[sa.Table] = ()) -> AsyncIterator[Session]:
        """A transaction for reading, all of whose statements see one state; ``tables`` keep their
        shape until its end."""
        async with self._transaction(lambda s: self.dialect.begin_snapshot(s, tables)) as session:
            yield session

    @asynccontextmanager
    async def _transaction(
        self, begin: Callable[[Session], Awaitable[None]]
    ) -> AsyncIterator[Session]:
        async with self.session() as session:
            try:
                with translated(self.label):
                    await begin(session)
                yield session
                session.check_open()
            except BaseException:
                await uninterrupted(_abandon(session.connection))
                raise
            await self._commit(session)

    async def _commit(self, session: Session) -> None:
        try:
            with translated(self.label):
                # Cancelled or not: the rows are durable or not, and the answer says which.
                await answered(session.connection.commit(), seconds=self.dialect.commit_seconds)
        except StoreUnavailableError as error:
            if session.dialect.is_closed(session.driver) or isinstance(
                error.__cause__, TimeoutError
            ):
                raise commit_unanswered(self.label) from error.__cause__
            raise


async def _started(engine: AsyncEngine) -> AsyncConnection:
    return await engine.connect()


async def _abandon(connection: AsyncConnection) -> None:
    """Roll back; a connection that cannot even do that is thrown away."""
    try:
        async with asyncio.timeout(FINISH_SECONDS / 2):
            await connection.rollback()
    except (TimeoutError, SQLAlchemyError, OSError):
        await connection.invalidate()
    except Exception as error:
        await connection.invalidate()
        if not type(error).__module__.startswith("asyncpg"):
            raise


def _dialect(engine: AsyncEngine, owned: bool) -> Dialect:
    match (engine.dialect.name, engine.dialect.driver):
        case ("postgresql", "asyncpg"):
            from featurestore.storage.postgresql import PostgreSQL

            return PostgreSQL(engine.dialect)
        case ("sqlite", "aiosqlite"):
            from featurestore.storage.sqlite import SQLite

            return SQLite(engine.dialect, owned=owned)
        case (name, driver):
            raise DefinitionError(
                f"An engine of {name}+{driver} is not supported; use postgresql+asyncpg or "
                f"sqlite+aiosqlite."
            )
