"""An online read: entity rows to keys, one round trip, rows to vectors."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from featurestore.errors import InvalidRow, InvalidRowsError, SchemaMismatchError
from featurestore.online.vectors import OnlineFeatures, Status
from featurestore.selection import Join, Request
from featurestore.storage.dialect import Dialect, FoundRow
from featurestore.types import FeatureType, TypeMismatch, ValueMismatch


def entity_keys(entity_rows: Any, columns: Mapping[str, FeatureType]) -> list[dict[str, Any]]:
    """The join keys of each entity row, checked and normalised; other entries are left out.

    Raises :class:`SchemaMismatchError` for a missing key or one of a wrong type, and
    :class:`InvalidRowsError` for a value that does not fit. None is no error: it finds nothing.
    """
    if hasattr(entity_rows, "to_pylist"):
        entity_rows = entity_rows.to_pylist()
    elif hasattr(entity_rows, "to_dict") and hasattr(entity_rows, "columns"):
        entity_rows = entity_rows.to_dict("records")
    if isinstance(entity_rows, Mapping | str) or not hasattr(entity_rows, "__iter__"):
        raise SchemaMismatchError(
            f"entity_rows is a list of mappings, such as [{{{next(iter(columns), 'key')!r}: 1}}], "
            f"not {type(entity_rows).__name__}."
        )
    return [_keys(row, columns, index) for index, row in enumerate(entity_rows)]


def _keys(row: Any, columns: Mapping[str, FeatureType], index: int) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for column, kind in columns.items():
        try:
            value = row[column]
        except (KeyError, TypeError, IndexError):
            raise SchemaMismatchError(
                f"entity row {index} lacks the join key {column!r} ({kind})."
            ) from None
        if value is None or type(value).__name__ in ("NAType", "NaTType"):
            keys[column] = None
            continue
        try:
            keys[column] = kind.python(value)
        except TypeMismatch as error:
            raise SchemaMismatchError(
                f"entity row {index}, join key {column!r}: {error}; it must be {kind}."
            ) from None
        except ValueMismatch as error:
            reason = InvalidRow(index, f"{column}: {error}")
            raise InvalidRowsError("the entity rows", [reason]) from None
    return keys


def assemble(
    request: Request,
    keys: Sequence[Mapping[str, Any]],
    found: Sequence[Sequence[FoundRow | None]],
    dialect: Dialect,
) -> OnlineFeatures:
    """Vectors from what was found for each join (first index) and entity row (second)."""
    decoded = [
        [_decode(join, row, dialect) for row in rows]
        for join, rows in zip(request.joins, found, strict=True)
    ]
    values, statuses, times = [], [], []
    for index in range(len(keys)):
        row_values, row_statuses = {}, {}
        for output in request.outputs:
            vector, status, _ = decoded[output.join][index]
            value = None if vector is None else vector[output.position]
            row_values[output.name] = value
            row_statuses[output.name] = _status(status, value)
        values.append(row_values)
        statuses.append(row_statuses)
        times.append(
            {join.name: rows[index][2] for join, rows in zip(request.joins, decoded, strict=True)}
        )
    types = {output.name: output.type for output in request.outputs}
    return OnlineFeatures(request.key_columns, types, keys, values, statuses, times)


def _status(status: Status, value: Any) -> Status:
    return Status.NULL_VALUE if status is Status.PRESENT and value is None else status


Decoded = tuple[list[Any] | None, Status, dt.datetime | None]


def _decode(join: Join, row: FoundRow | None, dialect: Dialect) -> Decoded:
    if row is None:
        return None, Status.NOT_FOUND, None
    if not row.fresh:
        return None, Status.OUTSIDE_MAX_AGE, row.event_time
    values = [
        None if value is None else dialect.decode(kind, value)
        for kind, value in zip(join.types(), row.values, strict=True)
    ]
    return values, Status.PRESENT, row.event_time
