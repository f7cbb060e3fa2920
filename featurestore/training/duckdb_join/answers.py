"""Matches to answers: features gathered by position in memory, or joined from a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.selection import Join
from featurestore.storage.tables import ARRIVAL, CREATED
from featurestore.storage.waiting import uninterrupted
from featurestore.training.duckdb_join import statements
from featurestore.training.duckdb_join.columns import single
from featurestore.training.duckdb_join.database import Database
from featurestore.training.duckdb_join.history import History
from featurestore.training.entities import Entities
from featurestore.training.rule import AT, Matched

if TYPE_CHECKING:
    import duckdb

CHUNK_ROWS = 262_144
"""Entity rows per answer. Each gathering goes through all pieces of a column: of 2 million rows in
16 pieces, 1 million are gathered in 0.03 s by 65,536 at a time, and in 0.01 s by so many."""


class Answer(Protocol):
    """The matches of one join, for all entity rows."""

    def chunks(self, database: Database, rows: int) -> AsyncGenerator[Matched, None]:
        """They in the order of the rows, ``CHUNK_ROWS`` at a time."""


@dataclass(frozen=True)
class InMemory:
    """Matches by their positions in history; ``plain`` those that leaks are counted among."""

    join: Join
    columns: dict[str, pa.ChunkedArray]
    asked: pa.ChunkedArray
    positions: pa.Array
    plain: pa.Array

    @classmethod
    def of(
        cls,
        connection: duckdb.DuckDBPyConnection,
        history: History,
        join: Join,
        entities: Entities,
        matches: str,
        plain: str,
    ) -> InMemory:
        """Carry out the queries for the matches and for the plain ones."""
        assert history.columns is not None
        wanted = (ARRIVAL, CREATED, *join.features)
        positions = _positions(connection, matches, len(entities))
        return cls(
            join,
            {name: history.columns[name] for name in wanted},
            entities.keys.column(AT),
            positions,
            positions if plain == matches else _positions(connection, plain, len(entities)),
        )

    async def chunks(self, database: Database, rows: int) -> AsyncGenerator[Matched, None]:
        for start in range(0, rows, CHUNK_ROWS):
            yield await asyncio.to_thread(self._chunk, start)

    def _chunk(self, start: int) -> Matched:
        positions = self.positions.slice(start, CHUNK_ROWS)
        plain = self.plain.slice(start, CHUNK_ROWS)
        created = self.columns[CREATED].take(plain)
        leaked = pc.greater(created, self.asked.slice(start, CHUNK_ROWS))
        return Matched(
            single(self.columns[ARRIVAL].take(positions)),
            pc.sum(leaked, min_count=0).as_py(),
            tuple(single(self.columns[name].take(positions)) for name in self.join.features),
        )


def _positions(connection: duckdb.DuckDBPyConnection, matches: str, rows: int) -> pa.Array:
    """The matches' positions in the order of the entity rows, which they do not come in."""
    found = connection.sql(matches).project("r, id").to_arrow_table()
    ids, places = single(found.column("id")), single(found.column("r"))
    return pc.scatter(ids.cast(pa.int64()), places, max_index=rows - 1)


@dataclass(frozen=True)
class OnDisk:
    """Matches by their arrivals, in tables of DuckDB's; their features in a Parquet file."""

    history: History
    join: Join
    target: str
    plain: str

    @classmethod
    def of(
        cls,
        connection: duckdb.DuckDBPyConnection,
        history: History,
        join: Join,
        index: int,
        matches: str,
        plain: str,
    ) -> OnDisk:
        """Carry out the queries for the matches and for the plain ones."""
        target = first = f"found_{index}"
        connection.execute(statements.kept(target, matches))
        if plain != matches:
            first = f"plain_{index}"
            connection.execute(statements.kept(first, plain))
        return cls(history, join, target, first)

    async def chunks(self, database: Database, rows: int) -> AsyncGenerator[Matched, None]:
        cursor = await database.run(database.connection.cursor)
        try:
            leaked = await database.run(lambda: self._leaks(cursor), cursor)
            reader = await database.run(lambda: self._sorted(cursor), cursor)
            waiting: list[pa.RecordBatch] = []
            while True:
                batch = await database.run(lambda: next(reader, None), cursor)
                waiting += [] if batch is None else [batch]
                while sum(one.num_rows for one in waiting) >= (CHUNK_ROWS if batch else 1):
                    piece = pa.Table.from_batches(waiting)
                    waiting = piece.slice(CHUNK_ROWS).to_batches()
                    yield await asyncio.to_thread(self._chunk, piece.slice(0, CHUNK_ROWS), leaked)
                    leaked = 0  # all are told with the first
                if batch is None:
                    return
        finally:
            await uninterrupted(asyncio.to_thread(cursor.close))

    def _leaks(self, cursor: duckdb.DuckDBPyConnection) -> int:
        cursor.read_parquet(str(self.history.path)).create_view("rows_of_history")
        ((leaked,),) = cursor.execute(statements.leaks(self.plain)).fetchall()
        return int(leaked)

    def _sorted(self, cursor: duckdb.DuckDBPyConnection) -> pa.RecordBatchReader:
        query = statements.in_order(self.target, self.join.features)
        return cursor.sql(query).to_arrow_reader(CHUNK_ROWS)

    def _chunk(self, table: pa.Table, leaked: int) -> Matched:
        arrivals, *features = (single(column) for column in table.columns)
        types = self.join.types()
        cast = [column.cast(kind.arrow) for column, kind in zip(features, types, strict=True)]
        return Matched(arrivals.cast(pa.int64()), leaked, tuple(cast))
