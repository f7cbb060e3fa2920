"""The engine and who owns it: connections checked out, transactions begun and brought to an end.

:meth:`Database.transaction` commits at its
end or rolls back; neither can be torn in two by a cancellation: an answer to a COMMIT that was
sent is waited for, and a rollback is finished before the cancellation goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
)
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, Pool, QueuePool, StaticPool

from featurestore.errors import (
    DefinitionError,
    FeatureStoreError,
    OverloadedError,
    StoreUnavailableError,
)
from featurestore.storage import forks
from featurestore.storage.address import (
    create_database_engine,
    is_in_memory,
    label_of,
    resolve_url,
)
from featurestore.storage.direct import on_driver
from featurestore.storage.faults import commit_unanswered, translated
from featurestore.storage.limits import DEFAULT_LIMITS, Limits
from featurestore.storage.session import Session
from featurestore.storage.waiting import FINISH_SECONDS, answered, opened, uninterrupted
from featurestore.storage.watchdog import Watchdog

if TYPE_CHECKING:
    from featurestore.storage.dialect import Dialect, Found, Lookups

T = TypeVar("T")


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
        self.closed = False
        self._parents_pool: Pool | None = None
        self._begin(
            engine if engine is not None else create_database_engine(resolve_url(url), limits)
        )

    def _begin(self, engine: AsyncEngine) -> None:
        if not isinstance(engine, AsyncEngine):
            raise DefinitionError("engine must be a SQLAlchemy AsyncEngine (create_async_engine).")
        self.engine = engine
        self.dialect = _dialect(engine, self.owned)
        self.watchdog = Watchdog(self.dialect.interrupt, self.dialect.terminate)
        self.label = label_of(engine.url)
        # One connection for all, which SQLAlchemy hands to several at a time.
        shared = isinstance(engine.pool, StaticPool)
        self._shared = asyncio.Lock() if shared else None
        # SQLite has one writer at a time: waiting here is cheaper and fairer than its busy loop.
        self._writer = asyncio.Lock() if self.dialect.single_writer else None
        self._used = False

    def begin_anew(self) -> None:
        """In a forked process: no connection, lock or timer of the parent is used any more.

        A borrowed engine stays, and with connections of the parent it is refused: it is for its
        owner to begin it anew. So is a database in memory, which the parent has.
        """
        forks.keep(vars(self).copy(), self.engine.pool)
        engine, in_use = self.engine, self._has_connections()
        if self.dialect.single_writer and self.pool_in_use:
            forks.sqlite_at_work()
        if self.owned:
            engine = create_database_engine(engine.url, self.limits)
        kept_back = in_use and (not self.owned or is_in_memory(engine.url))
        self._parents_pool = engine.pool if kept_back else None
        self._begin(engine)

    def _has_connections(self) -> bool:
        pool = self.engine.pool
        if isinstance(pool, NullPool):
            return False
        if isinstance(pool, QueuePool):
            return pool.checkedin() + pool.checkedout() > 0
        return self._used

    async def _check_fork(self) -> None:
        if self.dialect.single_writer and forks.parent_had_files():
            # In a forked process alone: it looks at the disk.
            await asyncio.to_thread(forks.check_file, self.engine.url.database or "")
        if self._parents_pool is None or self._parents_pool is not self.engine.pool:
            return
        if self.owned:
            raise FeatureStoreError(
                f"{self.label} is a database in memory, of the process that this one was forked "
                f"from: make another store here, or give the first a file or a server."
            )
        raise FeatureStoreError(
            f"The engine that the store on {self.label} was given has connections of the process "
            f"that this one was forked from. Make an engine and a store here, or call "
            f"engine.sync_engine.dispose(close=False) here first."
        )

    async def close(self) -> None:
        """Close all connections of an engine made here; leave a borrowed one alone.

        Calls under way go on to their end, and close their connections then.
        """
        if self.owned:
            self.closed = True
            self.watchdog.close()
            await uninterrupted(self.engine.dispose())

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A connection without a transaction: for single statements that read."""
        if self._shared is None:
            async with self._session() as session:
                yield session
        else:
            busy = (
                f"{self.label} has one connection, which others have used for "
                f"{self.limits.wait_seconds:g} seconds; try again later, or give the engine a pool."
            )
            async with self._turn(self._shared, busy), self._session() as session:
                yield session

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        await self._check_fork()
        self._used = True
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
        return int(getattr(self.engine.pool, "size", lambda: DEFAULT_LIMITS.connections)())

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
        self.watchdog.begin(driver, seconds)
        try:
            found = await self.dialect.find_online(driver, lookups, keys)
        except Exception as error:
            if not self.watchdog.end(driver):
                raise
            raise StoreUnavailableError(
                f"{self.label} gave no answer to a read within {seconds:g} seconds. Trying again "
                f"may help."
            ) from error
        except BaseException:
            self.watchdog.end(driver)
            raise
        self.watchdog.end(driver)
        return found

    async def is_usable(self, driver: Any) -> bool:
        """Whether a connection on which a call failed may be given to others."""
        alive = await self.dialect.is_alive(driver)
        return alive and not self.dialect.in_transaction(driver)

    @asynccontextmanager
    async def turn_to_write(self) -> AsyncIterator[None]:
        """The only writer for as long as it is open, on a database that has one at a time; it is
        waited for as long as the limits say."""
        if self._writer is None:
            yield
            return
        busy = (
            f"Another call has been writing to {self.label} for {self.limits.wait_seconds:g} "
            f"seconds, and SQLite has one writer at a time: nothing was written; try again later."
        )
        async with self._turn(self._writer, busy):
            yield

    @asynccontextmanager
    async def _turn(self, lock: asyncio.Lock, busy: str) -> AsyncIterator[None]:
        """A lock, waited for as long as the limits say."""
        try:
            async with asyncio.timeout(self.limits.wait_seconds if lock.locked() else None):
                await lock.acquire()
        except TimeoutError:
            raise OverloadedError(busy) from None
        try:
            yield
        finally:
            lock.release()

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
