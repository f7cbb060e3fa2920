"""A name for what a table holds, however it is cut into chunks and wherever its buffers lie."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_FLOATS = (pa.float32(), pa.float64())

PIECE_ROWS = 65_536
"""Rows that are hashed at a time, so that little is held beside them."""


class RowsDigest:
    """Names a sequence of nullable int64 values that comes in pieces of any length."""

    def __init__(self) -> None:
        self._hash = _new_hash()

    def add(self, values: pa.Array) -> None:
        # No arrival is below zero.
        whole = pc.fill_null(values, -1)
        self._hash.update(_buffer(whole, 8))

    def hexdigest(self) -> str:
        return str(self._hash.hexdigest())


class ValuesDigest:
    """Names a sequence of values of any one type that comes in pieces of any length.

    What there is to tell at each level (which values are there, how long they are, the values) is
    a stream of its own, so that it does not matter where the pieces end.
    """

    def __init__(self) -> None:
        self._streams: dict[str, Any] = {}

    def add(self, array: pa.Array) -> None:
        self._add("", array)

    def hexdigest(self) -> str:
        whole = _new_hash()
        for place, stream in sorted(self._streams.items()):
            whole.update(f"{place}:{stream.hexdigest()};".encode())
        return str(whole.hexdigest())

    def _put(self, place: str, data: memoryview | bytes) -> None:
        if len(data):
            self._streams.setdefault(place, _new_hash()).update(data)

    def _add(self, place: str, array: pa.Array) -> None:
        """Take in an array: which values are there, then those that are."""
        array = _plain(array)
        kind = array.type
        self._put(f"{place}?", _buffer(pc.cast(array.is_valid(), pa.uint8()), 1))
        if pa.types.is_null(kind):
            return
        if pa.types.is_struct(kind):
            # Null where the whole is: what lies below a null is not part of it.
            for index, column in enumerate(array.flatten()):
                self._add(f"{place}.{index}", column)
        elif _is_list(kind):
            lengths = pc.cast(pc.list_value_length(array).drop_null(), pa.int64())
            self._put(f"{place}#", _buffer(lengths, 8))
            self._add(f"{place}[]", array.flatten())
        elif pa.types.is_union(kind):  # without a layout of its own, and rare
            self._put(place, b"".join(f"{value!r};".encode() for value in array.to_pylist()))
        elif array.null_count and (pa.types.is_integer(kind) or kind in _FLOATS):
            # A fifth of the time of leaving nulls out.
            self._put(place, _buffer(pc.fill_null(array, pa.scalar(0, kind)), kind.byte_width))
        else:
            self._add_plain(place, array.drop_null())

    def _add_plain(self, place: str, array: pa.Array) -> None:
        """Take in values that are all there, and no columns or lists."""
        kind = array.type
        if pa.types.is_boolean(kind):
            self._put(place, _buffer(pc.cast(array, pa.uint8()), 1))
        elif _is_text(kind):
            large = array.cast(pa.large_binary())
            self._put(f"{place}#", _buffer(pc.binary_length(large), 8))
            _, offsets, data = large.buffers()
            first, last = _edges(large, offsets)
            self._put(place, memoryview(data)[first:last] if data is not None else b"")
        else:
            self._put(place, _buffer(array, kind.byte_width))


def table_digest(table: pa.Table) -> str:
    """The digest of a table's columns, names and types included. For a thread.

    The layouts that Arrow has for text, for bytes and for lists are one type here: Parquet, pandas
    and Polars each give another one for the same column.
    """
    hashed = _new_hash()
    for field, column in zip(table.schema, table.columns, strict=True):
        values = ValuesDigest()
        for start in range(0, len(column), PIECE_ROWS):
            for chunk in column.slice(start, PIECE_ROWS).chunks:
                values.add(chunk)
        hashed.update(f"{field.name!r}:{_plain_type(field.type)}:{len(column)}:".encode())
        hashed.update(values.hexdigest().encode())
    return str(hashed.hexdigest())


def same_type(one: pa.DataType, two: pa.DataType) -> bool:
    """Whether columns of the two types have the same digest where their values are the same."""
    return str(_plain_type(one)) == str(_plain_type(two))


def _new_hash() -> Any:
    # Processors have instructions for it: twice and more as fast as BLAKE2.
    return hashlib.sha256(usedforsecurity=False)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that stands for all of the same values."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_type(kind.value_type), kind.list_size)
    if _is_list(kind):  # whose items have a name, which writers of Parquet change
        return pa.list_(_plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _plain_type(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_plain_type(kind.key_type), _plain_type(kind.item_type))
    return kind


def _plain(array: pa.Array) -> pa.Array:
    """An array of the same values without a coding around them."""
    while True:
        kind = array.type
        if isinstance(kind, pa.BaseExtensionType):
            array = array.storage
        elif pa.types.is_dictionary(kind):
            if _is_view(kind.value_type):  # which Arrow cannot take from by position
                words = array.dictionary.cast(pa.large_binary())
                array = pa.DictionaryArray.from_arrays(array.indices, words)
            array = array.dictionary_decode()
        elif pa.types.is_run_end_encoded(kind):
            array = pc.run_end_decode(array)
        elif pa.types.is_map(kind):
            array = array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
        elif _is_view(kind):
            array = array.cast(pa.large_binary())
        else:
            return array


def _is_text(kind: pa.DataType) -> bool:
    large = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    return bool(large or pa.types.is_string(kind) or pa.types.is_binary(kind))


def _is_list(kind: pa.DataType) -> bool:
    large = pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    views = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    return bool(large or views or pa.types.is_list(kind))


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


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
