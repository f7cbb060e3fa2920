"""The engine ``duckdb``.

The needed columns of each view's history come out as Arrow, once for all joins of the view. DuckDB
finds each entity row's match by keys and times alone. Where history fits into the memory allowed,
its features are then gathered by position, which needs no sorting; else they lie in a Parquet file
beside, and DuckDB joins and sorts them, spilling to the disk.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING

import pyarrow as pa

from featurestore.selection import Join
from featurestore.storage.session import Session
from featurestore.training.duckdb_join.answers import Answer, InMemory, OnDisk, chunk_rows
from featurestore.training.duckdb_join.columns import narrow_entities
from featurestore.training.duckdb_join.database import Database, temporary_folder
from featurestore.training.duckdb_join.history import History
from featurestore.training.duckdb_join.statements import Statements
from featurestore.training.entities import Entities
from featurestore.training.memory import POOL, Memory
from featurestore.training.rule import Matched, Question

if TYPE_CHECKING:
    import duckdb


async def join_in_duckdb(
    session: Session, entities: Entities, question: Question, memory: Memory
) -> AsyncGenerator[list[Matched], None]:
    """The engine ``duckdb``; the session is in a transaction of one snapshot."""
    async with AsyncExitStack() as stack:
        folder = await stack.enter_async_context(temporary_folder())
        database = await stack.enter_async_context(Database.open(folder, memory))
        answers: list[Answer] = []
        by_view: dict[int, History] = {}
        joins = question.request.joins
        room = memory.history - _positions_bytes(entities, question)
        for index, join in enumerate(joins):
            if join.view.id not in by_view:
                same = [one for one in joins if one.view.id == join.view.id]
                by_view[join.view.id] = await History.read(
                    session, join.view, same, entities, question, folder, max(room, 0)
                )
                room -= by_view[join.view.id].held
            history = by_view[join.view.id]
            answers.append(await _match(database, entities, join, history, question, index))
            if all(one.view.id != join.view.id for one in joins[index + 1 :]):
                del by_view[join.view.id]
        rows, size = len(entities), chunk_rows(answers)
        streams = [
            await stack.enter_async_context(aclosing(answer.chunks(database, rows, size)))
            for answer in answers
        ]
        while True:
            found = [await anext(stream, None) for stream in streams]
            if found[0] is None:
                return
            yield [one for one in found if one is not None]


def _positions_bytes(entities: Entities, question: Question) -> int:
    """What the joins' matches take up by their positions, and the plain ones of ``known_by``."""
    each = 16 if question.known else 8
    return each * len(entities) * len(question.request.joins)


async def _match(
    database: Database,
    entities: Entities,
    join: Join,
    history: History,
    question: Question,
    index: int,
) -> Answer:
    """Find each entity row's match; see ``rule.py``."""
    statements = Statements(join)

    def find() -> Answer:
        connection = database.connection
        connection.register("entity", narrow_entities(entities.keys, join))
        history.register(connection)
        tied = history.columns is None or _may_be_tied(connection, statements)
        if tied:
            connection.execute(statements.ties)
            tied = connection.execute("SELECT 1 FROM ties LIMIT 1").fetchone() is not None
        if tied:
            connection.execute(statements.best)
        plain = statements.plain(tied=tied)
        matches = statements.known if question.known else plain
        if history.columns is not None:
            return InMemory.of(connection, history, join, entities, matches, plain)
        return OnDisk.of(connection, history, join, index, matches, plain)

    return await database.run(find)


def _may_be_tied(connection: duckdb.DuckDBPyConnection, statements: Statements) -> bool:
    """Whether there can be ties in history. Most have none, and to sort numbers tells so in a third
    of the time that DuckDB takes to group keys and times: 0.04 s for 2 million rows."""
    try:
        import numpy as np
    except ImportError:  # neither Arrow nor DuckDB needs it
        return True
    hashes = connection.sql(statements.hashes).to_arrow_table().column("hash")
    if len(hashes) < 2:
        return False
    # In place, and not in memory of numpy's, for which it wants huge pages; see POOL.
    found = np.frombuffer(pa.allocate_buffer(8 * len(hashes), memory_pool=POOL), np.uint64)
    np.concatenate([chunk.to_numpy() for chunk in hashes.chunks], out=found)
    found.sort()
    return bool((found[1:] == found[:-1]).any())
