"""Parquet by row groups: the bytes of the next are read while the present one is decoded.

Only the column chunks that the view names are read. Decoding runs in a thread, from bytes that
are there already.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import SourceError
from featurestore.ingest.ranges import RangeReader, Ranges

BATCH_ROWS = 65_536
"""Rows per decoded batch: large enough that the cost per batch is lost in the work per row."""

_MAGIC = b"PAR1"
_MAGIC_ENCRYPTED = b"PARE"
_TAIL = 8
_GUESS = 64 * 1024
"""How much of a file's end is read at first: most footers are smaller."""


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says of itself; ``digest`` names this footer's bytes."""

    metadata: Any
    schema: pa.Schema
    digest: str

    @property
    def rows(self) -> int:
        return int(self.metadata.num_rows)

    @property
    def row_groups(self) -> int:
        return int(self.metadata.num_row_groups)


@dataclass(frozen=True)
class Chunks:
    """The column chunks of one row group that are needed: merged byte ranges (offset, length)."""

    row_group: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def bytes(self) -> int:
        return sum(length for _, length in self.ranges)


async def read_footer(reader: RangeReader) -> Footer:
    """Read and parse the footer; :class:`SourceError` for what is no (whole) Parquet file."""
    if reader.size < _TAIL + len(_MAGIC):
        what = "empty" if reader.size == 0 else f"only {reader.size} bytes long"
        raise SourceError(f"{reader.name}: the file is {what}, which is no Parquet file.")
    guess = min(reader.size, _GUESS)
    tail = await reader.read(reader.size - guess, guess)
    if tail.endswith(_MAGIC_ENCRYPTED):
        raise SourceError(f"{reader.name}: the Parquet file is encrypted; decrypt it first.")
    if not tail.endswith(_MAGIC):
        start = await reader.read(0, len(_MAGIC))
        why = "is cut off" if start == _MAGIC else "is no Parquet file"
        raise SourceError(f"{reader.name} {why}: it does not end as one.")
    length = int.from_bytes(tail[-_TAIL:-4], "little") + _TAIL
    if length > reader.size - len(_MAGIC):
        raise SourceError(f"{reader.name} is damaged: its footer is longer than the file.")
    if length > len(tail):
        tail = await reader.read(reader.size - length, length)
    return await asyncio.to_thread(_parse_footer, reader.name, reader.size, tail, length)


def _parse_footer(name: str, size: int, tail: bytes, length: int) -> Footer:
    try:
        file = pq.ParquetFile(Ranges(size, {size - len(tail): tail}), pre_buffer=False)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"{name} is damaged: its footer cannot be read ({error}).") from error
    digest = hashlib.blake2b(tail[-length:], digest_size=20).hexdigest()
    return Footer(file.metadata, schema, digest)


def leaves(schema: pa.Schema, columns: Iterable[str]) -> list[int]:
    """The positions of Parquet's leaf columns that make up the top-level ``columns``.

    Counted rather than looked up by path: a path joins names with dots, which names may hold.
    """
    wanted = set(columns)
    positions: list[int] = []
    next_leaf = 0
    for field in schema:
        count = _leaf_count(field.type)
        if field.name in wanted:
            positions += range(next_leaf, next_leaf + count)
        next_leaf += count
    return positions


def _leaf_count(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _leaf_count(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _leaf_count(kind.value_type)
    if pa.types.is_nested(kind):
        return sum(_leaf_count(kind.field(i).type) for i in range(kind.num_fields))
    return 1


def plan_chunks(footer: Footer, columns: Sequence[str], name: str, size: int) -> list[Chunks]:
    """Where the needed column chunks of each row group lie."""
    positions = leaves(footer.schema, columns)
    plan = []
    for index in range(footer.row_groups):
        group = footer.metadata.row_group(index)
        ranges = sorted(_chunk_range(group.column(i)) for i in positions)
        if any(start < 0 or length < 0 or start + length > size for start, length in ranges):
            raise SourceError(f"{name} is damaged: row group {index} lies outside of the file.")
        plan.append(Chunks(index, tuple(_merged(ranges))))
    return plan


def _chunk_range(chunk: Any) -> tuple[int, int]:
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        start = min(start, chunk.dictionary_page_offset)
    return int(start), int(chunk.total_compressed_size)


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


async def read_chunks(reader: RangeReader, chunks: Chunks) -> dict[int, bytes]:
    """The bytes of a row group's needed chunks, by offset."""
    return await reader.read_ranges(chunks.ranges)


async def content_digest(reader: RangeReader, plan: Sequence[Chunks]) -> str:
    """The digest of all the needed bytes, without decoding them."""
    digest = ContentDigest()
    for chunks in plan:
        await asyncio.to_thread(digest.update, await read_chunks(reader, chunks))
    return digest.hexdigest()


class ContentDigest:
    """Names the bytes of the needed columns: the same ones are the same content."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=20)

    def update(self, ranges: dict[int, bytes]) -> None:
        for _, data in sorted(ranges.items()):
            self._hash.update(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


async def read_batches(
    reader: RangeReader,
    footer: Footer,
    plan: Sequence[Chunks],
    columns: Sequence[str],
    digest: ContentDigest,
) -> AsyncIterator[tuple[pa.RecordBatch, int]]:
    """The needed columns in batches of at most ``BATCH_ROWS`` rows, with the bytes that each
    row group took (at its first batch).

    While one row group is decoded the next one's bytes are read; never more than these two are
    held.
    """
    positions = leaves(footer.schema, columns)
    ahead: asyncio.Task[dict[int, bytes]] | None = None
    try:
        for index, chunks in enumerate(plan):
            ranges = await (ahead or asyncio.ensure_future(read_chunks(reader, chunks)))
            ahead = None
            if index + 1 < len(plan):
                ahead = asyncio.ensure_future(read_chunks(reader, plan[index + 1]))
            decoder = _Decoder(reader, footer, chunks, ranges, positions)
            await asyncio.to_thread(digest.update, ranges)
            size = chunks.bytes
            while (batch := await asyncio.to_thread(decoder.next)) is not None:
                yield batch, size
                size = 0
    finally:
        if ahead is not None:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)


class _Decoder:
    """Decodes one row group from its bytes; its calls are for a thread."""

    def __init__(
        self,
        reader: RangeReader,
        footer: Footer,
        chunks: Chunks,
        ranges: dict[int, bytes],
        positions: list[int],
    ) -> None:
        self._name = reader.name
        self._size = reader.size
        self._footer = footer
        self._chunks = chunks
        self._ranges = ranges
        self._positions = positions
        self._batches: Any = None

    def next(self) -> pa.RecordBatch | None:
        try:
            if self._batches is None:
                self._batches = self._open()
            return next(self._batches, None)
        except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError) as error:
            raise SourceError(
                f"{self._name} is damaged: row group {self._chunks.row_group} cannot be decoded "
                f"({error})."
            ) from error

    def _open(self) -> Any:
        file = pq.ParquetFile(
            Ranges(self._size, self._ranges),
            metadata=self._footer.metadata,
            pre_buffer=False,
            page_checksum_verification=True,
        )
        return file.reader.iter_batches(
            BATCH_ROWS,
            row_groups=[self._chunks.row_group],
            column_indices=self._positions,
            use_threads=False,
        )
