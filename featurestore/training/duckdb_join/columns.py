"""Arrow columns as the join needs them."""

from __future__ import annotations

import pyarrow as pa

from featurestore.selection import Join
from featurestore.training.memory import POOL
from featurestore.training.rule import AT, ROW


def single(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece; as it is where it has more than 2 GB of text."""
    if column.num_chunks == 1:
        return column.chunk(0)
    try:
        if column.num_chunks:
            return pa.concat_arrays(column.chunks, POOL)
        return pa.nulls(0, column.type)
    except pa.ArrowInvalid:
        return column


def plain_key(column: pa.Array) -> pa.Array:
    """A key or time as DuckDB is to compare it: times as microseconds, exactly."""
    return column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column


def narrow_entities(keys: pa.Table, join: Join) -> pa.Table:
    """Rows, times and a join's keys of the entity rows, by the names that the statements have."""
    columns = {"r": keys.column(ROW), "asked": plain_key(keys.column(AT))}
    for index, (_, column) in enumerate(join.columns):
        columns[f"k{index}"] = plain_key(keys.column(column))
    return pa.table(columns)
