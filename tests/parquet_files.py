"""Parquet files made by hand: what no writer writes, byte by byte where that is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore.ingest.parquet import (
    ContentDigest,
    Limits,
    content_digest,
    plan_chunks,
    read_batches,
    read_footer,
)
from featurestore.ingest.ranges import open_file
from featurestore.ingest.thrift import (
    BINARY,
    I32,
    I64,
    LIST,
    STRUCT,
    pack,
    packed_integer,
    packed_varint,
)

BOOLEAN, INT32, INT64, INT96, FLOAT, DOUBLE, BYTE_ARRAY, FIXED = range(8)
PLAIN, RLE, DELTA, DELTA_LENGTHS, DELTA_STRINGS, DICTIONARY = 0, 3, 5, 6, 7, 8
REQUIRED, OPTIONAL, REPEATED = range(3)
CODECS = {None: 0, "snappy": 1, "gzip": 2, "zstd": 6}


def rle(value: int, count: int, width: int) -> bytes:
    """One value ``count`` times, in the form of levels and of places in a dictionary."""
    return packed_varint(count << 1) + value.to_bytes(-(-width // 8), "little")


def levels(value: int, count: int, width: int = 1) -> bytes:
    """Levels as they stand in a page of version 1: with their length before them."""
    run = rle(value, count, width)
    return len(run).to_bytes(4, "little") + run


def strings(*values: bytes) -> bytes:
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def once_then_same(value: int, count: int) -> bytes:
    """``count`` numbers by their differences: 0, then ``value`` again and again."""
    blocks = [packed_integer(0) + bytes([32, 0, 0, 0]) + value.to_bytes(4, "little") + bytes(124)]
    blocks += [packed_integer(0) + bytes(4)] * (-(-(count - 1) // 128) - 1)
    return _delta_head(count, 0) + b"".join(blocks)


def first_then_zero(value: int, count: int) -> bytes:
    """``count`` numbers by their differences: ``value``, then 0 again and again."""
    # The least difference is -value, which is the first; the others lie by value above it.
    above = [0] + [value] * 127
    packed = b"".join(difference.to_bytes(4, "little") for difference in above)
    blocks = [packed_integer(-value) + bytes([32, 32, 32, 32]) + packed]
    blocks += [packed_integer(0) + bytes(4)] * (-(-(count - 1) // 128) - 1)
    return _delta_head(count, value) + b"".join(blocks)


def _delta_head(count: int, first: int, block: int = 128) -> bytes:
    return packed_varint(block) + packed_varint(4) + packed_varint(count) + packed_integer(first)


def endless_lengths(count: int) -> bytes:
    """A few bytes that stand for ``count`` lengths of 0."""
    block = 1 << 31
    return _delta_head(count, 0, block) + packed_integer(0) + bytes(4)


@dataclass
class Page:
    """A page: what its header says may be another thing than what it holds."""

    body: bytes
    count: int
    encoding: int = PLAIN
    kind: int = 0
    plain_size: int | None = None
    size: int | None = None
    extra: list[tuple[int, int, Any]] = field(default_factory=list)
    v2: tuple[int, int, int, int] | None = None  # nulls, rows, bytes of both levels

    def packed(self, codec: str | None) -> bytes:
        body = self.body if codec is None else pa.Codec(codec).compress(self.body, asbytes=True)
        if self.kind == 2:
            number, inner = 7, [(1, I32, self.count), (2, I32, self.encoding)]
        elif self.v2 is not None:
            nulls, rows, definition, repetition = self.v2
            said = [self.count, nulls, rows, self.encoding, definition, repetition]
            number, inner = 8, [(n, I32, value) for n, value in enumerate(said, 1)]
        else:
            said = [self.count, self.encoding, RLE, RLE]
            number, inner = 5, [(n, I32, value) for n, value in enumerate(said, 1)]
        kind = 3 if self.v2 is not None else self.kind
        header = pack(
            [
                (1, I32, kind),
                (2, I32, len(self.body) if self.plain_size is None else self.plain_size),
                (3, I32, len(body) if self.size is None else self.size),
                (number, STRUCT, pack(inner)),
                *self.extra,
            ]
        )
        return header + body


def dictionary(body: bytes, count: int, **said: Any) -> Page:
    return Page(body, count, PLAIN, kind=2, **said)


@dataclass
class Column:
    """A leaf column, of one row group."""

    name: str
    kind: int
    pages: list[Page]
    form: int = REQUIRED
    width: int = 0
    codec: str | None = None
    is_list: bool = False
    text: bool = False
    meta: dict[int, int] = field(default_factory=dict)  # what its footer says of it instead


def parquet_file(
    columns: Sequence[Column],
    rows: int,
    *,
    file_rows: int | None = None,
    created_by: bytes = b"",
    more: Sequence[tuple[int, int, Any]] = (),
) -> bytes:
    """A file of ``columns`` and one row group of ``rows`` rows, or so its footer says."""
    out = bytearray(b"PAR1")
    chunks, elements = [], [pack([(4, BINARY, b"root"), (5, I32, len(columns))])]
    for column in columns:
        start = len(out)
        out += b"".join(page.packed(column.codec) for page in column.pages)
        meta = {
            1: column.kind,
            4: CODECS[column.codec],
            5: sum(page.count for page in column.pages if page.kind != 2),
            6: len(out) - start,
            7: len(out) - start,
            9: start,
        } | column.meta
        described = [(2, LIST, (I32, [])), (3, LIST, (BINARY, []))]
        described += [(n, I32 if n in (1, 4) else I64, value) for n, value in meta.items()]
        chunks.append(pack([(2, I64, 0), (3, STRUCT, pack(sorted(described)))]))
        elements += _elements(column)
    group = pack([(1, LIST, (STRUCT, chunks)), (2, I64, 0), (3, I64, rows)])
    said = rows if file_rows is None else file_rows
    return bytes(out) + ending(elements, [group], said, created_by, more)


def _elements(column: Column) -> list[bytes]:
    leaf: list[tuple[int, int, Any]] = [(1, I32, column.kind)]
    leaf += [(2, I32, column.width)] if column.width else []
    name = column.name.encode()
    text = [(6, I32, 0)] if column.text else []
    if not column.is_list:
        return [pack([*leaf, (3, I32, column.form), (4, BINARY, name), *text])]
    return [
        pack([(3, I32, REQUIRED), (4, BINARY, name), (5, I32, 1), (6, I32, 3)]),
        pack([(3, I32, REPEATED), (4, BINARY, b"list"), (5, I32, 1)]),
        pack([*leaf, (3, I32, REQUIRED), (4, BINARY, b"element"), *text]),
    ]


def ending(
    elements: list[bytes],
    groups: list[bytes],
    rows: int,
    created_by: bytes = b"",
    more: Sequence[tuple[int, int, Any]] = (),
) -> bytes:
    """A footer and what follows it."""
    footer = pack(
        [
            (1, I32, 2),
            (2, LIST, (STRUCT, elements)),
            (3, I64, rows),
            (4, LIST, (STRUCT, groups)),
            (6, BINARY, created_by),
            *more,
        ]
    )
    return footer + len(footer).to_bytes(4, "little") + b"PAR1"


# --- reading --------------------------------------------------------------------------------

SMALL = Limits(bytes_in_flight=40_000, batch_bytes=20_000)
"""So little that files of a few kilobytes are read in pieces."""


async def read(
    path: Path, limits: Limits | None = None, columns: Sequence[str] | None = None, skip: int = 0
) -> list[pa.RecordBatch]:
    """All batches of a file; with what must hold for any of them."""
    limits = limits or Limits()
    async with open_file(str(path)) as reader:
        footer = await read_footer(reader)
        names = list(dict.fromkeys(footer.schema.names)) if columns is None else list(columns)
        plan = plan_chunks(footer, names, reader.name, reader.size)
        digest = ContentDigest() if not skip else None
        batches, told = [], 0
        async for batch, size in read_batches(
            reader, footer, plan, names, digest, limits, skip_rows=skip
        ):
            batches.append(batch)
            assert size >= 0
            told += size
        if digest is not None:
            assert digest.hexdigest() == await content_digest(reader, plan)
        if batches and footer.groups[-1].rows:
            assert told == sum(chunks.bytes for chunks in plan)
    return batches


async def table_of(
    path: Path, limits: Limits | None = None, columns: Sequence[str] | None = None, skip: int = 0
) -> pa.Table:
    """A whole file."""
    batches = await read(path, limits, columns, skip)
    return await asyncio.to_thread(pa.Table.from_batches, batches)


async def written(path: Path, content: bytes) -> Path:
    await asyncio.to_thread(path.write_bytes, content)
    return path
