"""Rows on their way into the data files of a copy: divided by key, sorted, in row groups."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import FeatureStoreError
from featurestore.export.buckets import bucket_of
from featurestore.export.copy import Copy, DataFile, data_path, sync_folder
from featurestore.storage.tables import ARRIVAL, EVENT

GROUP_ROWS = 131_072
"""Rows of a row group: as many as readers like to take at a time."""

FILE_ROWS = 8 * GROUP_ROWS
"""Rows of a data file, about: what an erasure in it has to write anew."""

HELD_BYTES = 128 * 1024 * 1024
"""What waits in memory for its row group to be full, at most; beyond it, the fullest goes."""


class CopyWriter:
    """The files of one export. Its calls are for threads, one after the other.

    A caller that is cancelled leaves a call behind in its thread; :meth:`discard` waits for it.
    """

    def __init__(self, copy: Copy, export: int) -> None:
        self._copy = copy
        self._export = export
        self._kinds = list(copy.keys.values())
        self._waiting: dict[int, list[pa.Table]] = {}
        self._rows: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._open: dict[int, _OpenFile] = {}
        self._paths: list[Path] = []
        self._done: list[DataFile] = []
        self._busy = threading.Lock()
        self._given_up = False

    def add(self, rows: pa.Table) -> None:
        """Take rows of any keys in."""
        with self._busy:
            self._check()
            for bucket, part in self._divided(rows):
                self._waiting.setdefault(bucket, []).append(part)
                self._rows[bucket] = self._rows.get(bucket, 0) + part.num_rows
                self._bytes[bucket] = self._bytes.get(bucket, 0) + part.nbytes
                if self._rows[bucket] >= GROUP_ROWS:
                    self._write(bucket)
            while sum(self._bytes.values()) > HELD_BYTES:
                self._write(max(self._bytes, key=self._bytes.__getitem__))

    def finish(self) -> list[DataFile]:
        """Write what waits; all the files that there are then, on the disk for good."""
        with self._busy:
            self._check()
            for bucket in sorted(self._waiting):
                self._write(bucket)
            for bucket in sorted(self._open):
                self._close(bucket)
            for folder in {path.parent for path in self._paths}:
                sync_folder(folder)
            if self._paths:
                sync_folder(self._copy.folder)
            return self._done

    def discard(self) -> None:
        """Remove all that was written: nobody has been told of it."""
        self._given_up = True
        with self._busy:
            for file in self._open.values():
                file.abandon()
            self._open.clear()
            self._waiting.clear()
            for path in self._paths:
                path.unlink(missing_ok=True)

    def _check(self) -> None:
        if self._given_up:
            raise FeatureStoreError("The export was given up.")

    def _divided(self, rows: pa.Table) -> list[tuple[int, pa.Table]]:
        if not rows.num_rows:
            return []
        if not self._kinds or self._copy.buckets == 1:
            return [(0, rows)]
        keys = [rows.column(key) for key in self._copy.keys]
        buckets = bucket_of(keys, self._kinds, self._copy.buckets)
        order = pc.sort_indices(buckets)
        rows, parts, start = rows.take(order), [], 0
        counts = buckets.value_counts()
        for bucket, count in sorted(
            zip(*(one.to_pylist() for one in counts.flatten()), strict=True)
        ):
            parts.append((bucket, rows.slice(start, count)))
            start += count
        return parts

    def _write(self, bucket: int) -> None:
        """A row group, in the order of keys and time: alike values lie together, and a merge of
        row groups is all that a sorted whole takes."""
        rows = pa.concat_tables(self._waiting.pop(bucket))
        del self._rows[bucket], self._bytes[bucket]
        order = [(name, "ascending") for name in (*self._copy.keys, EVENT, ARRIVAL)]
        rows = rows.take(pc.sort_indices(rows, order))
        file = self._open.get(bucket)
        if file is None:
            number = sum(done.bucket == bucket for done in self._done)
            path = data_path(bucket, self._export, number)
            target = self._copy.folder / path
            target.parent.mkdir(exist_ok=True)
            self._paths.append(target)
            file = self._open[bucket] = _OpenFile(self._copy, path, bucket)
        file.write(rows)
        if file.rows >= FILE_ROWS:
            self._close(bucket)

    def _close(self, bucket: int) -> None:
        file = self._open.pop(bucket)
        self._done.append(file.close())


class _OpenFile:
    """A data file that grows."""

    def __init__(self, copy: Copy, path: str, bucket: int) -> None:
        import pyarrow.parquet as pq

        self.rows = 0
        self._path = path
        self._bucket = bucket
        self._target = copy.folder / path
        self._writer: Any = pq.ParquetWriter(self._target, copy.schema, compression="zstd")
        self._spans: list[tuple[int, int]] = []

    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows, row_group_size=GROUP_ROWS * 2)
        span = pc.min_max(rows.column(ARRIVAL))
        self._spans.append((span["min"].as_py(), span["max"].as_py()))
        self.rows += rows.num_rows

    def close(self) -> DataFile:
        self._writer.close()
        number = os.open(self._target, os.O_RDWR)
        try:
            os.fsync(number)
        finally:
            os.close(number)
        first = min(first for first, _ in self._spans)
        last = max(last for _, last in self._spans)
        return DataFile(self._path, self._bucket, self.rows, first, last)

    def abandon(self) -> None:
        """Close it for the sake of what it holds open; whatever is in it is removed."""
        # It may fail as the export did, of a full disk say.
        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()
