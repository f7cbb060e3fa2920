"""SQLite through aiosqlite: the embedded default.

Timestamps are kept as integers of microseconds since 1970-01-01 UTC, dates as days, decimals
and JSON and arrays as text. REAL columns cannot hold NaN: SQLite stores null. A table's arrival
is its row number, so loads append, and undoing one is a range delete.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import decimal
import json
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import aiosqlite
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import OperationalError

from featurestore.storage.dialect import Found, FoundRow, Lookup, Lookups, Match, Types
from featurestore.storage.rule import keys_written, settle_conflict
from featurestore.storage.tables import (
    ARRIVAL,
    EVENT,
    SINGLE,
    counter,
    newest_first,
    project,
)
from featurestore.storage.waiting import bring_to_end, stoppable, uninterrupted
from featurestore.types import (
    EPOCH,
    ArrayType,
    Bool,
    Bytes,
    Date,
    DecimalType,
    FeatureType,
    Float32,
    Int32,
    Json,
    Timestamp,
    from_micros,
    micros,
)

if TYPE_CHECKING:
    from featurestore.storage.engine import Session

T = TypeVar("T")

BUSY_MILLISECONDS = 1_000
"""How long SQLite itself waits for a lock: nothing can interrupt it meanwhile."""

WRITER_SECONDS = 30.0
"""How long a writer waits for another process to finish writing."""

TEMPORARY_KIB = 32 * 1024
"""Memory for temporary tables, the entity rows of a training set say; more go into a file."""

INSERT_ROWS = 16_384
"""Rows per executemany: large enough to be rid of the call's cost, small enough to interrupt."""

THREAD_SECONDS = 1.0
"""How long the thread of a connection that failed to open is waited for: it has nothing to do."""

_EPOCH_DAY = EPOCH.date().toordinal()

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


async def open_connection(*arguments: Any, **options: Any) -> aiosqlite.Connection:
    """An aiosqlite connection that leaves no thread behind where it cannot be opened.

    aiosqlite does not wait for that thread: it answers once more, and if the loop is closed by
    then prints a traceback.
    """
    connection = aiosqlite.connect(*arguments, **options)
    connection._thread.daemon = True  # as SQLAlchemy has it: a forgotten store ends no process
    try:
        return await connection
    except BaseException:
        await uninterrupted(asyncio.to_thread(connection._thread.join, THREAD_SECONDS))
        raise


class SQLite:
    """The dialect of SQLite 3.35 and later.

    Connections of an engine made here (``owned``) are set up once and stay so; a borrowed one
    is given back as it came.
    """

    single_writer = True
    sorts_rows = False
    keeps_temporary_tables = True
    failure_ends_transaction = False
    commit_seconds: float | None = None

    def __init__(self, *, owned: bool) -> None:
        self._owned = owned
        self._prepared: WeakSet[Any] = WeakSet()
        self._borrowed: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()

    async def prepare(self, session: Session) -> None:
        if session.driver in self._prepared:
            return

        def settle(raw: sqlite3.Connection) -> None:
            self._borrowed[session.driver] = raw.isolation_level
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

        await _patiently(lambda: _run(session.driver, settle))
        if self._owned:
            self._prepared.add(session.driver)

    async def release(self, driver: Any) -> None:
        level = self._borrowed.get(driver, "")
        await _run(driver, lambda raw: setattr(raw, "isolation_level", level))

    async def is_alive(self, driver: Any) -> bool:
        return True

    def is_closed(self, driver: Any) -> bool:
        return False  # there is no other side that could be lost

    async def finish(self, driver: Any, work: Coroutine[Any, Any, T]) -> T:
        # SQLAlchemy drops a connection whose call is cancelled, but its thread goes on, and its
        # locks stay for as long as anybody holds the traceback: so the call is brought to an end.
        return await stoppable(work, partial(_interrupt, driver))

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
        await _patiently(
            lambda: self.finish(session.driver, session.connection.exec_driver_sql(statement))
        )

    async def lock_view(self, session: Session, view_id: int, *, exclusive: bool) -> None:
        return None  # BEGIN IMMEDIATE keeps all other writers out

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
        return await _run(session.driver, lambda raw: raw.execute(sql, values).fetchall())

    async def stream(
        self, session: Session, sql: str, values: Sequence[Any], size: int
    ) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
        cursor = await _run(session.driver, lambda raw: raw.execute(sql, values))
        try:
            while chunk := await _run(session.driver, lambda raw: cursor.fetchmany(size)):
                yield chunk
        finally:
            await _run(session.driver, lambda raw: cursor.close())

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
        if isinstance(kind, ArrayType):
            return [None if v is None else _element(kind.item, v) for v in json.loads(value)]
        if kind == Timestamp:
            return from_micros(value)
        if kind == Date:
            return dt.date.fromordinal(value + _EPOCH_DAY)
        if kind == Bool:
            return bool(value)
        if kind == Json:
            return json.loads(value)
        return decimal.Decimal(value) if isinstance(kind, DecimalType) else value

    def arrow(self, kind: FeatureType, values: Sequence[Any]) -> pa.Array:
        if kind == Timestamp:
            return pa.array(values, pa.int64()).cast(kind.arrow)
        if kind == Date:
            return pa.array(values, pa.int32()).cast(kind.arrow)
        if isinstance(kind, DecimalType | ArrayType) or kind == Bool:
            decoded = [None if value is None else self.decode(kind, value) for value in values]
            return pa.array(decoded, kind.arrow)
        return pa.array(values, kind.arrow)

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
        self, session: Session, lookups: Lookups, keys: Sequence[Sequence[Any]]
    ) -> Found:
        if "sql" not in lookups.cache:
            queries = [_online_query(lookup) for lookup in lookups.lookups]
            lookups.cache["sql"] = [session.text(query) for query in queries]
            revision = sa.select(project.c.revision).where(project.c.name == lookups.project)
            lookups.cache["revision"] = session.compile(revision)
        encoded = [
            tuple(
                None if value is None else encode(kind, value)
                for kind, value in zip(lookups.key_types, row, strict=True)
            )
            for row in keys
        ]
        return await _run(session.driver, lambda raw: _find(raw, lookups, encoded))

    def upsert(self, table: sa.Table) -> Any:
        return sqlite.insert(table)


async def _patiently(attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Try again while another program holds the lock, up to ``WRITER_SECONDS``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WRITER_SECONDS
    while True:
        try:
            return await attempt()
        except (OperationalError, sqlite3.OperationalError) as error:
            if "locked" not in str(error) or loop.time() > deadline:
                raise


async def _run(driver: Any, work: Callable[[sqlite3.Connection], T]) -> T:
    """Run ``work`` on the connection's own thread, in one hop however many statements it has.

    A caller that is cancelled interrupts what SQLite is doing, and waits for its end.
    """
    try:
        # aiosqlite's public calls are one statement a hop each; this is what they are made of.
        result: T = await driver._execute(work, driver._conn)
        return result
    except asyncio.CancelledError:
        # The thread takes one thing after the other: when it comes to this, it has ended that.
        last = driver._execute(_nothing)
        await uninterrupted(bring_to_end(last, partial(_interrupt, driver)), seconds=None)
        raise


def _nothing() -> None:
    return None


async def _interrupt(driver: Any) -> None:
    with suppress(ValueError, sqlite3.Error):  # closed meanwhile
        await driver.interrupt()


async def _write(
    driver: Any, statement: Any, table: sa.Table, batch: pa.RecordBatch, types: Types
) -> None:
    """Run an INSERT of ``types`` for each row of a batch."""
    # SQLAlchemy writes the columns in the table's order, so the values come in it too.
    types = {column.name: types[column.name] for column in table.c if column.name in types}
    statement = statement.values({name: sa.bindparam(name) for name in types})
    sql = str(statement.compile(dialect=sqlite.dialect(paramstyle="qmark")))
    for start in range(0, batch.num_rows, INSERT_ROWS):
        piece = batch.slice(start, INSERT_ROWS)
        await _run(driver, partial(_insert, sql=sql, batch=piece, types=types))


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
    columns = [_physical(kind, batch.column(name)) for name, kind in types.items()]
    raw.executemany(sql, zip(*columns, strict=True))


def _physical(kind: FeatureType, column: pa.Array) -> list[Any]:
    """A column as the list of values that SQLite keeps."""
    if isinstance(kind, DecimalType):
        return [None if value is None else format(value, "f") for value in column.to_pylist()]
    if isinstance(kind, ArrayType):
        item = kind.item
        return [None if row is None else _dump_array(item, row) for row in column.to_pylist()]
    if kind == Timestamp:
        column = column.cast(pa.int64())
    elif kind == Date:
        column = column.cast(pa.int32())
    elif kind == Float32:
        column = column.cast(pa.float64())
    return column.to_pylist()  # type: ignore[no-any-return]


def encode(kind: FeatureType, value: Any) -> Any:
    """A Python value (not null, as ``kind.python`` gives it) as SQLite keeps it."""
    if kind == Timestamp:
        return micros(value)
    if kind == Date:
        return value.toordinal() - _EPOCH_DAY
    if kind == Bool:
        return int(value)
    if isinstance(kind, DecimalType):
        return format(value, "f")
    return _dump_array(kind.item, value) if isinstance(kind, ArrayType) else value


def _dump_array(item: FeatureType, values: Sequence[Any]) -> str:
    if item == Bytes:
        values = [None if v is None else base64.b64encode(v).decode() for v in values]
    elif item in (Timestamp, Date) or isinstance(item, DecimalType):
        values = [None if v is None else encode(item, v) for v in values]
    return json.dumps(values, ensure_ascii=False)


def _element(item: FeatureType, value: Any) -> Any:
    if item == Bytes:
        return base64.b64decode(value)
    if item == Timestamp:
        return from_micros(value)
    if item == Date:
        return dt.date.fromordinal(value + _EPOCH_DAY)
    return decimal.Decimal(value) if isinstance(item, DecimalType) else value


def _online_query(lookup: Lookup) -> sa.Select[Any]:
    columns = [lookup.table.c[name] for name in (EVENT, *dict(lookup.features))]
    keys = [lookup.table.c[key] == sa.bindparam(f"k{i}") for key, i in lookup.keys]
    return sa.select(*columns).where(*keys)


def _find(raw: sqlite3.Connection, lookups: Lookups, keys: Sequence[tuple[Any, ...]]) -> Found:
    """One statement per view and key, all in one transaction: without a network that is
    faster than one large statement, and reads one state as well."""
    alone = not raw.in_transaction
    if alone:
        raw.execute("BEGIN")
    try:
        sql, values = lookups.cache["revision"]
        revision = raw.execute(sql, values).fetchone()
        now = micros(dt.datetime.now(dt.UTC))
        found = [
            _find_rows(raw, statement, lookup, keys, now)
            for statement, lookup in zip(lookups.cache["sql"], lookups.lookups, strict=True)
        ]
    finally:
        if alone:
            raw.execute("ROLLBACK")
    return (revision[0] if revision else 0), found


def _find_rows(
    raw: sqlite3.Connection,
    sql: str,
    lookup: Lookup,
    keys: Sequence[tuple[Any, ...]],
    now: int,
) -> list[FoundRow | None]:
    oldest = None if lookup.ttl is None else now - lookup.ttl // dt.timedelta(microseconds=1)
    known: dict[tuple[Any, ...], FoundRow | None] = {}
    rows = []
    for row in keys:
        key = tuple(row[position] for _, position in lookup.keys)
        if key not in known:
            found = raw.execute(sql, key).fetchone()
            known[key] = found and FoundRow(
                from_micros(found[0]), oldest is None or found[0] >= oldest, found[1:]
            )
        rows.append(known[key])
    return rows
