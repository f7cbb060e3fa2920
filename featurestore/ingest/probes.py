"""Parts of a page that pyarrow decodes for us: each is dressed as a Parquet file of one column.

Lengths of strings, levels of lists and prefixes are what the memory that a page will take depends
on, and pyarrow decodes them a hundred times as fast as Python would.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.ingest import thrift
from featurestore.ingest.thrift import BINARY, I32, I64, LIST, STRUCT

_BOOLEAN, _INT32, _BYTE_ARRAY = 0, 1, 6
_PLAIN, _RLE, _DELTA = 0, 3, 5
_MAGIC = b"PAR1"

_STEP = 65_536  # values at a time

_CODECS = {
    1: ("snappy",),
    2: ("gzip",),
    4: ("brotli",),
    5: ("lz4_raw",),  # in Hadoop's frame, or bare: see `decompressed`
    6: ("zstd",),
    7: ("lz4_raw",),
}
_HADOOP_LZ4 = 5

KNOWN_CODECS = frozenset({0, *_CODECS})
"""Parquet's numbers of what a page may be compressed by; 0 is not at all. Some versions of Arrow
take any other one for that."""


def decompressed(codec: int, body: Any, size: int) -> pa.Buffer:
    """The ``size`` bytes that ``body`` was compressed from, by Parquet's number of the codec."""
    if codec == 0 or size == 0:
        return pa.py_buffer(body)
    if codec not in _CODECS:
        raise ValueError(f"compression {codec} is not known")
    if codec == _HADOOP_LZ4:
        return _hadoop_lz4(body, size)
    return pa.Codec(_CODECS[codec][0]).decompress(body, size)


def _hadoop_lz4(body: Any, size: int) -> pa.Buffer:
    """Blocks with both lengths before each; bare where they are not that."""
    view, parts, at, missing = memoryview(body), [], 0, size
    codec = pa.Codec("lz4_raw")
    while at + 8 <= len(view) and missing:
        whole = int.from_bytes(view[at : at + 4], "big")
        length = int.from_bytes(view[at + 4 : at + 8], "big")
        at += 8
        if not 0 < whole <= missing or at + length > len(view):
            break
        try:
            parts.append(codec.decompress(view[at : at + length], whole).to_pybytes())
        except (pa.ArrowException, OSError):
            break
        at += length
        missing -= whole
    if missing:
        return codec.decompress(body, size)
    return pa.py_buffer(b"".join(parts))


def string_lengths(body: Any, count: int) -> tuple[int, int]:
    """The least and the greatest length of ``count`` strings that lie one after the other."""
    found = [
        pc.min_max(pc.binary_length(part)).as_py()
        for part in _decoded(body, count, _BYTE_ARRAY, _PLAIN)
    ]
    least = min((one["min"] for one in found), default=0)
    return least, max((one["max"] for one in found), default=0)


def zeros(levels: Any, count: int) -> int:
    """How many of ``count`` levels of 0 or 1, with their length before them, are 0."""
    return sum(part.false_count for part in _decoded(levels, count, _BOOLEAN, _RLE))


def deltas(body: Any, count: int) -> tuple[int, int, int]:
    """Sum, least and greatest of ``count`` numbers that are stored by their differences, and 0."""
    total = least = greatest = 0
    for part in _decoded(body, count, _INT32, _DELTA):
        found = pc.min_max(part).as_py()
        total += pc.sum(part).as_py()
        least, greatest = min(least, found["min"]), max(greatest, found["max"])
    return total, least, greatest


def _decoded(body: Any, count: int, kind: int, encoding: int) -> Iterator[pa.Array]:
    """``count`` values of a page's ``body``, some at a time."""
    if count == 0:
        return
    file = pa.BufferReader(_dressed(body, count, kind, encoding))
    reader = pq.ParquetFile(file, pre_buffer=False).reader
    seen = 0
    for batch in reader.iter_batches(_STEP, row_groups=[0], column_indices=[0], use_threads=False):
        seen += batch.num_rows
        yield batch.column(0)
    if seen != count:
        raise ValueError(f"a page holds {seen:,} values and not {count:,}")


def _dressed(body: Any, count: int, kind: int, encoding: int) -> bytes:
    """A Parquet file of one column of one page."""
    size = memoryview(body).nbytes
    data_header = thrift.pack([(1, I32, count), (2, I32, encoding), (3, I32, _RLE), (4, I32, _RLE)])
    header = thrift.pack([(1, I32, 0), (2, I32, size), (3, I32, size), (5, STRUCT, data_header)])
    meta = thrift.pack(
        [
            (1, I32, kind),
            (2, LIST, (I32, [])),
            (3, LIST, (BINARY, [])),
            (4, I32, 0),
            (5, I64, count),
            (6, I64, len(header) + size),
            (7, I64, len(header) + size),
            (9, I64, len(_MAGIC)),
        ]
    )
    chunk = thrift.pack([(2, I64, 0), (3, STRUCT, meta)])
    group = thrift.pack([(1, LIST, (STRUCT, [chunk])), (2, I64, 0), (3, I64, count)])
    root = thrift.pack([(4, BINARY, b"root"), (5, I32, 1)])
    leaf = thrift.pack([(1, I32, kind), (3, I32, 0), (4, BINARY, b"it")])
    footer = thrift.pack(
        [
            (1, I32, 2),
            (2, LIST, (STRUCT, [root, leaf])),
            (3, I64, count),
            (4, LIST, (STRUCT, [group])),
        ]
    )
    end = footer + len(footer).to_bytes(4, "little") + _MAGIC
    return b"".join((_MAGIC, header, body, end))
