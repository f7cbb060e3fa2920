"""The point-in-time rule over Arrow tables in memory: two sorts, whatever the sizes.

This is what each task of a distributed join runs on its part of the keys. It knows nothing of
where the rows came from; equal times are settled here, and not left to an ASOF join.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.storage.tables import ARRIVAL, CREATED, EVENT

_NO_KEY = -1
MICROSECOND = dt.timedelta(microseconds=1)


def latest(
    history: pa.Table,
    keys: Sequence[str],
    wanted: Sequence[pa.Array],
    at: pa.Array,
    *,
    ttl: dt.timedelta | None = None,
    known_by_created: bool = False,
) -> pa.Array:
    """The row of ``history`` (its number, null where there is none) for each entity row.

    ``history`` has the columns ``keys`` and the three system columns; ``wanted`` has an array of
    each key for the entity rows, ``at`` their times. With ``known_by_created`` only rows count
    whose created time is no later than the entity row's.
    """
    there, entities = _codes(history, keys, wanted, len(at))
    event, created = (_micros(history.column(name)) for name in (EVENT, CREATED))
    # By the rule: of two rows of one key, the one further back here is the better one.
    ranked = pa.table({"k": there, "e": event, "c": created, "a": history.column(ARRIVAL)})
    order = pc.sort_indices(ranked, [(name, "ascending") for name in ranked.column_names])
    there, event, created = (column.take(order) for column in (there, event, created))
    known = pc.max_element_wise(event, created) if known_by_created else event
    found = _last_known(there, known, entities, _micros(at))
    of_key = pc.equal(there.take(found), entities)
    found = pc.if_else(of_key, found, pa.scalar(None, pa.int64()))
    if ttl is not None:
        oldest = pc.subtract(_micros(at), ttl // MICROSECOND)
        fresh = pc.greater_equal(event.take(found), oldest)
        found = pc.if_else(fresh, found, pa.scalar(None, pa.int64()))
    return order.take(found).cast(pa.int64())


def _last_known(there: pa.Array, known: pa.Array, entities: pa.Array, at: pa.Array) -> pa.Array:
    """For each entity row the best row that was known then, or one of a key further down.

    Rows become known in another order than the rule ranks them in: a late one of an earlier time
    must not hide a better one. So it is the greatest rank so far that counts.
    """
    none = pa.nulls
    ranks = pa.concat_arrays([pa.arange(0, len(there)), none(len(entities), pa.int64())])
    asked = pa.concat_arrays([none(len(there), pa.int64()), pa.arange(0, len(entities))])
    both = pa.table({"k": pa.concat_arrays([there, entities]), "t": pa.concat_arrays([known, at])})
    # A stable sort: what is known at a moment comes before what is asked for at it.
    order = pc.sort_indices(both, [("k", "ascending"), ("t", "ascending")])
    # Ranks rise from key to key, so that no key's rows are lower than those of a key before.
    best = pc.fill_null_forward(pc.cumulative_max(ranks.take(order), skip_nulls=True))
    asked = asked.take(order)
    is_asked = asked.is_valid()
    return best.filter(is_asked).take(pc.sort_indices(asked.filter(is_asked)))


def _codes(
    history: pa.Table, keys: Sequence[str], wanted: Sequence[pa.Array], rows: int
) -> tuple[pa.Array, pa.Array]:
    """A number for each key of either side, the same for the same; -1 where a part is null."""
    size = history.num_rows
    code: Any = pa.array([0], pa.int64()).take(pa.nulls(size + rows, pa.int64()).fill_null(0))
    for key, column in zip(keys, wanted, strict=True):
        mine = _one_chunk(history.column(key))
        both = pc.dictionary_encode(pa.concat_arrays([mine, _one_chunk(column).cast(mine.type)]))
        part = both.indices.cast(pa.int64())
        # Dense again after each part: the product of two stays far below 2**63.
        code = pc.add(pc.multiply(code, max(len(both.dictionary), 1)), part)
        code = pc.dictionary_encode(code).indices.cast(pa.int64())
    code = code.fill_null(_NO_KEY)
    return code.slice(0, size), code.slice(size)


def _micros(column: Any) -> pa.Array:
    return _one_chunk(column).cast(pa.int64())


def _one_chunk(column: Any) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0)
    return column
