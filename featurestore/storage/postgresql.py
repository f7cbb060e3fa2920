"""PostgreSQL through asyncpg: binary COPY in, LATERAL on the index out."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import pgpq
import pgpq.encoders
import pgpq.schema
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from featurestore.errors import StoreUnavailableError
from featurestore.storage import tables
from featurestore.storage.dialect import Found, FoundRow, Lookups, Match, Types
from featurestore.storage.tables import ARRIVAL, CREATED, EVENT, newest_first
from featurestore.types import (
    ArrayType,
    Date,
    DecimalType,
    FeatureType,
    Int64,
    Json,
    Timestamp,
)

if TYPE_CHECKING:
    from featurestore.storage.engine import Session

T = TypeVar("T")

ENCODE_ROWS = 8_192
"""Rows per encoder call. pgpq holds the GIL while it encodes, so this bounds the loop's stall:
8 ms with 8,192 rows of 11 columns against 22 ms with 65,536, at the same speed."""

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
    keeps_temporary_tables = False

    async def prepare(self, session: Session) -> None:
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

    async def finish(self, driver: Any, work: Coroutine[Any, Any, T]) -> T:
        # A cancelled connection is closed by SQLAlchemy, and the server lets go of its locks.
        return await work

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
            await session.connection.execute(sa.text(f"LOCK TABLE {names} IN ACCESS SHARE MODE"))
        await self._settle(session)

    async def _settle(self, session: Session) -> None:
        # SQLAlchemy's adapter begins its transaction with the first statement that it runs
        # itself; a COPY on the driver's connection before that would stand outside of it.
        # Casts between text or timestamp and timestamptz below depend on the zone.
        await session.connection.execute(sa.select(sa.func.set_config("TimeZone", "UTC", True)))

    def in_transaction(self, driver: Any) -> bool:
        return not driver.is_closed() and bool(driver.is_in_transaction())

    async def lock_view(self, session: Session, view_id: int, *, exclusive: bool) -> None:
        lock = sa.func.pg_advisory_xact_lock if exclusive else sa.func.pg_advisory_xact_lock_shared
        await session.execute(sa.select(sa.cast(lock(_VIEW_LOCK, view_id), sa.Text)))

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
            table = _quoted(session, index.table)
            await session.execute(sa.text(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE"))
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
        columns = list(types)
        if any(_zoned_array(kind) for kind in types.values()):
            return await self._insert_staged(session, table, batches, types)
        return await _copy(session, table, columns, batches, types)

    async def _insert_staged(
        self,
        session: Session,
        table: sa.Table,
        batches: AsyncIterator[pa.RecordBatch],
        types: Types,
    ) -> int:
        """Arrays of timestamps leave pgpq without zone and COPY refuses them as timestamptz:
        they go through a temporary table and a cast, in the session's zone, which is UTC."""
        naive = pg.ARRAY(pg.TIMESTAMP(timezone=False))
        staging = sa.Table(
            session.temporary_name(),
            sa.MetaData(),
            *(
                sa.Column(name, naive if _zoned_array(kind) else self.column_type(kind))
                for name, kind in types.items()
            ),
            prefixes=["TEMPORARY"],
            postgresql_on_commit="DROP",
        )
        await session.connection.execute(sa.schema.CreateTable(staging))
        count = await _copy(session, staging, list(types), batches, types)
        values = [sa.cast(staging.c[name], self.column_type(kind)) for name, kind in types.items()]
        await session.connection.execute(
            table.insert().from_select(list(types), sa.select(*values))
        )
        await session.connection.execute(sa.schema.DropTable(staging))
        return count

    async def rows(
        self, session: Session, sql: str, values: Sequence[Any]
    ) -> Sequence[Sequence[Any]]:
        result: Sequence[Sequence[Any]] = await session.driver.fetch(sql, *values)
        return result

    async def stream(
        self, session: Session, sql: str, values: Sequence[Any], size: int
    ) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
        cursor = await session.driver.cursor(sql, *values)
        while chunk := await cursor.fetch(size):
            yield chunk

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
        interval = sa.cast(sa.literal(f"{whole}.{micros:06d} seconds", sa.Text), pg.INTERVAL())
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
        best = sa.select(rows).where(*match(rows)).order_by(*newest_first(rows)).limit(1).lateral()
        return left.outerjoin(best, sa.true()), best

    def refresh_online(
        self,
        history: sa.Table,
        online: sa.Table,
        keys: Sequence[str],
        first: int,
        last: int,
        until: dt.datetime,
    ) -> sa.sql.dml.Insert | None:
        if not keys:
            return None
        rows = history.alias()
        columns = [*keys, EVENT, CREATED, ARRIVAL]
        columns += [c.name for c in online.c if c.name in rows.c and c.name not in columns]
        by_key = [rows.c[key] for key in keys]
        best = (
            sa.select(*(rows.c[name] for name in columns))
            .where(rows.c[ARRIVAL].between(first, last), rows.c[EVENT] <= until)
            .order_by(*by_key, *newest_first(rows))
        )
        # DISTINCT ON walks the keys in order, so writers lock online rows in one order.
        return pg.insert(online).from_select(columns, best.ext(pg.distinct_on(*by_key)))

    async def find_online(
        self, session: Session, lookups: Lookups, keys: Sequence[Sequence[Any]]
    ) -> Found:
        kinds = lookups.key_types or (Int64,)
        if "sql" not in lookups.cache:
            arrays = {f"k{index}": index for index in range(len(kinds))}
            query = _online_query(self, lookups).prefix_with(tables.revision_mark(lookups.revision))
            lookups.cache["sql"], lookups.cache["values"] = session.compile(query, arrays)
        columns = list(zip(*keys, strict=True)) if lookups.key_types else [[0] * len(keys)]
        arrays_sent = [
            [_key_text(kind, value) for value in column] if kind in (Date, Timestamp) else column
            for kind, column in zip(kinds, columns, strict=True)
        ]
        # Where the statement takes an array its number was bound; the rest are constants.
        values = [
            arrays_sent[value] if isinstance(value, int) else value
            for value in lookups.cache["values"]
        ]
        records = await session.driver.fetch(lookups.cache["sql"], *values)
        found: list[list[FoundRow | None]] = []
        start = 1
        for lookup in lookups.lookups:
            end = start + 2 + len(lookup.features)
            found.append([_found(record[start:end]) for record in records])
            start = end
        return (records[0][0] or 0 if records else 0), found

    def upsert(self, table: sa.Table) -> Any:
        return pg.insert(table)


def _online_query(dialect: PostgreSQL, lookups: Lookups) -> sa.Select[Any]:
    """All views in one statement: keys unnested in order, each online table left-joined."""
    # A read of global views only has no keys: zeros stand for its rows.
    types = lookups.key_types or (Int64,)
    arrays = []
    for index, kind in enumerate(types):
        passed = sa.Text() if kind in (Date, Timestamp) else dialect.column_type(kind)
        arrays.append(sa.cast(sa.bindparam(f"k{index}"), pg.ARRAY(passed)))
    names = [f"k{index}" for index in range(len(types))]
    rows = (
        sa.func.unnest(*arrays)
        .table_valued(*names, with_ordinality="position", name="r")
        .render_derived()
    )
    project = tables.project
    revision = sa.select(project.c.revision).where(project.c.name == lookups.project)
    columns: list[Any] = [revision.scalar_subquery()]
    joined: Any = rows
    for lookup in lookups.lookups:
        table = lookup.table.alias()
        keys = [
            table.c[key] == sa.cast(rows.c[f"k{i}"], dialect.column_type(types[i]))
            for key, i in lookup.keys
        ]
        joined = joined.outerjoin(table, sa.and_(sa.true(), *keys))
        now = sa.func.statement_timestamp()
        event = table.c[EVENT]
        fresh = sa.true() if lookup.ttl is None else dialect.within(event, now, lookup.ttl)
        columns += [table.c[EVENT], fresh]
        columns += [dialect.read(kind, table.c[name]) for name, kind in lookup.features]
    labelled = [column.label(f"c{index}") for index, column in enumerate(columns)]
    return sa.select(*labelled).select_from(joined).order_by(rows.c.position)


def _quoted(session: Session, table: sa.Table) -> str:
    return session.connection.dialect.identifier_preparer.format_table(table)


def _key_text(kind: FeatureType, value: Any) -> str | None:
    return None if value is None else value.isoformat()  # see PostgreSQL.bind


def _found(values: Sequence[Any]) -> FoundRow | None:
    event_time, fresh, *features = values
    return None if event_time is None else FoundRow(event_time, fresh, features)


def _zoned_array(kind: FeatureType) -> bool:
    return isinstance(kind, ArrayType) and kind.item == Timestamp


async def _copy(
    session: Session,
    table: sa.Table,
    columns: list[str],
    batches: AsyncIterator[pa.RecordBatch],
    types: Types,
) -> int:
    rows = 0

    async def encoded() -> AsyncIterator[bytes]:
        nonlocal rows
        encoder = _encoder(types)
        yield encoder.write_header()
        async for batch in batches:
            for start in range(0, batch.num_rows, ENCODE_ROWS):
                piece = batch.slice(start, ENCODE_ROWS)
                yield await asyncio.to_thread(encoder.write_batch, piece)
            rows += batch.num_rows
        yield encoder.finish()

    await session.driver.copy_to_table(
        table.name, source=encoded(), columns=columns, format="binary"
    )
    return rows


def _encoder(types: Types) -> pgpq.ArrowToPostgresBinaryEncoder:
    schema = pa.schema([(name, kind.arrow) for name, kind in types.items()])
    infer = pgpq.ArrowToPostgresBinaryEncoder.infer_encoder
    builder = pgpq.encoders.StringEncoderBuilder
    encoders = {
        field.name: (
            builder.new_with_output(field, pgpq.schema.Jsonb())
            if types[field.name] == Json
            else infer(field)
        )
        for field in schema
    }
    return pgpq.ArrowToPostgresBinaryEncoder.new_with_encoders(schema, encoders)
