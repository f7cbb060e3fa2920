"""Which bucket of a copy the rows of a key are in: a hash that never changes.

Copies on disk were divided by it, and entity rows are divided by it to meet them, on other
machines and by later versions: so it is arithmetic on the keys' values, and nobody's own hash
function. Everything is done modulo 2**64, a column at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.types import Bool, Bytes, Date, DecimalType, FeatureType, String, Timestamp

_GOLDEN = 0x9E37_79B9_7F4A_7C15
_MULTIPLIER = 0x0100_6A09_E81A_F3BD
_MIX = ((30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB))
_LAST_SHIFT = 31
_MASK = (1 << 64) - 1

_POSITIONS = 1_024
"""Bytes of a text beyond this many count the same wherever they stand: no key is as long."""


def bucket_of(columns: Sequence[pa.Array], kinds: Sequence[FeatureType], buckets: int) -> pa.Array:
    """The bucket (int32, from 0) of each row of keys; columns may have any chunks and nulls.

    A row with a null among its keys gets some bucket: it meets nothing in any.
    """
    if not columns:
        raise ValueError("a view without keys has one bucket, and no hash")
    hashed: Any = None
    for column, kind in zip(columns, kinds, strict=True):
        numbers = _numbers(_plain(column, kind), kind)
        if hashed is not None:
            numbers = pc.add(pc.multiply(hashed, _scalar(_MULTIPLIER)), numbers)
        hashed = _mixed(numbers)
    high = pc.shift_right(hashed, _scalar(32))
    whole = pc.multiply(pc.divide(high, _scalar(buckets)), _scalar(buckets))
    return pc.subtract(high, whole).cast(pa.int32())


def _scalar(number: int) -> Any:
    return pa.scalar(number & _MASK, pa.uint64())


def _plain(column: Any, kind: FeatureType) -> pa.Array:
    """One chunk of the type's own Arrow type, without nulls."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0)
    if column.type != kind.arrow:
        column = column.cast(kind.arrow)
    if column.null_count:
        column = pc.if_else(column.is_valid(), column, _zero(kind))
    return column


def _zero(kind: FeatureType) -> Any:
    if kind == String:
        return pa.scalar("", kind.arrow)
    if kind == Bytes:
        return pa.scalar(b"", kind.arrow)
    if kind == Bool:
        return pa.scalar(False, kind.arrow)
    if isinstance(kind, DecimalType):
        return pa.scalar(Decimal(0), kind.arrow)
    return pa.scalar(0, pa.int32() if kind == Date else pa.int64()).cast(kind.arrow)


def _numbers(column: pa.Array, kind: FeatureType) -> pa.Array:
    """A number (uint64) for each value, another one for another value but by rare chance."""
    if kind in (String, Bytes):
        return _text(column)
    if isinstance(kind, DecimalType):
        return _decimal(column)
    if kind == Bool:
        return column.cast(pa.uint8()).cast(pa.uint64())
    if kind == Date:
        column = column.cast(pa.int32())
    elif kind == Timestamp:
        column = column.cast(pa.int64())
    return column.cast(pa.int64()).view(pa.uint64())


def _decimal(column: pa.Array) -> pa.Array:
    size = 16 * len(column)
    if not size:
        return pa.array([], pa.uint64())
    content = column.buffers()[1].slice(16 * column.offset, size)
    halves = pa.Array.from_buffers(pa.uint64(), 2 * len(column), [None, content])
    even = pc.multiply(pa.arange(0, len(column)), 2)
    low, high = halves.take(even), halves.take(pc.add(even, 1))
    return pc.add(_mixed(low), pc.multiply(high, _scalar(_MULTIPLIER)))


def _text(column: pa.Array) -> pa.Array:
    """The bytes of each value as the digits of one number, least first, and their count."""
    lengths = pc.binary_length(column).cast(pa.int64())
    ends = pc.cumulative_sum(lengths)
    total = ends[-1].as_py() if len(column) else 0
    counts = pc.multiply(lengths.cast(pa.uint64()), _scalar(_GOLDEN))
    if not total:
        return counts
    _, offsets, data = column.buffers()
    content = pa.Array.from_buffers(pa.uint8(), data.size, [None, data])
    lists = pa.ListArray.from_buffers(
        pa.list_(pa.uint8()), len(column), [None, offsets], 0, column.offset, [content]
    )
    starts = pc.subtract(ends, lengths)
    within = pc.subtract(pa.arange(0, total), starts.take(pc.list_parent_indices(lists)))
    weights = _powers().take(pc.min_element_wise(within, pa.scalar(_POSITIONS, pa.int64())))
    digits = pc.add(lists.flatten().cast(pa.uint64()), _scalar(1))
    sums = pc.cumulative_sum(pc.multiply(digits, weights))
    sums = pa.concat_arrays([pa.array([0], pa.uint64()), sums])
    return pc.add(pc.subtract(sums.take(ends), sums.take(starts)), counts)


@lru_cache(maxsize=1)
def _powers() -> pa.Array:
    powers, power = [], 1
    for _ in range(_POSITIONS + 1):
        powers.append(power)
        power = power * _MULTIPLIER & _MASK
    return pa.array(powers, pa.uint64())


def _mixed(numbers: pa.Array) -> pa.Array:
    """Every bit of a number on every bit of the result: the last steps of splitmix64."""
    numbers = pc.add(numbers, _scalar(_GOLDEN))
    for shift, factor in _MIX:
        numbers = pc.bit_wise_xor(numbers, pc.shift_right(numbers, _scalar(shift)))
        numbers = pc.multiply(numbers, _scalar(factor))
    return pc.bit_wise_xor(numbers, pc.shift_right(numbers, _scalar(_LAST_SHIFT)))
