"""A name for what a table holds, however it is cut into chunks and wherever its buffers lie."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

PIECE_ROWS = 65_536
"""Rows that are hashed together. It is part of what the digest means."""


class RowsDigest:
    """Names a sequence of nullable int64 values that comes in pieces of any length."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=20)

    def add(self, values: pa.Array) -> None:
        # No arrival is below zero.
        whole = pc.fill_null(values, -1)
        self._hash.update(_buffer(whole, 8))

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def table_digest(table: pa.Table) -> str:
    """The digest of a table's columns, names and types included. For a thread."""
    hashed = hashlib.blake2b(digest_size=20)
    for field, column in zip(table.schema, table.columns, strict=True):
        hashed.update(f"{field.name!r}:{_plain_type(field.type)};".encode())
        for start in range(0, len(column), PIECE_ROWS):
            piece = column.slice(start, PIECE_ROWS).combine_chunks()
            if isinstance(piece, pa.ChunkedArray):  # several chunks of more than 2 GB
                piece = pa.concat_arrays(piece.chunks)
            _add(hashed, piece)
    return hashed.hexdigest()


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _add(hashed: Any, array: pa.Array) -> None:
    """Take in an array: which values are there, then those that are."""
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    there = array.is_valid()
    hashed.update(_buffer(pc.cast(there, pa.uint8()), 1))
    array = array.drop_null()
    kind = array.type
    if pa.types.is_null(kind):
        return
    if pa.types.is_boolean(kind):
        hashed.update(_buffer(pc.cast(array, pa.uint8()), 1))
    elif pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            _add(hashed, pc.struct_field(array, [index]))
    elif _is_text(kind):
        large = array.cast(pa.large_binary())
        _add(hashed, pc.binary_length(large))
        _, offsets, data = large.buffers()
        first, last = _edges(large, offsets)
        hashed.update(memoryview(data)[first:last] if data is not None else b"")
    elif pa.types.is_map(kind) or _is_list(kind):
        _add(hashed, pc.list_value_length(array))
        _add(hashed, array.flatten())
    else:
        hashed.update(_buffer(array, kind.byte_width))


def _is_text(kind: pa.DataType) -> bool:
    views = pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)
    large = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    return bool(views or large or pa.types.is_string(kind) or pa.types.is_binary(kind))


def _is_list(kind: pa.DataType) -> bool:
    large = pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(large or pa.types.is_list(kind))


def _edges(array: pa.Array, offsets: pa.Buffer) -> tuple[int, int]:
    if not len(array):
        return 0, 0
    view = memoryview(offsets).cast("q")
    return view[array.offset], view[array.offset + len(array)]


def _buffer(array: pa.Array, width: int) -> memoryview:
    """The bytes of a fixed-width array without nulls."""
    data = array.buffers()[1]
    if data is None or not len(array):
        return memoryview(b"")
    start = array.offset * width
    return memoryview(data)[start : start + len(array) * width]
