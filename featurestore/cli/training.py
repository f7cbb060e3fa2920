"""A training set on its way to a Parquet file: batch by batch, whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import SourceError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_GROUP = 131_072
"""Rows that are gathered before they are written: what a reader of the file gets at a time."""


class TrainingFile:
    """The file as it grows, and how many of its rows found a value in each view.

    ``features`` has the columns of each view. A row counts where any of them is not null.
    Made by :func:`training_file`.
    """

    def __init__(self, path: Path, features: Mapping[str, Sequence[str]]) -> None:
        self.rows = 0
        self.columns = 0
        self.with_value = dict.fromkeys(features, 0)
        self._path = path
        self._features = features
        self._writer: Any = None
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        # A cancelled write goes on in its thread; what comes next has to wait for it.
        self._busy = threading.Lock()

    async def add(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        self.rows += batch.num_rows
        if self._waiting_rows >= ROWS_PER_GROUP:
            await self.flush()

    async def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting, self._waiting_rows = self._waiting, [], 0
        if waiting:
            import pyarrow as pa

            await self.write(pa.Table.from_batches(waiting))

    async def write(self, table: pa.Table) -> None:
        """Write a row group, perhaps an empty one: the columns of a training set of no rows."""
        await asyncio.to_thread(self._write, table)

    def close(self) -> None:
        with self._busy:
            if self._writer is not None:
                self._writer.close()

    def _write(self, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        with self._busy:
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._path, table.schema)
            self._writer.write_table(table)
        self.columns = table.num_columns
        for view, names in self._features.items():
            self.with_value[view] += _rows_with_value(table, names)


def _rows_with_value(table: pa.Table, names: Sequence[str]) -> int:
    import pyarrow.compute as pc

    found = table.column(names[0]).is_valid()
    for name in names[1:]:
        found = pc.or_(found, table.column(name).is_valid())
    return int(pc.sum(found, min_count=0).as_py())


@asynccontextmanager
async def training_file(
    path: Path, features: Mapping[str, Sequence[str]]
) -> AsyncIterator[TrainingFile]:
    """A file at ``path`` that is there when all went well, and else not touched."""
    partial = path.with_name(f"{path.name}.partial")
    file = TrainingFile(partial, features)
    try:
        try:
            yield file
            await file.flush()
        finally:
            await asyncio.to_thread(file.close)
        await asyncio.to_thread(partial.replace, path)
    except OSError as error:
        raise SourceError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(partial.unlink, missing_ok=True)
