"""Entity rows to the keys that are looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from featurestore.errors import InvalidRow, InvalidRowsError, SchemaMismatchError
from featurestore.types import FeatureType, Int32, Int64, TypeMismatch, ValueMismatch

Key = tuple[Any, ...]
"""The values of one entity row for the key columns of a request, in their order."""

INTEGERS = {Int32: 1 << 31, Int64: 1 << 63}
"""Types of whole numbers → the first that is too great for them."""


def entity_keys(rows: Sequence[Any], columns: Mapping[str, FeatureType]) -> list[Key]:
    """The join keys of each entity row, checked and normalised; other entries are left out.

    Raises :class:`SchemaMismatchError` for a missing key or one of a wrong type, and
    :class:`InvalidRowsError` for a value that does not fit. None is no error: it finds nothing.
    """
    try:
        found = [list(map(itemgetter(name), rows)) for name in columns]
    except (KeyError, TypeError, IndexError):
        return [_keys(row, columns, index) for index, row in enumerate(rows)]
    for values, kind in zip(found, columns.values(), strict=True):
        if not _plain(values, kind):
            return [_keys(row, columns, index) for index, row in enumerate(rows)]
    return list(zip(*found, strict=True)) if found else [()] * len(rows)


def listed_rows(entity_rows: Any) -> Sequence[Any]:
    """Entity rows as a sequence of mappings, whatever they came as."""
    if isinstance(entity_rows, list | tuple):
        return entity_rows
    if hasattr(entity_rows, "to_pylist"):
        listed: list[Any] = entity_rows.to_pylist()
        return listed
    if hasattr(entity_rows, "to_dict") and hasattr(entity_rows, "columns"):
        records: list[Any] = entity_rows.to_dict("records")
        return records
    if isinstance(entity_rows, Mapping | str) or not hasattr(entity_rows, "__iter__"):
        raise SchemaMismatchError(
            f"entity_rows is a list of mappings from join keys to values, such as "
            f"[{{'driver_id': 1}}], not {type(entity_rows).__name__}."
        )
    return list(entity_rows)


def _plain(values: Sequence[Any], kind: FeatureType) -> bool:
    """Whether all are Python integers that fit: the usual keys, which need no look at each."""
    limit = INTEGERS.get(kind)
    if limit is None or set(map(type, values)) != {int}:
        return False
    least: int = min(values)
    greatest: int = max(values)
    return -limit <= least and greatest < limit


def _keys(row: Any, columns: Mapping[str, FeatureType], index: int) -> Key:
    keys: list[Any] = []
    for column, kind in columns.items():
        try:
            value = row[column]
        except (KeyError, TypeError, IndexError):
            raise SchemaMismatchError(
                f"entity row {index} lacks the join key {column!r} ({kind})."
            ) from None
        if value is None or type(value).__name__ in ("NAType", "NaTType"):
            keys.append(None)
            continue
        try:
            keys.append(kind.python(value))
        except TypeMismatch as error:
            raise SchemaMismatchError(
                f"entity row {index}, join key {column!r}: {error}; it must be {kind}."
            ) from None
        except ValueMismatch as error:
            reason = InvalidRow(index, f"{column}: {error}")
            raise InvalidRowsError("the entity rows", [reason]) from None
    return tuple(keys)
