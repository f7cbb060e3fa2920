"""One row group from its bytes to record batches, in steps that fit the memory given.

All of it is for a thread: it takes bytes that have come, and never waits for any.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import SourceError
from featurestore.ingest.footer import DAMAGE, OLD_PADDING, Chunk, Footer
from featurestore.ingest.pages import ColumnBytes, Leaf, PageScan

BATCH_ROWS = 65_536
"""Rows per decoded batch: large enough that the cost per batch is lost in the work per row."""

_BUFFER = 64 * 1024
"""Bytes that pyarrow reads at a time of a chunk that comes in pieces, at most."""


@dataclass(frozen=True)
class Limits:
    """What one file may hold in memory, in bytes.

    ``bytes_in_flight``: read and not decoded yet, and decoded and not handed on yet.
    ``batch_bytes``: about the largest batch, if it has more than one row. ``decoded_bytes``: what
    a row group decodes to at most.
    """

    bytes_in_flight: int = 128 * 1024 * 1024
    batch_bytes: int = 16 * 1024 * 1024
    decoded_bytes: int = 2 * 1024 * 1024 * 1024

    @property
    def page(self) -> int:
        """The largest page: it is decoded whole, and some writers make but one of each chunk."""
        return max(self.bytes_in_flight, 16 * 1024 * 1024)

    @property
    def compressed(self) -> int:
        """Bytes as they were read: beside them lie a batch and the steps that become the next."""
        return max(self.bytes_in_flight - 2 * self.batch_bytes, self.bytes_in_flight // 2)


@dataclass(frozen=True)
class Chunks:
    """The column chunks of one row group that are needed, in the order of their columns."""

    row_group: int
    rows: int
    columns: tuple[Chunk, ...]

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Where they lie: (offset, length), neighbours in one."""
        return tuple(_merged(sorted((one.offset, one.length) for one in self.columns)))

    @property
    def bytes(self) -> int:
        return sum(one.length for one in self.columns)


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours become one read; so does what overlaps."""
    merged: list[tuple[int, int]] = []
    for start, length in ranges:
        if merged and start <= sum(merged[-1]):
            first, known = merged[-1]
            merged[-1] = (first, max(known, start + length - first))
        else:
            merged.append((start, length))
    return merged


class Decoder:
    """Decodes the row groups of one file, one after the other."""

    def __init__(
        self, name: str, size: int, footer: Footer, positions: list[int], limits: Limits
    ) -> None:
        self.name = name
        self.limits = limits
        self.positions = positions
        self.leaves = [Leaf.of(footer.metadata, position) for position in positions]
        self._size = size
        self._metadata = footer.metadata
        self._files: dict[bool, tuple[_Columns, Any]] = {}

    def open(self, columns: list[ColumnBytes], *, whole: bool) -> Any:
        """A Parquet file of which only ``columns`` are there; all of their bytes, or pieces."""
        if whole not in self._files:
            view = _Columns(self._size)
            share = self.limits.compressed // (8 * len(columns))
            file = pq.ParquetFile(
                view,
                metadata=self._metadata,
                buffer_size=0 if whole else max(4096, min(_BUFFER, share)),
                pre_buffer=False,
                page_checksum_verification=True,
                arrow_extensions_enabled=False,
                coerce_int96_timestamp_unit="us",
            )
            self._files[whole] = view, file
        view, file = self._files[whole]
        view.show(columns)
        return file

    def close(self, *, whole: bool) -> None:
        """Let go of the columns shown last."""
        self._files[whole][0].show([])

    def too_large(self, row_group: int, least: int) -> SourceError:
        """The error for a row group that decodes to ``least`` bytes or more."""
        limit = self.limits.decoded_bytes
        return SourceError(
            f"{self.name}: row group {row_group} decodes to {least:,} bytes at least, and up to "
            f"{limit:,} are taken. If the file is what it should be, allow more "
            f"(max_decoded_bytes={_rounded(least)}), or write it with smaller row groups."
        )

    def page_too_large(self, row_group: int, leaf: Leaf, size: int) -> SourceError:
        """The error for a page that alone is more than a file may hold."""
        return SourceError(
            f"{self.name}: row group {row_group}, column {leaf.path!r} has a page of "
            f"{size:,} bytes, of which a file may hold {self.limits.page:,}. If the file "
            f"is what it should be, allow more (max_bytes_in_flight), or write it with smaller "
            f"pages."
        )

    @contextmanager
    def naming(self, row_group: int) -> Iterator[None]:
        """What goes wrong inside is the file's fault, and becomes an error that names it."""
        try:
            yield
        except DAMAGE as error:
            why = str(error) or type(error).__name__
            what = "uses what pyarrow cannot read" if _unknown(error) else "cannot be decoded"
            start = self.name if _unknown(error) else f"{self.name} is damaged"
            raise SourceError(f"{start}: row group {row_group} {what} ({why}).") from error


def _unknown(error: BaseException) -> bool:
    return isinstance(error, NotImplementedError) or "Not yet implemented" in str(error)


def _rounded(size: int) -> int:
    """The next power of two."""
    return 1 << size.bit_length()


class RowGroup:
    """One row group on its way: bytes go in by :meth:`feed`, batches come out of :meth:`next`."""

    def __init__(
        self,
        decoder: Decoder,
        chunks: Chunks,
        *,
        whole: bool,
        skip: int = 0,
        hashed: bool = True,
    ) -> None:
        self.chunks = chunks
        self.index = index = chunks.row_group
        self.rows = chunks.rows
        self.row = 0
        self.columns = [ColumnBytes(chunk.offset, chunk.length) for chunk in chunks.columns]
        self._tally = _Tally(decoder, index)
        self.scans = [
            PageScan(leaf, chunk, data, chunks.rows, self._tally.page)
            for leaf, chunk, data in zip(decoder.leaves, chunks.columns, self.columns, strict=True)
        ]
        self.stopped = False
        self._decoder = decoder
        self._limits = decoder.limits
        self._whole = whole
        self._skip = skip
        self._hashes = [_hash() for _ in chunks.columns] if hashed else []
        self._file: Any = None
        self._batches: Any = None
        self._gathered: list[pa.RecordBatch] = []
        self._held = 0
        self._ready: list[pa.RecordBatch] = []

    @property
    def done(self) -> bool:
        """Whether all rows were handed on."""
        return self.row == self.rows and not self._gathered and not self._ready

    def digests(self) -> bytes:
        """The digest of each column chunk's bytes, one after the other."""
        return b"".join(one.digest() for one in self._hashes)

    def feed(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        """More bytes: of the column with that number, those after what it has."""
        with self._decoder.naming(self.index):
            for column, piece in pieces:
                if self.stopped:
                    return
                if self._hashes:
                    self._hashes[column].update(piece)
                data, scan = self.columns[column], self.scans[column]
                data.add(piece)
                scan.advance()
                if self.row == self.rows:  # it is only looked through
                    data.release(data.arrived if scan.complete else scan.position)

    def next(self) -> pa.RecordBatch | None:
        """The next batch; None at the end, and where more bytes must come first."""
        with self._decoder.naming(self.index):
            while not self._ready:
                usable = min(scan.usable for scan in self.scans)
                gathered = sum(batch.num_rows for batch in self._gathered)
                full = gathered == BATCH_ROWS or self._held * 2 >= self._limits.batch_bytes
                if gathered and (full or self.row == self.rows):
                    self._put_together()
                elif self.row >= usable or self.stopped:
                    if self._whole and self.row < self.rows and not self.stopped:
                        raise ValueError(f"it ends after {usable:,} of {self.rows:,} rows")
                    return None
                else:
                    room = min(BATCH_ROWS - gathered, usable - self.row)
                    self._step(self._fitting(room))
        return self._ready.pop(0)

    def _fitting(self, count: int) -> int:
        """How many of the next ``count`` rows fit into the batch, going by what they may cost."""
        room = self._limits.batch_bytes - self._held
        before = sum(scan.cost(self.row) for scan in self.scans)
        while count > 1:
            cost = sum(scan.cost(self.row + count) for scan in self.scans) - before
            if cost <= room:
                break
            count = max(1, min(count - 1, int(count * room / cost)))
        return count

    def _step(self, count: int) -> None:
        """Decode ``count`` rows."""
        if self._batches is None:
            self._file = self._decoder.open(self.columns, whole=self._whole)
            self._batches = self._file.reader.iter_batches(
                count,
                row_groups=[self.index],
                column_indices=self._decoder.positions,
                use_threads=False,
            )
        end = self.row + count
        while self.row < end:
            self._file.reader.set_batch_size(end - self.row)
            batch = next(self._batches, None)
            if batch is None or not 0 < batch.num_rows <= end - self.row:
                raise ValueError(f"it does not hold the {self.rows:,} rows that the footer says")
            self._tally.decoded(batch.nbytes)
            first, self.row = self.row, self.row + batch.num_rows
            if self.row > self._skip:
                kept = batch.slice(max(0, self._skip - first))
                self._gathered.append(kept)
                self._held += kept.nbytes
        if self.row == self.rows:
            self._batches = None
            self._decoder.close(whole=self._whole)
        elif not self._whole:
            for data, scan in zip(self.columns, self.scans, strict=True):
                data.release(min(data.used, scan.position))

    def _put_together(self) -> None:
        """Make a batch of what was gathered, or several where it came out larger than thought."""
        one = self._gathered[0] if len(self._gathered) == 1 else pa.concat_batches(self._gathered)
        self._gathered, self._held = [], 0
        waiting = [one]
        while waiting:
            batch = waiting.pop()
            if batch.num_rows > 1 and batch.nbytes > self._limits.batch_bytes * 5 // 4:
                half = batch.num_rows // 2
                waiting += [batch.slice(half), batch.slice(0, half)]
            else:
                self._ready.append(batch)


class _Tally:
    """What a row group decodes to at least, going by its pages and by what came out of them.

    Apart from the row group, so that its column chunks know no one who knows them: in a circle
    they would stay in memory until someone collects it.
    """

    def __init__(self, decoder: Decoder, row_group: int) -> None:
        self._decoder = decoder
        self._row_group = row_group
        self._told = self._decoded = 0

    def page(self, leaf: Leaf, least: int, size: int) -> None:
        """Take note of a page, of ``size`` bytes plain; raises for what is too much."""
        self._told += least
        self._check(self._told)
        if size > self._decoder.limits.page:
            raise self._decoder.page_too_large(self._row_group, leaf, size)

    def decoded(self, size: int) -> None:
        self._decoded += size
        self._check(self._decoded)

    def _check(self, least: int) -> None:
        if least > self._decoder.limits.decoded_bytes:
            raise self._decoder.too_large(self._row_group, least)


def _hash() -> Any:
    return hashlib.blake2b(digest_size=20)


class _Columns(io.RawIOBase):
    """A file of which the bytes of some column chunks are there, as pyarrow reads files."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0
        self._columns: list[ColumnBytes] = []
        self._starts: list[int] = []

    def show(self, columns: list[ColumnBytes]) -> None:
        """From now on these are the columns that are there."""
        self._columns = sorted(columns, key=lambda column: (column.start, column.end))
        for one, other in itertools.pairwise(self._columns):
            if one.start < one.end and other.start < one.end - OLD_PADDING:
                raise ValueError("its column chunks overlap")
        self._starts = [column.start for column in self._columns]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> Any:
        start = self._position
        index = bisect_right(self._starts, start) - 1
        column = self._columns[index] if index >= 0 else None
        if index > 0 and self._columns[index - 1].used == start < self._columns[index - 1].end:
            column = self._columns[index - 1]  # which old writers made too short
        if column is None or size < 0 or start + size > column.end:
            raise OSError(f"bytes from {start} on lie outside of the column chunks")
        data = column.cut(start, size)
        self._position = column.used = start + len(data)
        return data

    def read_buffer(self, size: int = -1) -> pa.Buffer:
        """As :meth:`read`, without a copy."""
        return pa.py_buffer(self.read(size))
