"""What a Parquet file says of itself at its end, read without trusting any of it.

The footer is read here and checked, and pyarrow is given one written anew that holds the checked
part alone: the schema, and where the column chunks lie. Statistics, keys and whatever else a file
may bring are not passed on. (On some of it pyarrow would end the whole process.) The types that
Arrow's writers note beside the schema are left out as well: dictionaries are then decoded to plain
values, which takes memory by the batch and not by the row group, and no extension type is run.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import SourceError
from featurestore.ingest import thrift
from featurestore.ingest.ranges import RangeReader
from featurestore.ingest.thrift import BINARY, I32, I64, LIST, STRUCT

DAMAGE = (
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    TypeError,
)
"""What pyarrow raises for files that are not as they should be."""

MAX_FOOTER = 64 * 1024 * 1024
"""Bytes: some 200,000 column chunks with their statistics. Reading it takes several times that."""

_MAGIC = b"PAR1"
_MAGIC_ENCRYPTED = b"PARE"
_TAIL = 8
_GUESS = 64 * 1024
"""How much of a file's end is read at first: most footers are smaller."""

_NESTING = 64
"""Groups within groups in a schema; what a view can hold has one or two."""

OLD_PADDING = 100
"""parquet-mr before 1.2.9 forgot the dictionary page's header in a chunk's size. Readers take so
many bytes more."""


@dataclass(frozen=True)
class Chunk:
    """Where one column's bytes of a row group lie, and what the footer says is in them."""

    offset: int
    length: int
    values: int
    decoded: int
    codec: int


@dataclass(frozen=True)
class Group:
    """A row group: its rows, and the chunks of all leaf columns in the schema's order."""

    rows: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says of itself; ``digest`` names the footer's bytes.

    ``metadata`` is pyarrow's, of the footer that was written anew; ``columns`` are the names of the
    schema, each with the number of leaf columns that it takes.
    """

    metadata: Any
    schema: pa.Schema
    digest: str
    groups: tuple[Group, ...]
    columns: tuple[tuple[str, int], ...]

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)

    @property
    def row_groups(self) -> int:
        return len(self.groups)


async def read_footer(reader: RangeReader) -> Footer:
    """Read and check the footer; :class:`SourceError` for what is no (whole) Parquet file."""
    if reader.size < _TAIL + len(_MAGIC):
        what = "empty" if reader.size == 0 else f"only {reader.size} bytes long"
        raise SourceError(f"{reader.name}: the file is {what}, which is no Parquet file.")
    guess = min(reader.size, _GUESS)
    tail = await reader.read(reader.size - guess, guess)
    if tail.endswith(_MAGIC_ENCRYPTED):
        raise _encrypted(reader.name)
    if not tail.endswith(_MAGIC):
        start = await reader.read(0, len(_MAGIC))
        why = "is cut off" if start == _MAGIC else "is no Parquet file"
        raise SourceError(f"{reader.name} {why}: it does not end as one.")
    length = int.from_bytes(tail[-_TAIL:-4], "little") + _TAIL
    if length > reader.size - len(_MAGIC):
        raise SourceError(f"{reader.name} is damaged: its footer is longer than the file.")
    if length > MAX_FOOTER:
        raise SourceError(
            f"{reader.name}: its footer has {length:,} bytes; up to {MAX_FOOTER:,} are read. "
            f"Write it anew with fewer columns to a file, or larger row groups."
        )
    if length > len(tail):
        tail = await reader.read(reader.size - length, length)
    return await asyncio.to_thread(_parsed, reader.name, reader.size, tail[-length:])


def _encrypted(name: str) -> SourceError:
    return SourceError(f"{name}: the Parquet file is encrypted; decrypt it first.")


def _parsed(name: str, size: int, tail: bytes) -> Footer:
    try:
        told, _ = thrift.struct(tail[:-_TAIL], 0, _FILE)
        encrypted = 8 in told or any(
            8 in chunk or 9 in chunk for group in told.get(4, ()) for chunk in group.get(1, ())
        )
        if encrypted:
            raise _encrypted(name)
        groups = _groups(told, size)
        clean = _written(told, groups)
        file = pq.ParquetFile(
            pa.BufferReader(clean),
            pre_buffer=False,
            arrow_extensions_enabled=False,
            coerce_int96_timestamp_unit="us",
        )
        schema = _with_durations(file.schema_arrow, told)
        columns = tuple((field.name, _leaf_count(field.type)) for field in schema)
        _check_columns(columns, file.metadata, groups)
    except SourceError:
        raise
    except DAMAGE as error:
        why = str(error) or type(error).__name__
        if isinstance(error, LookupError):
            why = "it ends too early" if isinstance(error, IndexError) else "it lacks a part"
        raise SourceError(f"{name} is damaged: its footer cannot be read ({why}).") from error
    digest = hashlib.blake2b(tail, digest_size=20).hexdigest()
    return Footer(file.metadata, schema, digest, groups, columns)


# --- reading --------------------------------------------------------------------------------


def _elements(data: bytes, at: int) -> tuple[list[bytes], int]:
    """The elements of a schema, each as it was written; raises where they form no tree."""
    kind, count, at = thrift.list_head(data, at)
    if count and kind != STRUCT:
        raise thrift.Malformed("its schema holds other things")
    found: list[bytes] = []
    open_groups = [1]  # how many elements each of the groups around still waits for
    for _ in range(count):
        start = at
        fields, at = thrift.struct(data, at, {5: I64})
        found.append(data[start:at])
        while open_groups and open_groups[-1] == 0:
            open_groups.pop()
        if not open_groups or not 0 <= fields.get(5, 0) <= count:
            raise thrift.Malformed("its schema is no tree")
        open_groups[-1] -= 1
        if fields.get(5):
            open_groups.append(fields[5])
        if len(open_groups) > _NESTING:
            raise thrift.Malformed("its schema nests too deep")
    if any(open_groups):
        raise thrift.Malformed("its schema is no tree")
    return found, at


_META = {1: I64, 4: I64, 5: I64, 6: I64, 7: I64, 9: I64, 11: I64}
_COLUMN = {3: _META, 8: {}, 9: BINARY}
_ROW_GROUP = {1: [_COLUMN], 3: I64}
_FILE = {
    1: I64,
    2: _elements,
    3: I64,
    4: [_ROW_GROUP],
    5: [{1: BINARY, 2: BINARY}],
    6: BINARY,
    8: {},
}


def _groups(told: dict[int, Any], size: int) -> tuple[Group, ...]:
    padding = OLD_PADDING if _is_old(told.get(6, b"")) else 0
    groups = tuple(
        Group(group[3], tuple(_chunk(chunk[3], size, padding) for chunk in group.get(1, ())))
        for group in told.get(4, ())
    )
    if any(group.rows < 0 for group in groups):
        raise ValueError("a row group has a negative number of rows")
    rows = sum(group.rows for group in groups)
    if told.get(3, 0) not in (rows, 0):  # which some writers never fill in
        raise ValueError(f"it says {told.get(3):,} rows, its row groups have {rows:,}")
    return groups


def _is_old(created_by: bytes) -> bool:
    found = re.match(rb"parquet-mr\b(?: version (\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?)?", created_by)
    return found is not None and tuple(int(part or 0) for part in found.groups()) < (1, 2, 9)


def _chunk(meta: dict[int, int], size: int, padding: int) -> Chunk:
    offset, length = meta[9], meta[7]
    if 0 < meta.get(11, 0) < offset:
        offset = meta[11]  # a dictionary lies before the first data page
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError("a column chunk lies outside of the file")
    if meta[5] < 0 or meta[6] < 0:
        raise ValueError("a column chunk has a negative size")
    length += min(padding, size - offset - length)
    return Chunk(offset, length, meta[5], meta[6], meta[4])


# --- writing --------------------------------------------------------------------------------


def _written(told: dict[int, Any], groups: tuple[Group, ...]) -> pa.Buffer:
    """A Parquet file of nothing but a footer, which holds what was checked."""
    writer = told.get(6, b"")
    types = [chunk.get(3, {}).get(1, 0) for chunk in told[4][0].get(1, ())] if groups else []
    footer = thrift.pack(
        [
            (1, I32, told.get(1, 1)),
            (2, LIST, (STRUCT, told[2])),
            (3, I64, sum(group.rows for group in groups)),
            (4, LIST, (STRUCT, [_written_group(group, types) for group in groups])),
            (6, BINARY, b"" if _is_old(writer) else writer),  # its padding is in the chunks
        ]
    )
    return pa.py_buffer(_MAGIC + footer + len(footer).to_bytes(4, "little") + _MAGIC)


def _written_group(group: Group, types: list[int]) -> bytes:
    if len(group.chunks) != len(types):
        raise ValueError("its row groups have different numbers of columns")
    columns = []
    for kind, chunk in zip(types, group.chunks, strict=True):
        meta = thrift.pack(
            [
                (1, I32, kind),
                (2, LIST, (I32, [])),
                (3, LIST, (BINARY, [])),
                (4, I32, chunk.codec),
                (5, I64, chunk.values),
                (6, I64, chunk.decoded),
                (7, I64, chunk.length),
                (9, I64, chunk.offset),
            ]
        )
        columns.append(thrift.pack([(2, I64, 0), (3, STRUCT, meta)]))
    return thrift.pack([(1, LIST, (STRUCT, columns)), (2, I64, 0), (3, I64, group.rows)])


def _check_columns(
    columns: tuple[tuple[str, int], ...], metadata: Any, groups: tuple[Group, ...]
) -> None:
    """Raise where the parts do not fit each other, or a name is no text."""
    leaves = 0
    for name, count in columns:
        name.encode()
        leaves += count
    if leaves != metadata.num_columns:
        raise ValueError(f"its schema has {metadata.num_columns} columns, Arrow sees {leaves}")
    if groups and len(groups[0].chunks) != leaves:
        raise ValueError(f"its schema has {leaves} columns, its row groups {len(groups[0].chunks)}")


def _leaf_count(kind: pa.DataType) -> int:
    """How many leaf columns a type takes in Parquet."""
    if pa.types.is_nested(kind):
        return sum(_leaf_count(kind.field(i).type) for i in range(kind.num_fields))
    return 1


def _with_durations(schema: pa.Schema, told: dict[int, Any]) -> pa.Schema:
    """``schema`` with the durations that only Arrow's note names: they are no numbers."""
    note = next((pair.get(2) for pair in told.get(5, ()) if pair.get(1) == b"ARROW:schema"), None)
    if note is None:
        return schema
    try:
        # Under another name an extension stays what it is stored as: none is looked up and run.
        plain = base64.b64decode(note).replace(b"ARROW:extension:", b"plain:extension:")
        noted = pa.ipc.read_schema(pa.py_buffer(plain))
        for index, field in enumerate(noted):
            if pa.types.is_duration(field.type) and schema.field(index).name == field.name:
                schema = schema.set(index, schema.field(index).with_type(field.type))
    except DAMAGE:
        pass  # a note that cannot be read says nothing
    return schema
