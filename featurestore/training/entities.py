"""The entity table of a training set: any table, checked and made ready for the join."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import (
    DefinitionError,
    InvalidRow,
    InvalidRowsError,
    NotFoundError,
    SchemaMismatchError,
)
from featurestore.ingest.casts import cast
from featurestore.selection import Request
from featurestore.types import FeatureType, Timestamp, TypeMismatch

AT = "__at"
ROW = "__row"
_SHOWN = 10


@dataclass(frozen=True)
class Entities:
    """The entity table as it came, and its keys and times as the join needs them.

    ``keys`` has the columns ``__row`` (its position), ``__at`` and one per join column.
    """

    table: pa.Table
    keys: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)


def read_entities(entity_df: Any) -> pa.Table:
    """Any table as an Arrow table: an Arrow stream, pandas, rows as mappings. For a thread."""
    if isinstance(entity_df, pa.Table):
        return entity_df
    try:
        if type(entity_df).__module__.startswith("pandas"):
            # Its own Arrow stream would bring the index along as a column.
            return pa.Table.from_pandas(entity_df, preserve_index=False)
        if hasattr(entity_df, "__arrow_c_stream__"):
            return pa.RecordBatchReader.from_stream(entity_df).read_all()
        if isinstance(entity_df, pa.RecordBatch):
            return pa.Table.from_batches([entity_df])
        if isinstance(entity_df, Mapping):
            return pa.table(dict(entity_df))
        if isinstance(entity_df, Sequence) and not isinstance(entity_df, str | bytes):
            return pa.Table.from_pylist(list(entity_df))
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        raise SchemaMismatchError(f"The entity table cannot be read: {error}") from error
    raise SchemaMismatchError(
        f"The entity table must be a table (Arrow, pandas, Polars …) or a list of mappings, not "
        f"{type(entity_df).__name__}."
    )


def prepare_entities(entity_df: Any, request: Request, timestamp_column: str) -> Entities:
    """Read and check the entity table. For a thread.

    Raises :class:`SchemaMismatchError` for missing or mistyped columns,
    :class:`InvalidRowsError` for null times and keys that do not fit, and
    :class:`DefinitionError` where a column has the name of an output.
    """
    table = read_entities(entity_df)
    if table.num_columns == 0:  # a list of no rows says nothing of columns
        types = {**request.key_columns, timestamp_column: Timestamp}
        table = pa.table({name: pa.nulls(0, kind.arrow) for name, kind in types.items()})
    _check_names(table, request)
    columns: dict[str, pa.Array] = {ROW: pa.arange(0, table.num_rows)}
    columns[AT] = _column(table, timestamp_column, Timestamp)
    missing = columns[AT].is_null()
    if pc.any(missing, min_count=0).as_py():
        positions = pc.indices_nonzero(missing).to_pylist()
        bad = [InvalidRow(row, f"{timestamp_column} is null") for row in positions[:_SHOWN]]
        raise InvalidRowsError("the entity table", bad, count=len(positions))
    for name, kind in request.key_columns.items():
        columns[name] = _column(table, name, kind)
    return Entities(table, pa.table(columns))


def _check_names(table: pa.Table, request: Request) -> None:
    names = table.column_names
    if len(set(names)) < len(names):
        doubled = sorted({name for name in names if names.count(name) > 1})
        raise SchemaMismatchError(f"The entity table has two columns named {doubled[0]!r}.")
    for output in request.outputs:
        if output.name in names:
            join = request.joins[output.join]
            raise DefinitionError(
                f"The entity table has a column {output.name!r}, and so is the output of "
                f"{join.name}:{join.features[output.position]} named. Rename the column, or read "
                f"with full_feature_names=True."
            )


def _column(table: pa.Table, name: str, kind: FeatureType) -> pa.Array:
    if name not in table.column_names:
        hint = NotFoundError.of("column", name, table.column_names)
        raise SchemaMismatchError(f"The entity table needs a column {name!r} ({kind}). {hint}")
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no chunk at all
        column = pa.nulls(0, column.type) if not column.num_chunks else column.chunk(0)
    try:
        array, bads = cast(column, kind)
    except (TypeMismatch, pa.ArrowNotImplementedError):
        raise SchemaMismatchError(
            f"The entity table's column {name!r} is {column.type}, which cannot become {kind}."
        ) from None
    if bads:
        mask, reason = bads[0]
        positions = pc.indices_nonzero(mask).to_pylist()
        rows = [InvalidRow(row, f"{name} {reason}") for row in positions[:_SHOWN]]
        raise InvalidRowsError("the entity table", rows, count=len(positions))
    return array
