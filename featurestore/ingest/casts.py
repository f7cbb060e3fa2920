"""Arrow input to the types of a view: each value exactly, or it is named as one that is not.

:func:`cast` is a pure function from an array to an array of the wanted type, with nulls where a
value does not fit, and the masks that say which and why. A type that can never fit raises
:class:`~featurestore.types.TypeMismatch`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.types import (
    MAX_TIMESTAMP,
    MIN_TIMESTAMP,
    ArrayType,
    DecimalType,
    FeatureType,
    Float64,
    TypeMismatch,
    ValueMismatch,
    dump_json,
    load_json,
    micros,
)

Bad = tuple[pa.BooleanArray, str]
"""Which values do not fit (true, never null), and why."""

Cast = tuple[pa.Array, list[Bad]]

_MIN_MICROS, _MAX_MICROS = micros(MIN_TIMESTAMP), micros(MAX_TIMESTAMP)
_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()
_MIN_DAY, _MAX_DAY = 1 - _EPOCH_DAY, dt.date.max.toordinal() - _EPOCH_DAY


def cast(column: pa.Array, kind: FeatureType) -> Cast:
    """``column`` as ``kind``; raises :class:`TypeMismatch` where its type can never fit."""
    column = _plain(column)
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), kind.arrow), []
    if isinstance(kind, ArrayType):
        return _array(column, kind)
    if isinstance(kind, DecimalType):
        return _decimal(column, kind)
    return _CASTS[kind.name](column, kind)


def _plain(column: pa.Array) -> pa.Array:
    """Without the encodings that Arrow has for the same values."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage  # what the extension means is never run
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    fixed = pa.types.is_fixed_size_binary(kind)
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind) or fixed:
        return column.cast(pa.binary())
    return column


def _mismatch(column: pa.Array, kind: FeatureType) -> TypeMismatch:
    return TypeMismatch(f"{column.type} cannot become {kind}")


def _without(column: pa.Array, bad: pa.BooleanArray) -> pa.Array:
    """``column`` with nulls where ``bad`` is true."""
    return pc.if_else(bad, pa.scalar(None, column.type), column)


def _checked(column: pa.Array, bad: pa.Array, reason: str) -> Cast:
    """``column`` less its bad values, with the mask where there are any."""
    bad = pc.fill_null(bad, False)
    if not pc.any(bad, min_count=0).as_py():
        return column, []
    return _without(column, bad), [(bad, reason)]


def _by_value(column: pa.Array, kind: FeatureType) -> Cast:
    """One value at a time, for rare pairs of types that Arrow's casts do not check exactly."""
    values: list[Any] = []
    bad: list[bool] = []
    for value in column.to_pylist():
        try:
            values.append(None if value is None else kind.python(value))
            bad.append(False)
        except ValueMismatch:
            values.append(None)
            bad.append(True)
    return pa.array(values, kind.arrow), _bads(bad, f"does not fit {kind}")


def _bads(bad: list[bool], reason: str) -> list[Bad]:
    return [(pa.array(bad, pa.bool_()), reason)] if any(bad) else []


# --- one function per wanted type -----------------------------------------------------------


def _bool(column: pa.Array, kind: FeatureType) -> Cast:
    if not pa.types.is_boolean(column.type):
        raise _mismatch(column, kind)
    return column, []


def _integer(column: pa.Array, kind: FeatureType) -> Cast:
    if pa.types.is_integer(column.type):
        try:
            return column.cast(kind.arrow), []
        except pa.ArrowInvalid:
            return _by_value(column, kind)
    if pa.types.is_floating(column.type):
        return _whole(column.cast(pa.float64()), kind)
    if pa.types.is_decimal(column.type):
        return _by_value(column, kind)
    raise _mismatch(column, kind)


def _whole(column: pa.Array, kind: FeatureType) -> Cast:
    limit = float(1 << (kind.arrow.bit_width - 1))
    within = pc.and_(pc.greater_equal(column, -limit), pc.less(column, limit))
    fits = pc.and_(within, pc.equal(pc.floor(column), column))  # false for NaN
    column, bad = _checked(column, pc.invert(fits), f"is no whole number that fits {kind}")
    return column.cast(kind.arrow), bad


def _float64(column: pa.Array, kind: FeatureType) -> Cast:
    if pa.types.is_floating(column.type):
        return column.cast(pa.float64()), []
    if not pa.types.is_integer(column.type):
        raise _mismatch(column, kind)
    try:
        return column.cast(pa.float64()), []
    except pa.ArrowInvalid:  # beyond ±2**53, where only some integers have a float
        return _by_value(column, kind)


def _float32(column: pa.Array, kind: FeatureType) -> Cast:
    wide, bad = _float64(column, Float64)
    rounded = wide.cast(pa.float32(), safe=False)
    lost = pc.and_(pc.is_inf(rounded), pc.invert(pc.is_inf(wide)))
    rounded, overflow = _checked(rounded, lost, "does not fit float32")
    return rounded, bad + overflow


def _string(column: pa.Array, kind: FeatureType) -> Cast:
    if not pa.types.is_string(column.type):
        raise _mismatch(column, kind)
    column, bad = _decoded(column)
    column, nul = _checked(column, pc.match_substring(column, "\0"), "is text with NUL (U+0000)")
    return column, bad + nul


def _decoded(column: pa.Array) -> Cast:
    """Files can claim that any bytes are text: what is no UTF-8 is taken out."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        values: list[str | None] = []
        bad: list[bool] = []
        for value in column.cast(pa.binary()).to_pylist():
            try:
                values.append(None if value is None else value.decode())
                bad.append(False)
            except UnicodeDecodeError:
                values.append(None)
                bad.append(True)
        return pa.array(values, pa.string()), _bads(bad, "is no valid UTF-8 text")
    return column, []


def _bytes(column: pa.Array, kind: FeatureType) -> Cast:
    if not pa.types.is_binary(column.type):
        raise _mismatch(column, kind)
    return column, []


def _timestamp(column: pa.Array, kind: FeatureType) -> Cast:
    if pa.types.is_date(column.type):
        # A day stands for its first moment, as in pandas.
        column, bad = _date(column, kind)
        days = column.cast(pa.int32()).cast(pa.int64())
        return pc.multiply(days, 86_400_000_000).cast(kind.arrow), bad
    if not pa.types.is_timestamp(column.type):
        raise _mismatch(column, kind)
    unit = column.type.unit
    ticks = column.cast(pa.int64())
    if unit == "ns":  # Arrow's own cast truncates toward zero, so moments before 1970 go up
        micro = pc.divide(ticks, 1_000)
        over = pc.greater(pc.multiply(micro, 1_000), ticks)
        ticks, factor = pc.if_else(over, pc.subtract(micro, 1), micro), 1
    else:
        factor = {"s": 1_000_000, "ms": 1_000, "us": 1}[unit]
    low, high = -(-_MIN_MICROS // factor), _MAX_MICROS // factor
    outside = pc.or_(pc.less(ticks, low), pc.greater(ticks, high))
    ticks, bad = _checked(ticks, outside, "is outside the years 1 to 9999")
    return pc.multiply(ticks, factor).cast(kind.arrow), bad


def _date(column: pa.Array, kind: FeatureType) -> Cast:
    if not pa.types.is_date(column.type):
        raise _mismatch(column, kind)
    bad: list[Bad] = []
    if pa.types.is_date64(column.type):
        day = 86_400_000
        ticks = column.cast(pa.int64())
        whole = pc.equal(pc.multiply(pc.divide(ticks, day), day), ticks)
        ticks, bad = _checked(ticks, pc.invert(whole), "is no whole day")
        days = pc.divide(ticks, day)
    else:
        days = column.cast(pa.int32()).cast(pa.int64())
    outside = pc.or_(pc.less(days, _MIN_DAY), pc.greater(days, _MAX_DAY))
    days, beyond = _checked(days, outside, "is outside the years 1 to 9999")
    return days.cast(pa.int32()).cast(pa.date32()), bad + beyond


def _decimal(column: pa.Array, kind: DecimalType) -> Cast:
    if not (pa.types.is_decimal(column.type) or pa.types.is_integer(column.type)):
        raise _mismatch(column, kind)
    try:
        return column.cast(kind.arrow), []
    except pa.ArrowInvalid:
        return _by_value(column, kind)


def _json(column: pa.Array, kind: FeatureType) -> Cast:
    if not pa.types.is_string(column.type):
        raise _mismatch(column, kind)
    column, bad = _decoded(column)
    values: list[str | None] = []
    wrong: list[bool] = []
    for text in column.to_pylist():
        try:
            values.append(None if text is None else dump_json(load_json(text)))
            wrong.append(False)
        except ValueMismatch:
            values.append(None)
            wrong.append(True)
    return pa.array(values, pa.string()), bad + _bads(wrong, "is no valid JSON")


def _array(column: pa.Array, kind: ArrayType) -> Cast:
    if not _is_list(column.type):
        raise _mismatch(column, kind)
    lengths = pc.fill_null(pc.list_value_length(column), 0).cast(pa.int64())
    items, bad = cast(column.flatten(), kind.item)
    ends = pc.cumulative_sum(lengths).cast(pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    # Arrow 25 takes a bitmap that a step above has left behind for nulls among them.
    offsets = pa.Array.from_buffers(pa.int32(), len(offsets), [None, offsets.buffers()[1]])
    mask = column.is_null() if column.null_count else None
    arrays = pa.ListArray.from_arrays(offsets, items, type=kind.arrow, mask=mask)
    rows = [_rows_of(ends, wrong, len(column)) for wrong, _ in bad]
    return arrays, [
        (row, f"holds an item that {reason}") for row, (_, reason) in zip(rows, bad, strict=True)
    ]


def _rows_of(ends: pa.Array, wrong: pa.BooleanArray, count: int) -> pa.BooleanArray:
    """Which lists hold a wrong item, from where each list ends among the items."""
    stops = ends.to_pylist()
    found = [False] * count
    row = 0
    for position in pc.indices_nonzero(wrong).to_pylist():
        while stops[row] <= position:
            row += 1
        found[row] = True
    return pa.array(found, pa.bool_())


def _is_list(kind: pa.DataType) -> bool:
    checks = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(check(kind) for check in checks)


_CASTS: dict[str, Callable[[pa.Array, FeatureType], Cast]] = {
    "bool": _bool,
    "int32": _integer,
    "int64": _integer,
    "float32": _float32,
    "float64": _float64,
    "string": _string,
    "bytes": _bytes,
    "timestamp": _timestamp,
    "date": _date,
    "json": _json,
}
