"""What a user gives, as requests: features, entity rows, rows to push, tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from featurestore.definitions import (
    FeatureSelection,
    FeatureService,
    FeatureView,
    check_name,
)
from featurestore.errors import (
    DefinitionError,
    FeatureStoreError,
    InvalidRow,
    InvalidRowsError,
    NotFoundError,
    SchemaMismatchError,
    SourceError,
)
from featurestore.ingest.conform import conform_rows
from featurestore.ingest.layout import Layout
from featurestore.selection import Features
from featurestore.types import FeatureType, Json, TypeMismatch, ValueMismatch, dump_json
from featurestore.wire import encode_untyped, view_types, write_stream

_LISTED = 10


def path_name(kind: str, name: object) -> str:
    """``name`` as a part of a URL; what cannot be a name is not there."""
    try:
        return check_name(kind, name)
    except DefinitionError as error:
        raise NotFoundError(f"There is no {kind} {name!r}: {error}", name=str(name)) from None


def feature_names(features: Features) -> list[str] | str:
    """Features as ``["view:feature", …]``, or a service's name.

    A selection under another name, or joined by other columns, has no such name: it raises
    :class:`DefinitionError`, which points at services.
    """
    if isinstance(features, FeatureService):
        return features.name
    if isinstance(features, str) and ":" not in features:
        return features
    if isinstance(features, str | FeatureView | FeatureSelection):
        features = [features]
    if not isinstance(features, Iterable):
        raise DefinitionError(
            f"{features!r} names no feature: use 'view:feature', 'view:*', views or a service."
        )
    items = list(features)
    if len(items) == 1 and isinstance(items[0], FeatureService):
        return items[0].name
    return [name for item in items for name in _names(item)]


def _names(item: object) -> list[str]:
    if isinstance(item, str):
        return [item]
    if isinstance(item, FeatureView):
        return [f"{item.name}:*"]
    if not isinstance(item, FeatureSelection):
        raise DefinitionError(
            f"{item!r} names no feature: use 'view:feature', 'view:*', a view or a selection."
        )
    if item.name != item.view.name or item.join_key_map:
        raise DefinitionError(
            f"The selection {item.name!r} of view {item.view.name!r} has a name or join keys of "
            f"its own, and a client can only ask for what is registered: apply a FeatureService "
            f"with it, and ask for that."
        )
    return [f"{item.view.name}:{feature}" for feature in item.features]


# --- entity rows --------------------------------------------------------------------------


def encoded_entities(rows: Sequence[Any]) -> tuple[list[dict[str, Any]], str]:
    """Entity rows as JSON has them, and what of them was left out, for people.

    The store ignores entries that are no join keys, so what has no form in JSON is no error here.
    """
    encoded, left_out = [], ""
    for index, row in enumerate(rows):
        if not hasattr(row, "items"):
            raise SchemaMismatchError(
                f"entity row {index} is {type(row).__name__}, not a mapping of join keys to values."
            )
        values = {}
        for name, value in row.items():
            if not isinstance(name, str):
                continue
            try:
                values[name] = encode_untyped(value)
            except (TypeMismatch, ValueMismatch) as error:
                left_out = left_out or f"entity row {index}, {name!r} was not sent: {error}"
        encoded.append(values)
    return encoded, left_out


# --- rows to push -------------------------------------------------------------------------


def listed_rows(rows: Any) -> list[Any]:
    """Pushed rows as a list; :class:`SchemaMismatchError` for what are none."""
    if isinstance(rows, Mapping):
        return [rows]
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise SchemaMismatchError(
            f"Rows are mappings of column names to values, or an Arrow-compatible table, not "
            f"{type(rows).__name__}."
        )
    return list(rows)


def encoded_rows(rows: Sequence[Any], view: FeatureView | None) -> list[dict[str, Any]]:
    """Rows for a push as JSON has them.

    In JSON, bytes, times and decimals are text. So that none of them ends in a column of text,
    and no text in one of bytes, their types are held against the view's (None: not known).
    Raises :class:`SchemaMismatchError` and :class:`InvalidRowsError`, as the store would.
    """
    types = {} if view is None else view_types(view)
    encoded, bad = [], []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
            raise _as_the_store_says(rows, view) or SchemaMismatchError(
                f"row {index} is {type(row).__name__}, not a mapping of column names to values."
            )
        values, reasons = {}, []
        for name, value in row.items():
            try:
                values[name] = _encoded(value, types.get(name))
            except (TypeMismatch, ValueMismatch) as error:
                reasons.append(f"{name} {error}")
        encoded.append(values)
        if reasons:
            bad.append(InvalidRow(index, "; ".join(reasons)))
    if bad:
        raise _as_the_store_says(rows, view) or _invalid(view, bad)
    return encoded


def _encoded(value: Any, kind: FeatureType | None) -> Any:
    if kind == Json:
        if value is not None:
            dump_json(value)
        return value
    plain = encode_untyped(value)
    if kind is not None and plain is not None:
        try:
            kind.python(value)
        except ValueMismatch:
            return plain  # the server knows the type as it is by now, and what fits it
    return plain


def _as_the_store_says(rows: Sequence[Any], view: FeatureView | None) -> FeatureStoreError | None:
    if view is None:
        return None
    try:
        rejected = conform_rows(rows, Layout(view)).rejected
    except SchemaMismatchError as error:
        return error
    bad = [InvalidRow(one.row, one.reason) for one in rejected]
    return _invalid(view, bad) if bad else None


def _invalid(view: FeatureView | None, bad: Sequence[InvalidRow]) -> InvalidRowsError:
    where = "rows" if view is None else f"rows (view {view.name!r})"
    return InvalidRowsError(where, bad[:_LISTED], count=len(bad))


def pushed_table(rows: Any) -> bytes:
    """An Arrow-compatible table as a stream of bytes. For a thread."""
    try:
        table = pa.RecordBatchReader.from_stream(rows).read_all()
    except (pa.ArrowException, TypeError, ValueError, OSError) as error:
        raise SourceError(f"The {type(rows).__name__} gives no Arrow stream: {error}") from error
    return write_stream(table)
