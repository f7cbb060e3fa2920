"""Arrow columns as the join needs them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.selection import Join
from featurestore.training.memory import POOL
from featurestore.training.rule import AT, ROW

_LARGE_BYTES = 1 << 30


def single(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    if column.num_chunks == 1:
        return column.chunk(0)
    if column.num_chunks:
        return pa.concat_arrays(column.chunks, POOL)
    return pa.nulls(0, column.type)


def is_fixed(kind: pa.DataType) -> bool:
    """Whether each value takes the same room."""
    return not (pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_list(kind))


def ready_to_take(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as rows are quickly taken from it. To take texts or lists from pieces is to join
    these each time, in a type that has room for 2 GB."""
    if is_fixed(column.type):
        return column
    if column.nbytes > _LARGE_BYTES:
        column = column.cast(_large(column.type))
    return pa.chunked_array([single(column)])


def _large(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.large_list(_large(kind.value_type))
    if pa.types.is_string(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary(kind) else kind


def longest(array: pa.Array) -> int:
    """The bytes of the longest text or list of an array; at most, of lists of texts."""
    kind = array.type
    if is_fixed(kind) or len(array) == 0:
        return 0
    if not pa.types.is_list(kind):
        return pc.max(pc.binary_length(array)).as_py() or 0
    length = pc.max(pc.list_value_length(array)).as_py() or 0
    values = array.flatten()
    width = max(values.type.bit_width // 8, 1) if is_fixed(values.type) else longest(values)
    return int(length * width)


def plain_key(column: pa.Array) -> pa.Array:
    """A key or time as DuckDB is to compare it: times as microseconds, exactly."""
    return column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column


def narrow_entities(keys: pa.Table, join: Join) -> pa.Table:
    """Rows, times and a join's keys of the entity rows, by the names that the statements have."""
    columns = {"r": keys.column(ROW), "asked": plain_key(keys.column(AT))}
    for index, (_, column) in enumerate(join.columns):
        columns[f"k{index}"] = plain_key(keys.column(column))
    return pa.table(columns)
