"""Many rows out of PostgreSQL as Arrow, few rows along with a statement, and users' own queries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from featurestore.storage import postgresql_adbc, postgresql_wire
from featurestore.storage.dialect import Types
from featurestore.storage.extracting import arrow_batches
from featurestore.storage.queries import UserQuery, without_end
from featurestore.types import ArrayType, Date, DecimalType, FeatureType, Int64, Timestamp

if TYPE_CHECKING:
    from featurestore.storage.postgresql import PostgreSQL
    from featurestore.storage.session import Session

_INLINE = "rows_{}"
"""The parameters that hold columns of rows given with a statement."""

_ARROW = {
    "bool": pa.bool_(),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "text": pa.string(),
    "varchar": pa.string(),
    "bpchar": pa.string(),
    "name": pa.string(),
    "json": pa.string(),
    "jsonb": pa.string(),
    "json[]": pa.list_(pa.string()),
    "jsonb[]": pa.list_(pa.string()),
    "bytea": pa.binary(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
    "date": pa.date32(),
}
"""The types of the columns of users' own queries; of others the values tell."""

_AS_TEXT = {"json": "text", "jsonb": "text", "json[]": "text[]", "jsonb[]": "text[]"}
"""What columns of users' own queries are read as where the driver would decode them."""


async def extract(
    dialect: PostgreSQL,
    session: Session,
    table: sa.Table,
    types: Types,
    where: Sequence[sa.ColumnElement[bool]],
    mark: str,
    *,
    inside: bool,
) -> AsyncGenerator[pa.RecordBatch, None]:
    """See :meth:`Dialect.extract`: by ADBC where it can, else by the session's connection."""
    kinds = list(types.values())
    scan = None
    if not inside:
        columns = [_extracted(dialect, kind, table.c[name]) for name, kind in types.items()]
        query = sa.select(*columns).where(*where).prefix_with(mark)
        literal = await asyncio.to_thread(_literal, session, query)  # it may have thousands of keys
        scan = await postgresql_adbc.open_scan(session, literal)
    if scan is None:
        columns = [dialect.read(kind, table.c[name]) for name, kind in types.items()]
        query = sa.select(*columns).where(*where).prefix_with(mark)
        async with aclosing(arrow_batches(session, query, types)) as batches:
            async for batch in batches:
                yield batch
        return
    try:
        async with aclosing(scan.batches()) as batches:
            async for batch in batches:
                yield await asyncio.to_thread(_arrived, batch, list(types), kinds)
    finally:
        await scan.close()


def _extracted(dialect: PostgreSQL, kind: FeatureType, column: sa.ColumnElement[Any]) -> Any:
    # ADBC has no decimals: it gives numerics as values that only PostgreSQL can read.
    if isinstance(kind, DecimalType):
        return sa.cast(column, sa.Text)
    if isinstance(kind, ArrayType) and isinstance(kind.item, DecimalType):
        return sa.cast(column, pg.ARRAY(sa.Text))
    return dialect.read(kind, column)


def _literal(session: Session, query: sa.Select[Any]) -> str:
    """A statement with its values in it: ADBC gives rows as COPY does for those alone."""
    dialect = session.connection.dialect
    return str(query.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))


def _arrived(
    batch: pa.RecordBatch, names: Sequence[str], kinds: Sequence[FeatureType]
) -> pa.RecordBatch:
    columns = [column.cast(kind.arrow) for column, kind in zip(batch.columns, kinds, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names)


def rows_inline(dialect: PostgreSQL, types: Types) -> sa.FromClause:
    """A few rows as a subquery, its parameters arrays of each column but the first, which counts
    them from 0."""
    row, *columns = types
    sent = {name: Int64 if types[name] == Timestamp else types[name] for name in columns}
    arrays = []
    for index, kind in enumerate(sent.values()):
        array = pg.ARRAY(dialect.passed(kind))
        arrays.append(sa.cast(sa.bindparam(_INLINE.format(index), type_=array), array))
    names = [f"k{index}" for index in range(len(arrays))]
    unnested = sa.func.unnest(*arrays).table_valued(*names, with_ordinality="n", name="r")
    given = unnested.render_derived()
    read = [
        _moment(given.c[name])
        if types[column] == Timestamp
        else sa.cast(given.c[name], dialect.column_type(types[column]))
        for name, column in zip(names, columns, strict=True)
    ]
    labelled = [value.label(column) for value, column in zip(read, columns, strict=True)]
    # A fence: the planner would put what is computed here wherever a column is used, and do it
    # several times for each row.
    query = sa.select((given.c.n - 1).label(row), *labelled).offset(sa.literal_column("0"))
    return query.subquery()


def inline_values(rows: pa.Table, types: Types) -> dict[str, Sequence[Any]]:
    """The parameters of :func:`rows_inline`."""
    _, *columns = types
    return {
        _INLINE.format(index): _sent(types[name], rows.column(name))
        for index, name in enumerate(columns)
    }


def _sent(kind: FeatureType, column: pa.ChunkedArray) -> list[Any]:
    """Values as they are passed inline: times as microseconds, which take no time to write."""
    if kind == Timestamp:
        column = column.cast(pa.int64())
    elif kind == Date:
        column = column.cast(pa.string())
    return list(column.to_pylist())


def _moment(micros: sa.ColumnElement[int]) -> sa.ColumnElement[Any]:
    """The time of so many microseconds since 1970. In days and a rest, which are exact: intervals
    are multiplied as doubles. Days of 24 hours, whatever the session's zone makes of summer."""
    day: sa.ColumnElement[int] = sa.literal_column("86400000000")
    epoch = sa.cast(sa.literal_column("'epoch'"), pg.TIMESTAMP(timezone=True))
    days = micros.op("/")(day).op("*")(sa.literal_column("interval '24 hours'"))
    rest = micros.op("%")(day).op("*")(sa.literal_column("interval '1 microsecond'"))
    return epoch.op("+")(days).op("+")(rest)


async def describe(session: Session, sql: str) -> UserQuery:
    """A user's own query as it is run: JSON comes as its text, which the driver would make values
    of that no column of a table holds. Types of columns are given where no value has to tell."""
    async with postgresql_wire.calling(session.driver):
        statement = await session.driver.prepare(sql)
    found = statement.get_attributes()
    columns = [(one.name, _ARROW.get(one.type.name)) for one in found]
    if not any(one.type.name in _AS_TEXT for one in found):
        return UserQuery(sql, columns)
    quote = session.connection.dialect.identifier_preparer.quote_identifier
    read = ", ".join(
        f"{quote(one.name)}::{_AS_TEXT[one.type.name]} AS {quote(one.name)}"
        if one.type.name in _AS_TEXT
        else quote(one.name)
        for one in found
    )
    return UserQuery(f"SELECT {read} FROM (\n{without_end(sql)}\n) AS asked", columns)  # noqa: S608 - the user's own
