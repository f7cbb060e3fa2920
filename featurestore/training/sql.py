"""The point-in-time join in the database: one descent into each view's index per entity row.

The keys and times of the entity table go up in bulk into a temporary table; answers come back
a chunk of rows at a time, so memory is bounded whatever the size.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from featurestore.selection import Join, Request
from featurestore.storage.session import Session
from featurestore.storage.tables import EVENT, revision_mark
from featurestore.training.entities import AT, ROW, Entities
from featurestore.types import FeatureType, Int64, Timestamp

CHUNK_ROWS = 16_384
"""Entity rows per fetch: their answers are what is held at a time."""


async def join_chunks(
    session: Session, entities: Entities, request: Request
) -> AsyncIterator[tuple[pa.Table, list[int]]]:
    """The entity table with its features, chunk by chunk, in order; and per join, how many of
    the chunk's rows found a value. The session is in a transaction of one snapshot."""
    wanted = await _upload(session, entities, request)
    query, layout = _query(session, wanted, request)
    first = 0
    # One statement: in a transaction that others commit beside, each would see another state.
    async for rows in session.stream(query, size=CHUNK_ROWS):
        piece = entities.table.slice(first, len(rows))
        first += len(rows)
        yield await asyncio.to_thread(_chunk, session, piece, rows, layout, request)
    if session.dialect.keeps_temporary_tables:
        await session.execute(sa.schema.DropTable(wanted))


async def _upload(session: Session, entities: Entities, request: Request) -> sa.Table:
    dialect = session.dialect
    types: dict[str, FeatureType] = {ROW: Int64, AT: Timestamp, **request.key_columns}
    # Entity columns can have any name; the temporary table's are numbered.
    names = {column: f"k{i}" for i, column in enumerate(request.key_columns)}
    stored = {names.get(column, column): kind for column, kind in types.items()}
    table = sa.Table(
        session.temporary_name(),
        sa.MetaData(),
        *(
            sa.Column(
                name,
                # SQLite's INTEGER PRIMARY KEY is the row number: chunks are ranges of it.
                sa.Integer()
                if name == ROW and dialect.single_writer
                else dialect.column_type(kind),
                primary_key=name == ROW,
                autoincrement=False,
                nullable=name != ROW,
            )
            for name, kind in stored.items()
        ),
        prefixes=["TEMPORARY"],
        postgresql_on_commit="DROP",
    )
    if dialect.keeps_temporary_tables:  # one may be left of a stream that was not read to its end
        await session.execute(sa.schema.DropTable(table, if_exists=True))
    await session.execute(sa.schema.CreateTable(table))
    renamed = entities.keys.rename_columns(list(stored))

    async def batches() -> AsyncIterator[pa.RecordBatch]:
        for batch in renamed.to_batches(max_chunksize=65_536):
            yield batch

    await session.insert(table, batches(), stored)
    await dialect.analyze(session, table)
    return table


def _query(
    session: Session, wanted: sa.Table, request: Request
) -> tuple[sa.Select[Any], list[slice]]:
    """The statement, in the order of the rows, and where each join's columns stand."""
    names = {column: f"k{i}" for i, column in enumerate(request.key_columns)}
    joined: sa.FromClause = wanted
    columns: list[sa.ColumnElement[Any]] = [wanted.c[ROW]]
    layout = []
    for join in request.joins:
        joined, best = _join(session, joined, wanted, join, names)
        start = len(columns)
        columns.append(best.c[EVENT])
        columns += [
            session.dialect.read(kind, best.c[name])
            for name, kind in zip(join.features, join.types(), strict=True)
        ]
        layout.append(slice(start, len(columns)))
    labelled = [column.label(f"c{index}") for index, column in enumerate(columns)]
    query = sa.select(*labelled).select_from(joined).order_by(wanted.c[ROW])
    return query.prefix_with(revision_mark(request.revision)), layout


def _join(
    session: Session,
    joined: sa.FromClause,
    wanted: sa.Table,
    join: Join,
    names: dict[str, str],
) -> tuple[sa.FromClause, sa.FromClause]:
    dialect = session.dialect
    ttl = join.view.ttl

    def match(rows: sa.FromClause) -> list[sa.ColumnElement[bool]]:
        found = [rows.c[key] == wanted.c[names[column]] for key, column in join.columns]
        found.append(rows.c[EVENT] <= wanted.c[AT])
        if ttl is not None:
            found.append(dialect.within(rows.c[EVENT], wanted.c[AT], ttl))
        return found

    return dialect.join_latest(joined, join.view.history, match)


def _chunk(
    session: Session,
    entities: pa.Table,
    rows: Sequence[Sequence[Any]],
    layout: list[slice],
    request: Request,
) -> tuple[pa.Table, list[int]]:
    columns = list(zip(*rows, strict=True))
    matched = [sum(time is not None for time in columns[part.start]) for part in layout]
    table = entities
    for output in request.outputs:
        values = columns[layout[output.join].start + 1 + output.position]
        table = table.append_column(
            pa.field(output.name, output.type.arrow), session.dialect.arrow(output.type, values)
        )
    return table, matched


def empty_answer(entities: pa.Table, request: Request) -> pa.Table:
    """The answer's schema without rows."""
    table = entities.slice(0, 0)
    for output in request.outputs:
        field = pa.field(output.name, output.type.arrow)
        table = table.append_column(field, pa.nulls(0, output.type.arrow))
    return table
