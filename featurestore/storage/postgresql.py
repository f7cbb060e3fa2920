"""PostgreSQL through asyncpg: binary COPY in, LATERAL on the index out."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from featurestore.errors import StoreUnavailableError
from featurestore.storage import (
    postgresql_copy,
    postgresql_online,
    postgresql_push,
    postgresql_reads,
    postgresql_wire,
)
from featurestore.storage.dialect import Found, Lookups, Match, Types
from featurestore.storage.postgresql_online import as_sent
from featurestore.storage.queries import UserQuery
from featurestore.storage.tables import SINGLE, newest_first
from featurestore.types import (
    ArrayType,
    Date,
    DecimalType,
    FeatureType,
    Json,
    Timestamp,
)

if TYPE_CHECKING:
    from featurestore.storage.push import Pushed, PushPlan, Rows
    from featurestore.storage.session import Session

T = TypeVar("T")

ALIVE_SECONDS = 5.0
"""How long a connection on which a call failed has to prove that it still works."""

_BROKEN = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)

_VIEW_LOCK = 0x6673_0001  # "fs": the class of this library's two-part advisory locks
_CONSECUTIVE_TRIES = 50
_LONG_TTL = dt.timedelta(days=4_000 * 365)

_ROW_BYTES = 120
"""What a row of history takes about, where a table was never counted."""

_TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    "bool": sa.Boolean(),
    "int32": sa.Integer(),
    "int64": sa.BigInteger(),
    "float32": sa.REAL(),
    "float64": sa.Double(),
    "string": sa.Text(),
    "bytes": pg.BYTEA(),
    "timestamp": pg.TIMESTAMP(timezone=True),
    "date": sa.Date(),
    "json": pg.JSONB(),
}


class PostgreSQL:
    """The dialect of PostgreSQL 13 and later."""

    single_writer = False
    sorts_rows = True
    keeps_temporary_tables = False
    notifies = True
    failure_ends_transaction = True
    commit_seconds: float | None = postgresql_wire.COMMIT_SECONDS

    def __init__(self, sql: sa.Dialect) -> None:
        self._sql = sql

    async def prepare(self, driver: Any) -> None:
        return None

    async def release(self, driver: Any) -> None:
        return None

    async def is_alive(self, driver: Any) -> bool:
        # A connection that the server has ended can look open until it is used.
        try:
            await driver.execute("SELECT 1", timeout=ALIVE_SECONDS)
        except _BROKEN:
            return False
        return True

    async def interrupt(self, driver: Any) -> None:
        await postgresql_wire.cancel(driver)

    def terminate(self, driver: Any) -> None:
        driver.terminate()

    async def finish(self, driver: Any, work: Coroutine[Any, Any, T]) -> T:
        return await postgresql_wire.finish(driver, work)

    async def _execute(self, session: Session, statement: sa.Executable) -> None:
        await self.finish(session.driver, session.connection.execute(statement))

    async def begin(self, session: Session) -> None:
        # What waits for a lock must see what was committed meanwhile, so this is not left to a
        # borrowed engine's own isolation level.
        await session.connection.execution_options(isolation_level="READ COMMITTED")
        await self._settle(session)

    async def begin_snapshot(self, session: Session, tables: Sequence[sa.Table]) -> None:
        await session.connection.execution_options(isolation_level="REPEATABLE READ")
        if tables:
            # Before the snapshot, which the first query takes and a lock does not.
            names = ", ".join(_quoted(session, table) for table in tables)
            await self._execute(session, sa.text(f"LOCK TABLE {names} IN ACCESS SHARE MODE"))
            return  # nothing that is read depends on the session's zone
        await self._settle(session)

    async def _settle(self, session: Session) -> None:
        # SQLAlchemy's adapter begins its transaction with the first statement that it runs
        # itself; a COPY on the driver's connection before that would stand outside of it.
        # Casts between text or timestamp and timestamptz below depend on the zone.
        await self._execute(session, sa.select(sa.func.set_config("TimeZone", "UTC", True)))

    def is_closed(self, driver: Any) -> bool:
        return bool(driver.is_closed())

    def in_transaction(self, driver: Any) -> bool:
        return not driver.is_closed() and bool(driver.is_in_transaction())

    async def lock_view(self, session: Session, view_id: int, *, exclusive: bool) -> None:
        lock = sa.func.pg_advisory_xact_lock if exclusive else sa.func.pg_advisory_xact_lock_shared
        await session.execute(sa.select(sa.cast(lock(_VIEW_LOCK, view_id), sa.Text)))

    async def lock_history(self, session: Session, history: sa.Table) -> None:
        # A push that is under way ends first; one that comes waits before it has a snapshot.
        table = _quoted(session, history)
        await session.execute(sa.text(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE"))

    async def lock_name(self, session: Session, name: str) -> None:
        lock = sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(name, 0))
        await session.execute(sa.select(sa.cast(lock, sa.Text)))

    async def now(self, session: Session) -> dt.datetime:
        moment = (await session.execute(sa.select(sa.func.clock_timestamp()))).scalar_one()
        assert isinstance(moment, dt.datetime)
        return moment

    async def begin_load(self, session: Session, index: sa.Index) -> tuple[dt.datetime, bool]:
        quoted = session.connection.dialect.identifier_preparer.quote(str(index.name))
        missing = sa.func.to_regclass(quoted).is_(None)
        query = sa.select(sa.func.clock_timestamp(), missing)
        now, lacking = (await session.execute(query)).one()
        if lacking:
            # Two first loads that both wait to make the index would deadlock: one at a time, from
            # before its rows. Whoever waited finds the index made.
            assert index.table is not None
            await self.lock_history(session, index.table)
            now, lacking = (await session.execute(query)).one()
        return now, bool(lacking)

    async def allocate(self, session: Session, blocks: int) -> int:
        # nextval is atomic one value at a time, so others may take numbers in between: where
        # they did, the numbers are let go and asked for anew.
        numbers = sa.select(sa.func.nextval("featurestore_arrival").label("n")).select_from(
            sa.func.generate_series(1, blocks).alias("i")
        )
        taken = numbers.subquery()
        span = sa.select(sa.func.min(taken.c.n), sa.func.max(taken.c.n))
        for _ in range(_CONSECUTIVE_TRIES):
            first, last = (await session.execute(span)).one()
            if last - first == blocks - 1:
                return int(first)
        raise StoreUnavailableError(
            f"No {blocks} consecutive blocks of arrivals could be had: others take them too fast. "
            f"Trying again may help."
        )

    async def insert(
        self,
        session: Session,
        table: sa.Table,
        batches: AsyncIterator[pa.RecordBatch],
        types: Types,
    ) -> int:
        return await postgresql_copy.insert(session, table, batches, types)

    async def rows(
        self, session: Session, sql: str, values: Sequence[Any]
    ) -> Sequence[Sequence[Any]]:
        async with postgresql_wire.calling(session.driver):
            result: Sequence[Sequence[Any]] = await session.driver.fetch(sql, *values)
        return result

    async def stream(
        self, session: Session, sql: str, values: Sequence[Any], size: int
    ) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
        async with postgresql_wire.calling(session.driver):
            # Not the driver's own cursor(), which names a statement even where none is to be kept.
            statement = await session.driver.prepare(sql)
            cursor = await statement.cursor(*values)
        while True:
            async with postgresql_wire.calling(session.driver):
                chunk = await cursor.fetch(size)
            if not chunk:
                return
            yield chunk

    def rows_inline(self, types: Types) -> sa.FromClause | None:
        return postgresql_reads.rows_inline(self, types)

    def inline_values(self, rows: pa.Table, types: Types) -> dict[str, Sequence[Any]]:
        return postgresql_reads.inline_values(rows, types)

    def extract(
        self,
        session: Session,
        table: sa.Table,
        types: Types,
        where: Sequence[sa.ColumnElement[bool]],
        mark: str,
        *,
        inside: bool,
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        return postgresql_reads.extract(self, session, table, types, where, mark, inside=inside)

    async def describe(self, session: Session, sql: str) -> UserQuery:
        return await postgresql_reads.describe(session, sql)

    async def estimate_rows(self, session: Session, table: sa.Table) -> int:
        # What VACUUM and ANALYZE have counted, or else what fits into its pages.
        statistics = sa.table("pg_class", sa.column("reltuples"), sa.column("oid"))
        regclass = sa.cast(sa.func.to_regclass(_quoted(session, table)), sa.Text)
        oid = sa.func.to_regclass(regclass)
        size = sa.func.pg_relation_size(oid)
        query = sa.select(statistics.c.reltuples, size).where(statistics.c.oid == oid)
        counted, pages = (await session.execute(query)).one()
        return int(counted) if counted >= 0 else int(pages) // _ROW_BYTES

    @asynccontextmanager
    async def read_only(self, session: Session) -> AsyncIterator[None]:
        # To be taken back: the transaction goes on to make temporary tables, or to write.
        async with session.savepoint():
            await session.execute(sa.text("SAVEPOINT featurestore_query"))
            await session.execute(sa.text("SET TRANSACTION READ ONLY"))
            await session.execute(sa.text("SET LOCAL TimeZone = 'UTC'"))
            yield
            await session.execute(sa.text("ROLLBACK TO SAVEPOINT featurestore_query"))

    async def analyze(self, session: Session, table: sa.Table) -> None:
        await session.execute(sa.text(f"ANALYZE {_quoted(session, table)}"))

    def column_type(self, kind: FeatureType) -> sa.types.TypeEngine[Any]:
        if isinstance(kind, DecimalType):
            return sa.Numeric(kind.precision, kind.scale)
        if isinstance(kind, ArrayType):
            return pg.ARRAY(self.column_type(kind.item))
        return _TYPES[kind.name]

    def bind(self, kind: FeatureType, value: Any) -> sa.ColumnElement[Any]:
        # asyncpg sends the greatest and the least date and timestamp as ±infinity, which is
        # another value than the one that COPY wrote; as text they stay themselves.
        if kind in (Date, Timestamp):
            text = sa.bindparam(None, value.isoformat(), type_=sa.Text, unique=True)
            return sa.cast(text, self.column_type(kind))
        return sa.bindparam(None, value, type_=self.column_type(kind), unique=True)

    def within(
        self, event: sa.ColumnElement[Any], at: sa.ColumnElement[Any], ttl: dt.timedelta
    ) -> sa.ColumnElement[bool]:
        # An interval of days would follow the session's zone through daylight saving: seconds.
        whole, micros = ttl.days * 86_400 + ttl.seconds, ttl.microseconds
        # Two numbers, in the text: as a value it would be read anew for each row.
        seconds = sa.literal_column(f"'{whole}.{micros:06d} seconds'", sa.Text)
        interval = sa.cast(seconds, pg.INTERVAL())
        # The index has a use for a bound on the event time, but timestamps end in 4713 BC.
        return event + interval >= at if ttl > _LONG_TTL else event >= at - interval

    def read(self, kind: FeatureType, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        # What jsonb becomes on its own depends on the codecs of the engine's connections.
        return sa.cast(column, sa.Text) if kind == Json else column

    def decode(self, kind: FeatureType, value: Any) -> Any:
        return json.loads(value) if kind == Json else value

    def arrow(self, kind: FeatureType, values: Sequence[Any]) -> pa.Array:
        return pa.array(values, type=kind.arrow)

    def join_latest(
        self, left: sa.FromClause, history: sa.Table, match: Match
    ) -> tuple[sa.FromClause, sa.FromClause]:
        rows = history.alias()
        best = (
            sa.select(rows)
            .where(*match(rows))
            .order_by(*newest_first(rows))
            .limit(sa.literal_column("1"))
            .lateral()
        )
        return left.outerjoin(best, sa.true()), best

    def stage_online(
        self, session: Session, online: sa.Table, keys: Mapping[str, FeatureType], types: Types
    ) -> postgresql_copy.Stage:
        return postgresql_copy.Stage(session, online, keys, types)

    def keys_arrived(
        self, history: sa.Table, keys: Mapping[str, FeatureType], rows: pa.Table
    ) -> sa.Select[tuple[Any, ...]]:
        # By their values: the arrivals' index does not know what has just come.
        if not keys:
            return sa.select(sa.literal(0, sa.Integer).label(SINGLE))
        values = {
            key: sa.bindparam(
                None,
                as_sent(kind, rows.column(key).to_pylist()),
                type_=pg.ARRAY(self.passed(kind)),
                unique=True,
            )
            for key, kind in keys.items()
        }
        return self.unnested(values, keys).distinct()

    def unnested(
        self, columns: Mapping[str, sa.BindParameter[Any]], types: Types
    ) -> sa.Select[tuple[Any, ...]]:
        """Arrays of values, as :meth:`passed` has them, as rows of their types."""
        arrays = [sa.cast(columns[name], columns[name].type) for name in types]
        names = [f"k{index}" for index in range(len(types))]
        table = sa.func.unnest(*arrays).table_valued(*names, name="r").render_derived()
        return sa.select(
            *(
                sa.cast(table.c[name], self.column_type(kind)).label(column)
                for name, (column, kind) in zip(names, types.items(), strict=True)
            )
        )

    def passed(self, kind: FeatureType) -> sa.types.TypeEngine[Any]:
        """The type as which keys of ``kind`` are sent."""
        return sa.Text() if kind in (Date, Timestamp) else self.column_type(kind)

    async def find_online(
        self,
        driver: Any,
        lookups: Lookups,
        keys: Sequence[Sequence[Any]],
    ) -> Found:
        return await postgresql_online.find(driver, self._sql, self, lookups, keys)

    async def push(
        self,
        driver: Any,
        plan: PushPlan,
        callers: Sequence[Rows],
        *,
        due: bool,
        begun: bool,
    ) -> Pushed:
        return await postgresql_push.push(
            self, self._sql, driver, plan, callers, due=due, begun=begun
        )

    def upsert(self, table: sa.Table) -> Any:
        return pg.insert(table)


def _quoted(session: Session, table: sa.Table) -> str:
    return session.connection.dialect.identifier_preparer.format_table(table)
