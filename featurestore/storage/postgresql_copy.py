"""Record batches into PostgreSQL's tables: binary COPY, and the newest rows into online tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pgpq
import pgpq.encoders
import pgpq.schema
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from featurestore.storage import postgresql_wire
from featurestore.storage.dialect import Types
from featurestore.storage.rule import settle_conflict
from featurestore.storage.tables import SINGLE, newest_first
from featurestore.types import ArrayType, FeatureType, Int32, Json, Timestamp

if TYPE_CHECKING:
    from featurestore.storage.session import Session

ENCODE_ROWS = 4_096
"""Rows per encoder call. pgpq holds the GIL while it encodes, so this bounds the loop's stall:
some 3 ms with 4,096 rows of 11 columns against 22 ms with 65,536, at the same speed."""


async def insert(
    session: Session, table: sa.Table, batches: AsyncIterator[pa.RecordBatch], types: Types
) -> int:
    """COPY record batches (columns as in ``types``) into a table; how many rows went in."""
    if any(_zoned_array(kind) for kind in types.values()):
        return await _insert_cast(session, table, batches, types)
    return await _copy(session, table, batches, types)


async def _insert_cast(
    session: Session, table: sa.Table, batches: AsyncIterator[pa.RecordBatch], types: Types
) -> int:
    """Arrays of timestamps leave pgpq without zone and COPY refuses them as timestamptz: they go
    through a temporary table and a cast, in the session's zone, which is UTC."""
    naive = pg.ARRAY(pg.TIMESTAMP(timezone=False))
    columns = [
        sa.Column(name, naive if _zoned_array(kind) else session.dialect.column_type(kind))
        for name, kind in types.items()
    ]
    staging = await _temporary_table(session, columns)
    count = await _copy(session, staging, batches, types)
    values = [
        sa.cast(staging.c[name], session.dialect.column_type(kind)) for name, kind in types.items()
    ]
    await _execute(session, table.insert().from_select(list(types), sa.select(*values)))
    await _execute(session, sa.schema.DropTable(staging))
    return count


async def _execute(session: Session, statement: sa.Executable) -> sa.CursorResult[Any]:
    """A statement of a call that has the session to itself."""
    return await session.dialect.finish(session.driver, session.connection.execute(statement))


async def _temporary_table(session: Session, columns: Sequence[sa.Column[Any]]) -> sa.Table:
    table = sa.Table(
        session.temporary_name(),
        sa.MetaData(),
        *columns,
        prefixes=["TEMPORARY"],
        postgresql_on_commit="DROP",
    )
    await _execute(session, sa.schema.CreateTable(table))
    return table


def _zoned_array(kind: FeatureType) -> bool:
    return isinstance(kind, ArrayType) and kind.item == Timestamp


async def _copy(
    session: Session, table: sa.Table, batches: AsyncIterator[pa.RecordBatch], types: Types
) -> int:
    rows = 0

    async def encoded() -> AsyncGenerator[bytes, None]:
        nonlocal rows
        encoder = _encoder(types)
        yield encoder.write_header()
        async for batch in batches:
            for start in range(0, batch.num_rows, ENCODE_ROWS):
                piece = batch.slice(start, ENCODE_ROWS)
                yield await asyncio.to_thread(encoder.write_batch, piece)
            rows += batch.num_rows
        yield encoder.finish()

    await postgresql_wire.copy(session.driver, table.name, list(types), encoded())
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


class Stage:
    """The newest rows of a load's keys, on their way into the online table.

    They are copied in and then taken over in one statement, in the order of keys: two writers of
    the same keys that lock them in different orders would deadlock.
    """

    def __init__(
        self, session: Session, online: sa.Table, keys: Mapping[str, FeatureType], types: Types
    ) -> None:
        self._session = session
        self._online = online
        self._keys = keys
        self._types = dict(types) if keys else {SINGLE: Int32, **types}
        self._table: sa.Table | None = None
        self._unique = True

    async def fill(self, rows: pa.Table) -> None:
        """Put the first rows into an online table that is empty, and nobody else writes to."""
        await self._session.insert(self._online, self._batches(rows), self._types)

    async def add(self, rows: pa.Table) -> None:
        """Bring rows, one of each key; further calls may bring the same keys again."""
        self._unique = self._table is None
        if self._table is None:
            columns = [
                sa.Column(name, self._session.dialect.column_type(kind))
                for name, kind in self._types.items()
            ]
            self._table = await _temporary_table(self._session, columns)
        await self._session.insert(self._table, self._batches(rows), self._types)

    async def finish(self) -> None:
        """Take over what is newer than what is online."""
        if self._table is None:
            return
        staged = self._table
        by_key = [staged.c[key] for key in (self._keys or [SINGLE])]
        query = sa.select(*staged.c)
        if self._unique:
            query = query.order_by(*by_key)
        else:
            query = query.order_by(*by_key, *newest_first(staged)).ext(pg.distinct_on(*by_key))
        statement = pg.insert(self._online).from_select(list(self._types), query)
        await self._session.execute(
            settle_conflict(statement, self._online, self._keys, replace=False)
        )
        await self._session.execute(sa.schema.DropTable(staged))
        self._table = None

    async def _batches(self, rows: pa.Table) -> AsyncIterator[pa.RecordBatch]:
        if not self._keys:
            zeros = pa.nulls(rows.num_rows, pa.int32()).fill_null(0)
            rows = rows.append_column(SINGLE, zeros)
        for batch in rows.select(list(self._types)).to_batches():
            yield batch
