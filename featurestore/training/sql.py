"""The join in the database: one descent into each view's index per entity row.

The keys and times of the entity table go up in bulk into a temporary table; answers come back
a chunk of rows at a time, so memory is bounded whatever the size.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from featurestore.errors import FeatureStoreError
from featurestore.selection import Join
from featurestore.storage.session import Session
from featurestore.storage.tables import ARRIVAL, CREATED, EVENT, revision_mark
from featurestore.storage.waiting import in_thread, uninterrupted
from featurestore.training.entities import Entities
from featurestore.training.rule import AT, ROW, Matched, Question
from featurestore.training.threads import is_small
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
    keys = question.request.key_columns
    # Entity columns can have any name; here they are numbered.
    numbered = {f"k{i}": kind for i, kind in enumerate(keys.values())}
    types: dict[str, FeatureType] = {ROW: Int64, AT: Timestamp, **numbered}
    rows = entities.keys.rename_columns(list(types))
    statement = None
    if len(entities) <= INLINE_ROWS:
        statement = _statement(session, types, question)
    if statement is None:
        async with _uploaded(session, rows, types) as wanted:
            query, layout = _query(session, wanted, question)
            # One statement: in a transaction that others commit beside, each would see another
            # state.
            async with aclosing(session.stream(query, size=CHUNK_ROWS)) as chunks:
                async for chunk in chunks:
                    yield await asyncio.to_thread(_chunk, session, chunk, layout)
        return
    small = is_small(rows)
    values = await in_thread(session.dialect.inline_values, rows, types, small=small)
    found = await session.raw_rows(statement.sql, statement.values(values))
    yield await in_thread(_chunk, session, found, statement.layout, small=small)


Layout = Sequence[tuple[int, list[FeatureType]]]
"""For each join, where its columns begin in a row, and its features' types."""


@dataclass(frozen=True)
class _Statement:
    """A statement for a few rows: its text, its parameters by position, and those that are its
    own; the others are columns of the rows."""

    sql: str
    names: Sequence[str]
    own: Mapping[str, Any]
    layout: Layout

    def values(self, columns: Mapping[str, Any]) -> list[Any]:
        """The parameters by position, with the rows' columns."""
        given = {**self.own, **columns}
        return [given[name] for name in self.names]


_statements: OrderedDict[Any, _Statement] = OrderedDict()
"""Statements that were made last: to make one takes longer than to look 100 rows up."""

_KEPT_STATEMENTS = 64


def _statement(
    session: Session, types: dict[str, FeatureType], question: Question
) -> _Statement | None:
    """The statement that a few rows go along with, where the database takes them so. It is kept,
    unless it is of a mark, which is hardly asked for twice."""
    key = (type(session.dialect), question.request, question.known)
    if not question.as_of and key in _statements:
        _statements.move_to_end(key)
        return _statements[key]
    inline = session.dialect.rows_inline(types)
    if inline is None:
        return None
    query, layout = _query(session, inline, question)
    compiled: Any = query.compile(dialect=session.connection.dialect)
    own = {name: value for name, value in compiled.params.items() if value is not None}
    made = _Statement(str(compiled), tuple(compiled.positiontup), own, layout)
    if not question.as_of:
        _statements[key] = made
        if len(_statements) > _KEPT_STATEMENTS:
            _statements.popitem(last=False)
    return made


@asynccontextmanager
async def _uploaded(
    session: Session, rows: pa.Table, types: dict[str, FeatureType]
) -> AsyncGenerator[sa.Table, None]:
    """The entity rows in a temporary table, for as long as it is open."""
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
) -> tuple[sa.Select[Any], Layout]:
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
    layout: Layout,
) -> list[Matched]:
    columns = list(zip(*rows, strict=True))
    found = []
    for start, types in layout:
        features = columns[start + 2 : start + 2 + len(types)]
        arrays = [
            session.dialect.arrow(kind, values)
            for kind, values in zip(types, features, strict=True)
        ]
        leaked = sum(map(bool, columns[start + 1]))
        found.append(Matched(pa.array(columns[start], pa.int64()), leaked, tuple(arrays)))
    return found
