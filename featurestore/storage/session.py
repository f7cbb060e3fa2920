"""The session that every call runs on: one connection at work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncTransaction

from featurestore.errors import FeatureStoreError, StoreUnavailableError
from featurestore.storage.dialect import compiled
from featurestore.storage.faults import translated
from featurestore.storage.waiting import uninterrupted

if TYPE_CHECKING:
    from featurestore.storage.dialect import Dialect, Found, Lookups, Types
    from featurestore.storage.push import Pushed, PushPlan, Rows
    from featurestore.storage.queries import UserQuery

T = TypeVar("T")


class Session:
    """One connection at work: Core statements, raw reads, bulk inserts.

    Statements of several tasks are run one after the other. ``dialect`` has what differs between
    the databases. ``nesting`` is held by what changes the transaction for a while: savepoints of
    several tasks do not overlap.
    """

    def __init__(
        self, connection: AsyncConnection, driver: Any, dialect: Dialect, label: str
    ) -> None:
        self.connection = connection
        self.driver = driver
        self.dialect = dialect
        self.label = label
        self._lock = asyncio.Lock()
        self.nesting = asyncio.Lock()
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

    def stream(
        self,
        statement: sa.sql.ClauseElement,
        parameters: Mapping[str, Any] | None = None,
        *,
        size: int,
    ) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
        """The rows of a query, ``size`` at a time, without holding them all."""
        return self._stream(*self.compile(statement, parameters), size)

    def stream_text(
        self, sql: str, values: Sequence[Any] = (), *, size: int
    ) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
        """The rows of a statement that :meth:`compile` gave, or of a user's own query, which must
        run inside :meth:`Dialect.read_only`."""
        return self._stream(sql, values, size)

    async def describe(self, sql: str) -> UserQuery:
        """The columns of a user's own query, and how to run it; see :meth:`Dialect.describe`."""
        async with self.alone():
            return await self.dialect.describe(self, sql)

    async def _stream(
        self, sql: str, values: Sequence[Any], size: int
    ) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
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
        async with self.nesting, self._savepoint():
            yield

    @asynccontextmanager
    async def _savepoint(self) -> AsyncIterator[None]:
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
