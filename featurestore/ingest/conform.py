"""Rows of any shape to record batches that fit a view's history, and those that do not fit."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import SchemaMismatchError
from featurestore.ingest.casts import Bad, cast
from featurestore.ingest.layout import Layout
from featurestore.ingest.rejected import Rejected, RejectedRows, as_json
from featurestore.storage.tables import ARRIVAL, CREATED, EVENT
from featurestore.types import (
    MAX_ENTITY_BYTES,
    MAX_KEY_BYTES,
    Bytes,
    FeatureType,
    Json,
    String,
    TypeMismatch,
    ValueMismatch,
    dump_json,
    key_bytes,
)


@dataclass(frozen=True)
class Conformed:
    """The rows of a batch that fit, as history's columns without arrivals, and the others."""

    batch: pa.RecordBatch
    rejected: Sequence[Rejected]
    rows_read: int


def conform_arrow(
    batch: pa.RecordBatch,
    layout: Layout,
    columns: Mapping[str, str],
    first_row: int,
    where: str,
    constants: Mapping[str, pa.Scalar] | None = None,
) -> Conformed:
    """Check and cast a batch; ``columns`` maps the view's names to the batch's.

    ``first_row`` is the number of the batch's first row within its file, for messages;
    ``constants`` are columns of one value that the batch itself lacks.
    """
    arrays: dict[str, pa.Array] = {}
    bads: list[Bad] = []
    for name, kind in layout.incoming.items():
        if name in columns:
            source = batch.column(batch.schema.get_field_index(columns[name]))
        elif constants and name in constants:
            source = pa.repeat(constants[name], batch.num_rows)
        else:
            arrays[name] = pa.nulls(batch.num_rows, kind.arrow)
            continue
        arrays[name], wrong = _column(source, name, kind, layout, where)
        bads += [(mask, f"{name} {reason}") for mask, reason in wrong]
    bads += _entity_size(arrays, layout)
    stored = pa.record_batch({layout.stored_name(name): array for name, array in arrays.items()})
    if not bads:
        return Conformed(stored, (), batch.num_rows)
    reasons = _reasons(bads)
    bad = pa.array(list(reasons), pa.int64())
    raw = {name: batch.column(batch.schema.get_field_index(columns[name])) for name in columns}
    rejected = RejectedRows(
        [first_row + index for index in reasons],
        list(reasons.values()),
        {name: column.take(bad) for name, column in raw.items()},
        {key: arrays[key].take(bad) for key in layout.view.join_keys},
    )
    keep = pa.array([index not in reasons for index in range(batch.num_rows)], pa.bool_())
    return Conformed(stored.filter(keep), rejected, batch.num_rows)


def check_schema(schema: pa.Schema, layout: Layout, columns: Mapping[str, str], where: str) -> None:
    """Raise :class:`SchemaMismatchError` for types that can never fit, before any row is read."""
    for name, source in columns.items():
        empty = pa.nulls(0, schema.field(source).type)
        _column(empty, name, layout.incoming[name], layout, where)


def _column(
    source: pa.Array, name: str, kind: FeatureType, layout: Layout, where: str
) -> tuple[pa.Array, list[Bad]]:
    try:
        array, bads = cast(source, kind)
    except (TypeMismatch, pa.ArrowNotImplementedError):
        raise SchemaMismatchError(
            f"view {layout.view.name!r}, column {name!r}: {where} has {source.type}, which cannot "
            f"become {kind}."
        ) from None
    if layout.required(name):
        missing = source.is_null()
        if pc.any(missing, min_count=0).as_py():
            bads = [*bads, (missing, "is null")]
    if name in layout.view.join_keys and kind in (String, Bytes):
        long = pc.fill_null(pc.greater(pc.binary_length(array), MAX_KEY_BYTES), False)
        if pc.any(long, min_count=0).as_py():
            bads = [*bads, (long, f"is longer than {MAX_KEY_BYTES:,} bytes")]
    return array, bads


def _entity_size(arrays: Mapping[str, pa.Array], layout: Layout) -> list[Bad]:
    """Several long keys together must still fit an index entry."""
    texts = [k for k, kind in layout.view.join_keys.items() if kind in (String, Bytes)]
    if len(texts) * MAX_KEY_BYTES <= MAX_ENTITY_BYTES:
        return []
    sizes = [pc.fill_null(pc.binary_length(arrays[key]), 0) for key in texts]
    total = sizes[0]
    for size in sizes[1:]:
        total = pc.add(total, size)
    long = pc.greater(total, MAX_ENTITY_BYTES)
    if not pc.any(long, min_count=0).as_py():
        return []
    return [(long, f"join keys are longer than {MAX_ENTITY_BYTES:,} bytes together")]


def _reasons(bads: Sequence[Bad]) -> dict[int, str]:
    """Row within the batch → all that is wrong with it, in row order."""
    reasons: dict[int, list[str]] = {}
    for mask, reason in bads:
        for index in pc.indices_nonzero(mask).to_pylist():
            reasons.setdefault(index, []).append(reason)
    return {index: "; ".join(reasons[index]) for index in sorted(reasons)}


def conform_rows(
    rows: Sequence[Mapping[str, Any]], layout: Layout, *, each: bool = False
) -> Conformed:
    """Check rows given as mappings. All names must be known, and none but the created time may
    be missing; raises :class:`SchemaMismatchError` where that, or a whole column's type, is not
    so. With ``each`` such rows are rejected one by one, as those whose values do not fit."""
    reasons: dict[int, list[str]] = {}
    rows = _named(rows, layout, reasons if each else None)
    columns: dict[str, list[Any]] = {}
    for name, kind in layout.incoming.items():
        columns[name] = _values(rows, name, kind, layout, reasons, each=each)
    _check_entities(columns, layout, reasons)
    keys = [columns[key] for key in layout.view.join_keys]
    rejected = tuple(
        Rejected(
            index,
            "; ".join(reasons[index]),
            {str(name): as_json(value) for name, value in rows[index].items()},
            None if any(key[index] is None for key in keys) else [key[index] for key in keys],
        )
        for index in sorted(reasons)
    )
    if reasons:
        columns = {
            name: [value for index, value in enumerate(values) if index not in reasons]
            for name, values in columns.items()
        }
    arrays = {
        layout.stored_name(name): pa.array(columns[name], kind.arrow)
        for name, kind in layout.incoming.items()
    }
    return Conformed(pa.record_batch(arrays), rejected, len(rows))


def _named(
    rows: Sequence[Mapping[str, Any]], layout: Layout, reasons: dict[int, list[str]] | None
) -> Sequence[Mapping[str, Any]]:
    """``rows``, whose names were checked: where ``reasons`` are given they take what is wrong,
    and what is no mapping becomes one."""
    for index, row in enumerate(rows):
        try:
            _check_names(row, index, layout)
        except SchemaMismatchError as error:
            if reasons is None:
                raise
            reasons[index] = [str(error)]
    if not reasons:
        return rows
    return [row if isinstance(row, Mapping) else {"row": row} for row in rows]


def _check_names(row: Mapping[str, Any], index: int, layout: Layout) -> None:
    incoming = layout.incoming
    if not isinstance(row, Mapping):
        raise SchemaMismatchError(
            f"view {layout.view.name!r}: row {index} is {type(row).__name__}, not a mapping of "
            f"column names to values."
        )
    if unknown := [name for name in row if name not in incoming]:
        raise SchemaMismatchError(
            f"view {layout.view.name!r}: row {index} has {unknown[0]!r}, which is no column of "
            f"the view. Its columns are {', '.join(incoming)}."
        )
    layout.check_present(row.keys(), f"row {index}")


def _values(
    rows: Sequence[Mapping[str, Any]],
    name: str,
    kind: FeatureType,
    layout: Layout,
    reasons: dict[int, list[str]],
    *,
    each: bool,
) -> list[Any]:
    values: list[Any] = []
    mistyped: list[tuple[int, TypeMismatch]] = []
    given = 0
    for index, row in enumerate(rows):
        value = row.get(name)
        if kind != Json and _is_null(value):
            value = None
        given += value is not None
        try:
            values.append(_value(value, kind, layout.required(name)))
        except TypeMismatch as error:
            mistyped.append((index, error))
            values.append(None)
        except ValueMismatch as error:
            reasons.setdefault(index, []).append(f"{name} {error}")
            values.append(None)
    if mistyped and len(mistyped) == given and not each:
        index, why = mistyped[0]
        raise SchemaMismatchError(
            f"view {layout.view.name!r}, column {name!r}: row {index} has "
            f"{type(rows[index][name]).__name__}, which cannot become {kind} ({why})."
        )
    for index, why in mistyped:
        reasons.setdefault(index, []).append(f"{name} cannot become {kind}: {why}")
    return values


def _is_null(value: Any) -> bool:
    """None, pandas' NA and NaT; NaN is a float of its own."""
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _value(value: Any, kind: FeatureType, required: bool) -> Any:
    if value is None:
        if required:
            raise ValueMismatch("is null")
        return None
    checked = kind.python(value)
    return dump_json(checked) if kind == Json else checked


def _check_entities(
    columns: Mapping[str, list[Any]], layout: Layout, reasons: dict[int, list[str]]
) -> None:
    keys = list(layout.view.join_keys)
    for index, values in enumerate(zip(*(columns[key] for key in keys), strict=True)):
        sizes = [0 if value is None else key_bytes(value) for value in values]
        for key, size in zip(keys, sizes, strict=True):
            if size > MAX_KEY_BYTES:
                reasons.setdefault(index, []).append(f"{key} is longer than {MAX_KEY_BYTES} bytes")
        if sum(sizes) > MAX_ENTITY_BYTES:
            reasons.setdefault(index, []).append(
                f"join keys are longer than {MAX_ENTITY_BYTES} bytes together"
            )


def stamp(rows: pa.Table, layout: Layout, first_arrival: int, created: dt.datetime) -> pa.Table:
    """Conformed rows as history's columns: arrivals counted up, missing created times set."""
    times = pa.scalar(created, pa.timestamp("us", tz="UTC"))
    known = CREATED in rows.schema.names
    column = rows.column(CREATED) if known else pa.nulls(rows.num_rows, times.type)
    system = {
        ARRIVAL: pa.arange(first_arrival, first_arrival + rows.num_rows),
        CREATED: pc.fill_null(column, times),
    }
    return pa.table(
        {name: system[name] if name in system else rows.column(name) for name in layout.stored}
    )


def future(rows: pa.Table, until: dt.datetime) -> tuple[int, dt.datetime | None]:
    """How many rows lie ahead of ``until``, and the latest event time among them."""
    times = rows.column(EVENT)
    ahead = times.filter(pc.greater(times, pa.scalar(until, times.type)))
    return len(ahead), pc.max(ahead).as_py()
