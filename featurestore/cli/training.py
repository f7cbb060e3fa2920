"""A training set on its way to a Parquet file: batch by batch, whole or not at all."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from featurestore.training.training_set import TrainingSet


class TrainingFile:
    """The file as it grows: an async context manager, which leaves it there when all went well
    and :meth:`finish` was called, and else leaves what was there before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        # A cancelled write goes on in its thread; what comes next has to wait for it.
        self._busy = threading.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._leave, kind, error, trace)

    async def add(self, batch: pa.RecordBatch) -> None:
        """Take the next rows; they are written in groups of the size that readers like."""
        from featurestore.training.training_set import GROUP_ROWS

        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        if self._waiting_rows >= GROUP_ROWS:
            await self._flush()

    async def finish(self, summary: TrainingSet) -> None:
        """Write what waits, and the manifest; of a set without rows its columns."""
        await self._flush()
        await asyncio.to_thread(self._finish, summary)

    async def _flush(self) -> None:
        waiting, self._waiting, self._waiting_rows = self._waiting, [], 0
        if waiting:
            import pyarrow as pa

            await asyncio.to_thread(self._write, pa.Table.from_batches(waiting))

    def _write(self, table: pa.Table) -> None:
        from featurestore.training.training_set import write_rows

        with self._busy:
            write_rows(self._opened(table.schema), table)

    def _finish(self, summary: TrainingSet) -> None:
        from featurestore.training.training_set import add_manifest

        with self._busy:
            add_manifest(self._opened(summary.table.schema), summary.manifest)

    def _opened(self, schema: pa.Schema) -> pq.ParquetWriter:
        from featurestore.training.training_set import parquet_file

        if self._writer is None:
            self._writer = self._files.enter_context(parquet_file(self._path, schema))
        return self._writer

    def _leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._busy:
            self._files.__exit__(kind, error, trace)
