"""Rows of any shape to record batches that fit a view's history, and those that do not fit."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import SchemaMismatchError
from featurestore.ingest.casts import Bad, cast
from featurestore.ingest.layout import Layout
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
class Rejected:
    """A row that does not fit: its number within the file or call, why, and what it held."""

    row: int
    reason: str
    values: dict[str, Any]
    entity: list[Any] | None


@dataclass(frozen=True)
class Conformed:
    """The rows of a batch that fit, as history's columns without arrivals, and the others."""

    batch: pa.RecordBatch
    rejected: tuple[Rejected, ...]
    rows_read: int


def conform_arrow(
    batch: pa.RecordBatch, layout: Layout, columns: Mapping[str, str], first_row: int, where: str
) -> Conformed:
    """Check and cast a batch; ``columns`` maps the view's names to the batch's.

    ``first_row`` is the number of the batch's first row within its file, for messages.
    """
    arrays: dict[str, pa.Array] = {}
    bads: list[Bad] = []
    for name, kind in layout.incoming.items():
        if name not in columns:
            arrays[name] = pa.nulls(batch.num_rows, kind.arrow)
            continue
        source = batch.column(batch.schema.get_field_index(columns[name]))
        arrays[name], wrong = _column(source, name, kind, layout, where)
        bads += [(mask, f"{name} {reason}") for mask, reason in wrong]
    bads += _entity_size(arrays, layout)
    stored = pa.record_batch({layout.stored_name(name): array for name, array in arrays.items()})
    if not bads:
        return Conformed(stored, (), batch.num_rows)
    reasons = _reasons(bads)
    rejected = tuple(
        Rejected(
            first_row + index, reason, _raw(batch, columns, index), _entity(arrays, layout, index)
        )
        for index, reason in reasons.items()
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


def _raw(batch: pa.RecordBatch, columns: Mapping[str, str], index: int) -> dict[str, Any]:
    found = {}
    for name, source in columns.items():
        array = batch.column(batch.schema.get_field_index(source))
        found[name] = _readable(array, index)
    return found


def _readable(array: pa.Array, index: int) -> Any:
    try:
        return as_json(array[index].as_py())
    except (ValueError, OverflowError):  # text that is none, a time that Python has no value for
        if pa.types.is_string(array.type):
            return as_json(array.slice(index, 1).cast(pa.binary())[0].as_py())
        return f"a {array.type} that Python has no value for"


def _entity(arrays: Mapping[str, pa.Array], layout: Layout, index: int) -> list[Any] | None:
    values = [arrays[key][index].as_py() for key in layout.view.join_keys]
    return None if any(value is None for value in values) else values


def as_json(value: Any) -> Any:
    """Any value as one that JSON has, for people to read."""
    if isinstance(value, float) and value != value:
        return "NaN"
    if isinstance(value, bool | int | str | None):
        if isinstance(value, str):
            return value.encode(errors="replace").decode().replace("\0", "\\0")
        return value
    if isinstance(value, float):
        return value if abs(value) != float("inf") else str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dt.date | decimal.Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return {str(as_json(k)): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return repr(value)


def conform_rows(rows: Sequence[Mapping[str, Any]], layout: Layout) -> Conformed:
    """Check rows given as mappings. All names must be known, and none but the created time may
    be missing; raises :class:`SchemaMismatchError` where that, or a whole column's type, is not
    so."""
    _check_names(rows, layout)
    columns: dict[str, list[Any]] = {}
    reasons: dict[int, list[str]] = {}
    for name, kind in layout.incoming.items():
        columns[name] = _values(rows, name, kind, layout, reasons)
    _check_entities(columns, layout, reasons)
    rejected = tuple(
        Rejected(
            index,
            "; ".join(reasons[index]),
            {str(name): as_json(value) for name, value in rows[index].items()},
            None,
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


def _check_names(rows: Sequence[Mapping[str, Any]], layout: Layout) -> None:
    incoming = layout.incoming
    for index, row in enumerate(rows):
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
    if mistyped and len(mistyped) == given:
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


def stamp(
    batch: pa.RecordBatch, layout: Layout, first_arrival: int, created: dt.datetime
) -> pa.RecordBatch:
    """Conformed rows as history's columns: arrivals counted up, missing created times set."""
    times = pa.scalar(created, pa.timestamp("us", tz="UTC"))
    known = CREATED in batch.schema.names
    column = batch.column(CREATED) if known else pa.nulls(batch.num_rows, times.type)
    system = {
        ARRIVAL: pa.arange(first_arrival, first_arrival + batch.num_rows),
        CREATED: pc.fill_null(column, times),
    }
    return pa.record_batch(
        {name: system[name] if name in system else batch.column(name) for name in layout.stored}
    )


def future(batch: pa.RecordBatch, until: dt.datetime) -> tuple[int, dt.datetime | None]:
    """How many rows lie ahead of ``until``, and the latest event time among them."""
    times = batch.column(EVENT)
    ahead = times.filter(pc.greater(times, pa.scalar(until, times.type)))
    return len(ahead), pc.max(ahead).as_py()
