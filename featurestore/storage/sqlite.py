"""SQLite through aiosqlite: the embedded default.

Timestamps are kept as integers of microseconds since 1970-01-01 UTC, dates as days, decimals
and JSON and arrays as text. REAL columns cannot hold NaN: SQLite stores null. A table's arrival
is its row number, so loads append, and undoing one is a range delete.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from featurestore.storage import sqlite_online, sqlite_push
from featurestore.storage.dialect import Found, Lookups, Match, Types
from featurestore.storage.extracting import arrow_batches
from featurestore.storage.forks import opened_file
from featurestore.storage.queries import UserQuery, without_end
from featurestore.storage.rule import keys_written, settle_conflict
from featurestore.storage.sqlite_values import arrow, decode, encode, physical
from featurestore.storage.sqlite_wire import BUSY_MILLISECONDS, interrupt, patiently, run
from featurestore.storage.tables import (
    ARRIVAL,
    SINGLE,
    counter,
    newest_first,
)
from featurestore.storage.waiting import stoppable, uninterrupted
from featurestore.types import (
    ArrayType,
    DecimalType,
    FeatureType,
    Int32,
)

if TYPE_CHECKING:
    from featurestore.storage.push import Pushed, PushPlan, Rows
    from featurestore.storage.session import Session

T = TypeVar("T")

TEMPORARY_KIB = 32 * 1024
"""Memory for temporary tables, the entity rows of a training set say; more go into a file."""

INSERT_ROWS = 16_384
"""Rows per executemany: large enough to be rid of the call's cost, small enough to interrupt."""

_TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    "bool": sa.Integer(),
    "int32": sa.Integer(),
    "int64": sa.Integer(),
    "float32": sa.REAL(),
    "float64": sa.REAL(),
    "string": sa.Text(),
    "bytes": sa.BLOB(),
    "timestamp": sa.Integer(),
    "date": sa.Integer(),
    "json": sa.Text(),
}


_UNLISTED_WORDS = ("nothing", "returning")
"""Keywords of SQLite's own that SQLAlchemy leaves unquoted (https://www.sqlite.org/lang_keywords.html
lists them, and of these CREATE TABLE refuses the two)."""


def _quoting(sql: sa.Dialect) -> sa.Dialect:
    """A dialect of SQLAlchemy's that quotes all that SQLite wants quoted."""
    preparer = sql.identifier_preparer
    preparer.reserved_words = {*preparer.reserved_words, *_UNLISTED_WORDS}
    return sql


_QMARK = _quoting(sqlite.dialect(paramstyle="qmark"))


class SQLite:
    """The dialect of SQLite 3.35 and later.

    Connections of an engine made here (``owned``) are set up once and stay so; a borrowed one
    is given back as it came.
    """

    single_writer = True
    sorts_rows = False
    keeps_temporary_tables = True
    notifies = False
    failure_ends_transaction = False
    commit_seconds: float | None = None

    def __init__(self, sql: sa.Dialect, *, owned: bool) -> None:
        self._sql = _quoting(sql)
        self._owned = owned
        self._prepared: WeakSet[Any] = WeakSet()
        self._borrowed: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()

    async def prepare(self, driver: Any) -> None:
        if driver in self._prepared:
            return

        def settle(raw: sqlite3.Connection) -> None:
            if driver not in self._borrowed:
                opened_file(driver, raw.execute("PRAGMA database_list").fetchone()[2])
            self._borrowed[driver] = raw.isolation_level
            # The default mode of sqlite3 begins and commits by itself in some statements.
            raw.isolation_level = None
            raw.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")
            if self._owned:
                # Readers go on while one writes; FULL keeps a commit through a power cut.
                raw.execute("PRAGMA journal_mode=WAL")
                raw.execute("PRAGMA synchronous=FULL")
                # In memory, building an index would hold all of its entries; a cache is as fast.
                raw.execute("PRAGMA temp_store=FILE")
                raw.execute(f"PRAGMA temp.cache_size=-{TEMPORARY_KIB}")

        await patiently(lambda: run(driver, settle))
        if self._owned:
            self._prepared.add(driver)

    async def release(self, driver: Any) -> None:
        level = self._borrowed.get(driver, "")
        await run(driver, lambda raw: setattr(raw, "isolation_level", level))

    async def is_alive(self, driver: Any) -> bool:
        return True

    def is_closed(self, driver: Any) -> bool:
        return False  # there is no other side that could be lost

    async def interrupt(self, driver: Any) -> None:
        await interrupt(driver)

    def terminate(self, driver: Any) -> None:
        return None  # its thread ends what it does when it is interrupted

    async def finish(self, driver: Any, work: Coroutine[Any, Any, T]) -> T:
        # SQLAlchemy drops a connection whose call is cancelled, but its thread goes on, and its
        # locks stay for as long as anybody holds the traceback: so the call is brought to an end.
        return await stoppable(work, partial(interrupt, driver))

    def in_transaction(self, driver: Any) -> bool:
        return bool(driver.in_transaction)

    async def begin_snapshot(self, session: Session, tables: Sequence[sa.Table]) -> None:
        await self._begin(session, "BEGIN")

    async def begin(self, session: Session) -> None:
        # A transaction that begins by reading cannot always become a writer: begin as one.
        await self._begin(session, "BEGIN IMMEDIATE")

    async def _begins_by_itself(self, session: Session) -> bool:
        """Whether a borrowed engine has begun with its first statement, by an event of its own."""
        await self.finish(session.driver, session.connection.exec_driver_sql("SELECT 1"))
        return self.in_transaction(session.driver)

    async def _begin(self, session: Session, statement: str) -> None:
        if not self._owned and await self._begins_by_itself(session):
            return
        # Through SQLAlchemy, which then knows that there is something to commit.
        await patiently(
            lambda: self.finish(session.driver, session.connection.exec_driver_sql(statement))
        )

    async def lock_view(self, session: Session, view_id: int, *, exclusive: bool) -> None:
        return None  # BEGIN IMMEDIATE keeps all other writers out

    async def lock_history(self, session: Session, history: sa.Table) -> None:
        return None

    async def lock_name(self, session: Session, name: str) -> None:
        return None

    async def now(self, session: Session) -> dt.datetime:
        return dt.datetime.now(dt.UTC)  # SQLite's clock is this machine's, cut to milliseconds

    async def begin_load(self, session: Session, index: sa.Index) -> tuple[dt.datetime, bool]:
        sql = "SELECT count(*) FROM sqlite_master WHERE type = 'index' AND name = ?"
        rows = await self.rows(session, sql, [index.name])
        return await self.now(session), not rows[0][0]

    async def allocate(self, session: Session, blocks: int) -> int:
        statement = (
            counter.update()
            .where(counter.c.name == "arrival")
            .values(value=counter.c.value + blocks)
            .returning(counter.c.value)
        )
        return int((await session.execute(statement)).scalar_one()) - blocks

    async def insert(
        self,
        session: Session,
        table: sa.Table,
        batches: AsyncIterator[pa.RecordBatch],
        types: Types,
    ) -> int:
        rows = 0
        async for batch in batches:
            await _write(session.driver, table.insert(), table, batch, types)
            rows += batch.num_rows
        return rows

    async def rows(
        self, session: Session, sql: str, values: Sequence[Any]
    ) -> Sequence[Sequence[Any]]:
        return await run(session.driver, lambda raw: raw.execute(sql, values).fetchall())

    async def stream(
        self, session: Session, sql: str, values: Sequence[Any], size: int
    ) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
        cursor = await run(session.driver, lambda raw: raw.execute(sql, values))
        try:
            while chunk := await run(session.driver, lambda raw: cursor.fetchmany(size)):
                yield chunk
        finally:
            await run(session.driver, lambda raw: cursor.close())

    def rows_inline(self, types: Types) -> sa.FromClause | None:
        return None

    def inline_values(self, rows: pa.Table, types: Types) -> dict[str, Sequence[Any]]:
        return {}  # never asked for: rows_inline has none

    async def extract(
        self,
        session: Session,
        table: sa.Table,
        types: Types,
        where: Sequence[sa.ColumnElement[bool]],
        mark: str,
        *,
        inside: bool,
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        # Not by ADBC: a second SQLite library in one process would drop the first one's locks.
        query = sa.select(*(table.c[name] for name in types)).where(*where).prefix_with(mark)
        async with aclosing(arrow_batches(session, query, types)) as batches:
            async for batch in batches:
                yield batch

    async def estimate_rows(self, session: Session, table: sa.Table) -> int:
        # A count goes through an index, some 10 ms for a million rows.
        query = sa.select(sa.func.count()).select_from(table)
        return int((await session.rows(query))[0][0])

    async def describe(self, session: Session, sql: str) -> UserQuery:
        def names(raw: sqlite3.Connection) -> UserQuery:
            query = without_end(sql)
            cursor = raw.execute(f"SELECT * FROM (\n{query}\n) LIMIT 0")  # noqa: S608 - the user's own
            return UserQuery(sql, [(name, None) for name, *_ in cursor.description])

        return await run(session.driver, names)

    @asynccontextmanager
    async def read_only(self, session: Session) -> AsyncIterator[None]:
        def switch(raw: sqlite3.Connection, value: str) -> None:
            raw.execute(f"PRAGMA query_only={value}")

        async with session.nesting:
            try:
                await run(session.driver, lambda raw: switch(raw, "ON"))
                yield
            finally:
                # The connection is used again, by writers too.
                await uninterrupted(run(session.driver, lambda raw: switch(raw, "OFF")))

    async def analyze(self, session: Session, table: sa.Table) -> None:
        return None  # every query here has one index to go by

    def column_type(self, kind: FeatureType) -> sa.types.TypeEngine[Any]:
        if isinstance(kind, DecimalType | ArrayType):
            return sa.Text()
        return _TYPES[kind.name]

    def bind(self, kind: FeatureType, value: Any) -> sa.ColumnElement[Any]:
        return sa.bindparam(None, encode(kind, value), type_=self.column_type(kind), unique=True)

    def within(
        self, event: sa.ColumnElement[Any], at: sa.ColumnElement[Any], ttl: dt.timedelta
    ) -> sa.ColumnElement[bool]:
        return event >= at - ttl // dt.timedelta(microseconds=1)

    def read(self, kind: FeatureType, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        return column

    def decode(self, kind: FeatureType, value: Any) -> Any:
        return decode(kind, value)

    def arrow(self, kind: FeatureType, values: Sequence[Any]) -> pa.Array:
        return arrow(kind, values)

    def join_latest(
        self, left: sa.FromClause, history: sa.Table, match: Match
    ) -> tuple[sa.FromClause, sa.FromClause]:
        # The arrival is the row number and ends every index entry: the scalar subquery is one
        # descent into the index, the join one into the table.
        rows, best = history.alias(), history.alias()
        newest = (
            sa.select(rows.c[ARRIVAL])
            .where(*match(rows))
            .order_by(*newest_first(rows))
            .limit(1)
            .correlate_except(rows)
            .scalar_subquery()
        )
        return left.outerjoin(best, best.c[ARRIVAL] == newest), best

    def stage_online(
        self, session: Session, online: sa.Table, keys: Mapping[str, FeatureType], types: Types
    ) -> Stage:
        return Stage(session, online, keys, types)

    def keys_arrived(
        self, history: sa.Table, keys: Mapping[str, FeatureType], rows: pa.Table
    ) -> sa.Select[tuple[Any, ...]]:
        arrivals = rows.column(ARRIVAL)
        return keys_written(history, list(keys), arrivals[0].as_py(), arrivals[-1].as_py())

    async def find_online(
        self,
        driver: Any,
        lookups: Lookups,
        keys: Sequence[Sequence[Any]],
    ) -> Found:
        return await sqlite_online.find(driver, self._sql, lookups, keys)

    async def push(
        self,
        driver: Any,
        plan: PushPlan,
        callers: Sequence[Rows],
        *,
        due: bool,
        begun: bool,
    ) -> Pushed:
        return await sqlite_push.push(self._sql, driver, plan, callers, begun=begun)

    def upsert(self, table: sa.Table) -> Any:
        return sqlite.insert(table)


async def _write(
    driver: Any, statement: Any, table: sa.Table, batch: pa.RecordBatch, types: Types
) -> None:
    """Run an INSERT of ``types`` for each row of a batch."""
    # SQLAlchemy writes the columns in the table's order, so the values come in it too.
    types = {column.name: types[column.name] for column in table.c if column.name in types}
    statement = statement.values({name: sa.bindparam(name) for name in types})
    sql = str(statement.compile(dialect=_QMARK))
    for start in range(0, batch.num_rows, INSERT_ROWS):
        piece = batch.slice(start, INSERT_ROWS)
        await run(driver, partial(_insert, sql=sql, batch=piece, types=types))


class Stage:
    """The newest rows of a load's keys, on their way into the online table: written at once, as
    SQLite has one writer."""

    def __init__(
        self, session: Session, online: sa.Table, keys: Mapping[str, FeatureType], types: Types
    ) -> None:
        self._session = session
        self._online = online
        self._keys = keys
        self._types = dict(types) if keys else {SINGLE: Int32, **types}

    async def fill(self, rows: pa.Table) -> None:
        await self.add(rows)

    async def add(self, rows: pa.Table) -> None:
        statement = settle_conflict(
            sqlite.insert(self._online), self._online, self._keys, replace=False
        )
        if not self._keys:
            zeros = pa.nulls(rows.num_rows, pa.int32()).fill_null(0)
            rows = rows.append_column(SINGLE, zeros)
        async with self._session.alone():
            for batch in rows.to_batches():
                await _write(self._session.driver, statement, self._online, batch, self._types)

    async def finish(self) -> None:
        """All is there already."""


def _insert(raw: sqlite3.Connection, *, sql: str, batch: pa.RecordBatch, types: Types) -> None:
    columns = [physical(kind, batch.column(name)) for name, kind in types.items()]
    raw.executemany(sql, zip(*columns, strict=True))
