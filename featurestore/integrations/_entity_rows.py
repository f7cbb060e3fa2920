"""The rows of an entity table by their numbers: of a table in memory, or of a Parquet file."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from featurestore.errors import SourceError
from featurestore.training.entities import read_entities
from featurestore.urls import without_secrets


class EntityRows(Protocol):
    """Where entity rows are read from. One thread at a time."""

    schema: pa.Schema
    rows: int

    def read(self, start: int, rows: int) -> pa.Table:
        """``rows`` rows from row ``start`` on."""

    def close(self) -> None:
        """Let go of what is open."""


def as_source(entity_df: Any) -> pa.Table | str:
    """What a dataset keeps of ``entity_df``, and takes to its workers: a table, or a path."""
    if not isinstance(entity_df, str | os.PathLike):
        return read_entities(entity_df)
    path = os.fspath(entity_df)
    if "://" in path:
        raise SourceError(
            f"{without_secrets(path)}: the entity table is a Parquet file on a disk, no URL."
        )
    return str(Path(path).absolute())


def open_rows(source: pa.Table | str) -> EntityRows:
    """The rows of what :func:`as_source` gave."""
    return ParquetRows(source) if isinstance(source, str) else TableRows(source)


class TableRows:
    """The rows of a table in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.schema = table.schema
        self.rows: int = table.num_rows

    def read(self, start: int, rows: int) -> pa.Table:
        return self._table.slice(start, rows)

    def close(self) -> None:
        pass


class ParquetRows:
    """The rows of a Parquet file, of which only the row groups that hold them are read.

    Within a row group, rows further on are reached from where the last ones ended, a batch at a
    time; rows further back from the group's beginning.
    """

    BATCH_ROWS = 8_192

    def __init__(self, path: str) -> None:
        import pyarrow.parquet as pq

        self.path = path
        try:
            # Without pre-buffering a row group is read when it is its turn, and no other.
            self._file = pq.ParquetFile(path, pre_buffer=False)
            footer = self._file.metadata
            self.schema = self._file.schema_arrow
        except (OSError, pa.ArrowException) as error:
            raise self._error(error) from error
        self.rows: int = footer.num_rows
        groups = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
        self._starts = list(accumulate(groups, initial=0))[:-1]
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._at = -1
        """The row that comes next: the first of ``_batch``, or the next batch's."""

    def read(self, start: int, rows: int) -> pa.Table:
        try:
            self._go_to(start)
            return pa.Table.from_batches(self._take(rows), self.schema)
        except (OSError, pa.ArrowException, StopIteration) as error:
            raise self._error(error) from error

    def close(self) -> None:
        self._batches = iter(())
        self._file.close()

    def _go_to(self, row: int) -> None:
        group = bisect_right(self._starts, row) - 1
        if not self._starts[group] <= self._at <= row:
            self._batches = self._from(group)
            self._batch = None
            self._at = self._starts[group]
        while self._at < row:
            self._next(row - self._at)

    def _from(self, group: int) -> Iterator[pa.RecordBatch]:
        # One by one: over several at once, a batch is filled up from the next.
        for index in range(group, len(self._starts)):
            yield from self._file.iter_batches(self.BATCH_ROWS, row_groups=[index])

    def _take(self, rows: int) -> list[pa.RecordBatch]:
        taken = []
        while rows > 0:
            taken.append(self._next(rows))
            rows -= taken[-1].num_rows
        return taken

    def _next(self, most: int) -> pa.RecordBatch:
        """The next rows, at most so many."""
        batch = next(self._batches) if self._batch is None else self._batch
        self._batch = batch.slice(most) if batch.num_rows > most else None
        self._at += min(most, batch.num_rows)
        return batch.slice(0, most)

    def _error(self, error: Exception) -> SourceError:
        if os.path.isdir(self.path):
            said = "the entity table is one Parquet file, no folder."
        elif isinstance(error, FileNotFoundError):
            said = "there is no such file."
        else:
            said = f"it cannot be read as Parquet: {error}"
        return SourceError(f"{self.path}: {said}")
