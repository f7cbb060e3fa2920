"""The join in the database: one descent into each view's index per entity row.

The keys and times of the entity table go up in bulk into a temporary table; answers come back
a chunk of rows at a time, so memory is bounded whatever the size.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from featurestore.errors import FeatureStoreError
from featurestore.selection import Join
from featurestore.storage.session import Session
from featurestore.storage.tables import ARRIVAL, CREATED, EVENT, revision_mark
from featurestore.storage.waiting import uninterrupted
from featurestore.training.entities import Entities
from featurestore.training.rule import AT, ROW, Matched, Question
from featurestore.types import FeatureType, Int64, Timestamp

CHUNK_ROWS = 16_384
"""Entity rows per fetch: their answers are what is held at a time."""

INLINE_ROWS = 2_000
"""Up to so many entity rows go up with the statement, where the database takes them so: a
temporary table and its statistics cost as much as to look these up."""


async def join_in_database(
    session: Session, entities: Entities, question: Question
) -> AsyncGenerator[list[Matched], None]:
    """The engine ``sql``; the session is in a transaction of one snapshot."""
    async with _uploaded(session, entities, question) as wanted:
        query, layout = _query(session, wanted, question)
        # One statement: in a transaction that others commit beside, each would see another state.
        async with aclosing(session.stream(query, size=CHUNK_ROWS)) as chunks:
            async for rows in chunks:
                yield await asyncio.to_thread(_chunk, session, rows, layout)


@asynccontextmanager
async def _uploaded(
    session: Session, entities: Entities, question: Question
) -> AsyncGenerator[sa.FromClause, None]:
    keys = question.request.key_columns
    # Entity columns can have any name; here they are numbered.
    numbered = {f"k{i}": kind for i, kind in enumerate(keys.values())}
    types: dict[str, FeatureType] = {ROW: Int64, AT: Timestamp, **numbered}
    rows = entities.keys.rename_columns(list(types))
    if len(entities) <= INLINE_ROWS:
        inline = await asyncio.to_thread(session.dialect.rows_inline, rows, types)
        if inline is not None:
            yield inline
            return
    table = _temporary_table(session, types)
    try:
        await _fill(session, table, rows, types)
        yield table
    finally:
        if session.dialect.keeps_temporary_tables:
            # Whatever broke it off: the connection is used again. An error is told by what it
            # broke, and its rollback takes the table along.
            with suppress(FeatureStoreError):
                await uninterrupted(session.execute(sa.schema.DropTable(table, if_exists=True)))


def _temporary_table(session: Session, types: dict[str, FeatureType]) -> sa.Table:
    dialect = session.dialect
    return sa.Table(
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
            for name, kind in types.items()
        ),
        prefixes=["TEMPORARY"],
        postgresql_on_commit="DROP",
    )


async def _fill(
    session: Session, table: sa.Table, rows: pa.Table, types: dict[str, FeatureType]
) -> None:
    if session.dialect.keeps_temporary_tables:  # one that could not be dropped
        await session.execute(sa.schema.DropTable(table, if_exists=True))
    await session.execute(sa.schema.CreateTable(table))

    async def batches() -> AsyncIterator[pa.RecordBatch]:
        for batch in rows.to_batches(max_chunksize=65_536):
            yield batch

    await session.insert(table, batches(), types)
    await session.dialect.analyze(session, table)


def _query(
    session: Session, wanted: sa.FromClause, question: Question
) -> tuple[sa.Select[Any], list[tuple[int, list[FeatureType]]]]:
    """The statement, in the order of the rows; and for each join where its columns begin, and
    the types of its features: arrival, whether the plain match leaks, features."""
    request = question.request
    names = {column: f"k{i}" for i, column in enumerate(request.key_columns)}
    joined: sa.FromClause = wanted
    columns: list[sa.ColumnElement[Any]] = [wanted.c[ROW]]
    layout = []
    for join in request.joins:
        joined, best = _join(session, joined, wanted, join, names, question, known=question.known)
        plain = best
        if question.known:  # what would have come without it
            joined, plain = _join(session, joined, wanted, join, names, question, known=False)
        layout.append((len(columns), join.types()))
        columns += [best.c[ARRIVAL], plain.c[CREATED] > wanted.c[AT]]
        columns += [
            session.dialect.read(kind, best.c[name])
            for name, kind in zip(join.features, join.types(), strict=True)
        ]
    labelled = [column.label(f"c{index}") for index, column in enumerate(columns)]
    query = sa.select(*labelled).select_from(joined).order_by(wanted.c[ROW])
    return query.prefix_with(revision_mark(request.revision)), layout


def _join(
    session: Session,
    joined: sa.FromClause,
    wanted: sa.FromClause,
    join: Join,
    names: dict[str, str],
    question: Question,
    *,
    known: bool,
) -> tuple[sa.FromClause, sa.FromClause]:
    dialect = session.dialect
    ttl = join.view.ttl

    def match(rows: sa.FromClause) -> list[sa.ColumnElement[bool]]:
        found = [rows.c[key] == wanted.c[names[column]] for key, column in join.columns]
        found.append(rows.c[EVENT] <= wanted.c[AT])
        if ttl is not None:
            found.append(dialect.within(rows.c[EVENT], wanted.c[AT], ttl))
        if known:
            found.append(rows.c[CREATED] <= wanted.c[AT])
        return found + question.seen(join, rows)

    return dialect.join_latest(joined, join.view.history, match)


def _chunk(
    session: Session,
    rows: Sequence[Sequence[Any]],
    layout: Sequence[tuple[int, list[FeatureType]]],
) -> list[Matched]:
    columns = list(zip(*rows, strict=True))
    found = []
    for start, types in layout:
        features = columns[start + 2 : start + 2 + len(types)]
        arrays = [
            session.dialect.arrow(kind, values)
            for kind, values in zip(types, features, strict=True)
        ]
        leaked = sum(bool(value) for value in columns[start + 1])
        found.append(Matched(pa.array(columns[start], pa.int64()), leaked, tuple(arrays)))
    return found
