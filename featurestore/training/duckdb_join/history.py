"""A view's history beside the database: in memory where it fits, in a Parquet file else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurestore.ingest.ahead import ahead
from featurestore.selection import Join
from featurestore.storage.registry import RegisteredView
from featurestore.storage.session import Session
from featurestore.storage.tables import revision_mark
from featurestore.storage.waiting import in_thread
from featurestore.training.duckdb_join import statements
from featurestore.training.duckdb_join.columns import longest, plain_key, ready_to_take
from featurestore.training.entities import Entities
from featurestore.training.history import history_schema, history_types, read_source
from featurestore.training.memory import POOL
from featurestore.training.pruning import history_bounds
from featurestore.training.rule import Question
from featurestore.training.spool import spilling

if TYPE_CHECKING:
    import duckdb

_GROUP_BYTES = 32 * 1024 * 1024
"""What is gathered before it is written: a row group."""


class History:
    """A view's history as the joins need it: its columns in memory, or a Parquet file."""

    def __init__(
        self, view: RegisteredView, columns: dict[str, pa.ChunkedArray] | None, rows: _Gathered
    ) -> None:
        self.view = view
        self.columns = columns
        self.path = rows.path
        self.held = 0 if columns is None else rows.bytes
        """Bytes in memory."""
        self.row_bytes = max(rows.bytes // max(rows.rows, 1), 1)
        """Of a row, on average."""
        self.longest = rows.longest
        """Bytes of the longest value."""

    def register(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make it known as ``history``, by the names that the statements have for it."""
        # Of the view before: one of Arrow columns and one of a file do not replace each other.
        connection.unregister("history")
        connection.execute("DROP VIEW IF EXISTS history")
        names = statements.short_names(self.view.view.join_keys)
        if self.columns is not None:
            narrow = {name: plain_key(self.columns[column]) for column, name in names.items()}
            narrow["id"] = pa.arange(0, len(narrow["t"]), memory_pool=POOL)
            connection.register("history", pa.table(narrow))
            return
        connection.read_parquet(str(self.path)).create_view("rows_of_history")
        connection.execute(statements.history_view(names, self.view.view.join_keys))

    @classmethod
    async def read(
        cls,
        session: Session,
        view: RegisteredView,
        joins: Sequence[Join],
        entities: Entities,
        question: Question,
        folder: Path,
        limit: int,
    ) -> History:
        """Read it; in memory up to ``limit`` bytes."""
        features = list(dict.fromkeys(name for join in joins for name in join.features))
        types = history_types(view, features)
        schema = history_schema(types)
        started = time.perf_counter()
        if view.name in question.from_source:
            batches = read_source(session, view, types)
        else:
            bounds = await history_bounds(session, view, joins, entities, question)
            mark = revision_mark(question.request.revision)
            batches = session.dialect.extract(
                session, view.history, types, bounds, mark, inside=question.inside
            )
        gathered = _Gathered(schema, folder / f"history-{view.id}.parquet", limit)
        try:
            async with ahead(batches) as arriving:
                async for batch in arriving:
                    await in_thread(gathered.add, batch)
                    question.report.tell("history", gathered.rows, view=view.name)
            columns = await in_thread(gathered.finish)
        finally:
            await in_thread(gathered.close)
        question.report.history_read(view.name, gathered.rows, time.perf_counter() - started)
        return cls(view, columns, gathered)


class _Gathered:
    """Rows of history: in memory up to ``limit`` bytes, in a Parquet file beyond. For threads."""

    def __init__(self, schema: pa.Schema, path: Path, limit: int) -> None:
        self.rows = self.bytes = self.longest = 0
        self.path = path
        self._schema = schema
        self._limit = limit
        self._waiting = 0
        self._batches: list[pa.RecordBatch] = []
        self._writer: Any = None

    def add(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self.rows += batch.num_rows
        self.bytes += batch.nbytes
        self.longest = max(self.longest, *(longest(column) for column in batch.columns))
        self._waiting += batch.nbytes
        if self._writer is None and self._waiting > self._limit:
            import pyarrow.parquet as pq

            with spilling():
                # Read once or twice, and soon: what is quick to write.
                self._writer = pq.ParquetWriter(
                    self.path, self._schema, compression="lz4", write_statistics=False
                )
        if self._writer is not None and self._waiting > _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        with spilling():
            self._writer.write_table(pa.Table.from_batches(self._batches, self._schema))
        self._batches, self._waiting = [], 0

    def finish(self) -> dict[str, pa.ChunkedArray] | None:
        """The columns, where they are in memory. Numbers as they came: to put them into one piece
        would be to touch as much memory again."""
        if self._writer is None:
            rows = pa.Table.from_batches(self._batches, self._schema)
            columns = dict(zip(rows.column_names, rows.columns, strict=True))
            self._batches, rows = [], None
            for name in columns:
                columns[name] = ready_to_take(columns[name])
            return columns
        self._flush()
        with spilling():
            self._writer.close()
        self._writer = None
        return None

    def close(self) -> None:
        """After a failure: the file is thrown away."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError, pa.ArrowException):  # a full disk refuses the end as well
                writer.close()
