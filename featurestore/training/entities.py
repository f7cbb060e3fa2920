"""The entity table of a training set: any table, checked and made ready for the join."""

from __future__ import annotations

import asyncio
import glob
import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import (
    DefinitionError,
    InvalidRow,
    InvalidRowsError,
    NotFoundError,
    SchemaMismatchError,
    SourceError,
)
from featurestore.ingest.casts import cast
from featurestore.selection import Request
from featurestore.storage.queries import reading_for_user
from featurestore.storage.session import Session
from featurestore.storage.waiting import in_thread, stoppable_thread
from featurestore.training.rule import AT, ROW
from featurestore.training.spool import IN_MEMORY_BYTES, Spool, collected
from featurestore.training.threads import is_small
from featurestore.types import (
    Bool,
    Date,
    DecimalType,
    FeatureType,
    Timestamp,
    TypeMismatch,
)

PIECE_ROWS = 65_536
"""Entity rows that are checked together."""

_SHOWN = 10
_SEVERAL = (
    "Read several as one table first: pyarrow.dataset.dataset(…).to_table(), or scan_parquet of "
    "Polars."
)
_SQL = re.compile(
    # A file may be called values.parquet, or lie in with/: more than the word itself is a query.
    r"(?:\s+|--[^\n]*\n|/\*.*?\*/|\()*(?:select|with|values|table)(?=[\s(\"'*]|--|/\*)",
    re.IGNORECASE | re.DOTALL,
)
_SQL_ROWS = 16_384


@dataclass(frozen=True)
class Entities:
    """The entity table as it came, and its keys and times as the join needs them.

    ``keys`` has the columns ``__row`` (its position), ``__at`` and one per join column. Either may
    be mapped from a file. ``source`` is the path or SQL text that it came from, if it did.
    """

    table: pa.Table
    keys: pa.Table
    source: str | None = None

    def __len__(self) -> int:
        return int(self.table.num_rows)


def is_sql(entity_df: Any) -> bool:
    """Whether an entity table is given as the text of a query."""
    return isinstance(entity_df, str) and _SQL.match(entity_df) is not None


async def open_entities(
    session: Session,
    entity_df: Any,
    request: Request,
    timestamp_column: str,
    limit: int = IN_MEMORY_BYTES,
) -> Entities:
    """Read and check the entity table: a table, a path to Parquet, or a query of the database.

    Of a path, a stream or a query no more than ``limit`` bytes are held in memory. Raises
    :class:`SchemaMismatchError` for missing or mistyped columns, :class:`InvalidRowsError` for
    null times and keys that do not fit, and :class:`DefinitionError` where a column has the name
    of an output.
    """
    source = os.fspath(entity_df) if isinstance(entity_df, str | os.PathLike) else None
    types = {**request.key_columns, timestamp_column: Timestamp}
    if is_sql(entity_df):
        table = await _query(session, entity_df, limit)
        table = await asyncio.to_thread(_typed, table, types)
    else:
        if isinstance(entity_df, pa.Table):
            table = read_entities(entity_df)
        else:
            table = await stoppable_thread(lambda stopped: read_entities(entity_df, limit, stopped))
        _check_index(entity_df, set(types).difference(table.column_names))
    prepare = partial(prepare_entities, table, request, timestamp_column, source, limit)
    if is_small(table, limit):
        return prepare()
    return await stoppable_thread(lambda stopped: prepare(stopped=stopped))


# --- reading --------------------------------------------------------------------------------


def read_entities(
    entity_df: Any, limit: int = IN_MEMORY_BYTES, stopped: threading.Event | None = None
) -> pa.Table:
    """Any table as an Arrow table: an Arrow stream, pandas, rows as mappings, a path to Parquet.
    For a thread, which ends early when ``stopped`` is set."""
    if _is_paths(entity_df):
        raise SourceError(f"The entity table is one Parquet file, not a list of them. {_SEVERAL}")
    return _usable(_read(entity_df, limit, stopped))


def _is_paths(entity_df: Any) -> bool:
    return (
        isinstance(entity_df, list | tuple)
        and bool(entity_df)
        and all(isinstance(one, str | os.PathLike) for one in entity_df)
    )


def _usable(table: pa.Table) -> pa.Table:
    """The table, its categories of text (as Polars has them) of a type that Arrow can work with:
    of dictionaries of views it can neither take rows nor write them to Parquet."""
    for index, field in enumerate(table.schema):
        kind = field.type
        if pa.types.is_dictionary(kind) and pa.types.is_string_view(kind.value_type):
            usable = pa.dictionary(kind.index_type, pa.large_string(), kind.ordered)
            chunks = [
                pa.DictionaryArray.from_arrays(
                    one.indices, one.dictionary.cast(pa.large_string()), ordered=kind.ordered
                )
                for one in table.column(index).chunks
            ]
            column = pa.chunked_array(chunks, usable)
            table = table.set_column(index, field.with_type(usable), column)
    return table


def _read(entity_df: Any, limit: int, stopped: threading.Event | None) -> pa.Table:
    if isinstance(entity_df, pa.Table):
        return entity_df
    if isinstance(entity_df, str | os.PathLike):
        return _read_parquet(os.fspath(entity_df), limit, stopped)
    try:
        if type(entity_df).__module__.startswith("pandas"):
            # Its own Arrow stream would bring the index along as a column.
            table = pa.Table.from_pandas(entity_df, preserve_index=False)
            return table if table.num_columns else columnless(len(entity_df))
        if isinstance(entity_df, pa.RecordBatch):
            return pa.Table.from_batches([entity_df])
        if hasattr(entity_df, "__arrow_c_stream__"):
            reader = pa.RecordBatchReader.from_stream(entity_df)
            return collected(reader, reader.schema, limit, stopped)
        if isinstance(entity_df, Mapping):
            return pa.table(dict(entity_df))
        if isinstance(entity_df, Sequence) and not isinstance(entity_df, bytes):
            return _of_mappings(entity_df)
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        raise SchemaMismatchError(f"The entity table cannot be read: {error}") from error
    raise SchemaMismatchError(
        f"The entity table must be a table (Arrow, pandas, Polars …), a list of mappings, a path "
        f"to Parquet or the text of a query, not {type(entity_df).__name__}."
    )


def columnless(rows: int) -> pa.Table:
    """A table of so many rows and no columns, which Arrow makes none of by itself."""
    return pa.table({"": pa.nulls(rows)}).select([])


def _of_mappings(rows: Sequence[Any]) -> pa.Table:
    """Rows as a table of all columns that any of them has, null where one lacks it."""
    names = dict.fromkeys(name for row in rows for name in row.keys())  # noqa: SIM118
    if not names:
        return columnless(len(rows))
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _check_index(entity_df: Any, missing: Collection[str]) -> None:
    """Raise where columns that are needed are in the index of a pandas frame, which is no part of
    the table."""
    if missing and type(entity_df).__module__.startswith("pandas"):
        inside = [name for name in entity_df.index.names if name in missing]
        if inside:
            raise SchemaMismatchError(
                f"The entity table needs a column {inside[0]!r}, and the frame has "
                f"{', '.join(map(repr, inside))} in its index: give it as entity_df.reset_index()."
            )


def _read_parquet(path: str, limit: int, stopped: threading.Event | None) -> pa.Table:
    import pyarrow.parquet as pq

    if not path.strip():
        raise SourceError(
            "The entity table is an empty text: give the path of a Parquet file, or a query."
        )
    if os.path.isdir(path):
        raise SourceError(f"{path} is a folder: the entity table is one Parquet file. {_SEVERAL}")
    if not os.path.exists(path):
        if glob.has_magic(path):
            raise SourceError(
                f"{path}: the entity table is one Parquet file, not a pattern of them. {_SEVERAL}"
            )
        raise SourceError(
            f"{path}: there is no such Parquet file (looked from {os.getcwd()}); a query would "
            f"begin with SELECT or WITH."
        )
    try:
        # One piece after the other: the file may be larger than memory.
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            batches = file.iter_batches(batch_size=PIECE_ROWS)
            return collected(batches, schema, limit, stopped)
    except (pa.ArrowException, OSError) as error:
        hint = ""
        if path.lower().endswith((".csv", ".tsv")):
            hint = (
                " It is CSV by its name: read it with pandas or Polars first, and give the table "
                "(the command line takes CSV as it is)."
            )
        said = str(error).rstrip(".")
        raise SourceError(f"{path} cannot be read as Parquet: {said}.{hint}") from error


async def _query(session: Session, sql: str, limit: int) -> pa.Table:
    """The rows of a query, which must not write; mapped from a file beyond ``limit`` bytes."""
    with reading_for_user(session.label):
        async with session.dialect.read_only(session):
            query = await session.describe(sql)
            _check_doubled([name for name, _ in query.columns])
            gathered = _QueryRows(query.columns, limit)
            try:
                async with aclosing(session.stream_text(query.sql, size=_SQL_ROWS)) as chunks:
                    async for rows in chunks:
                        await in_thread(gathered.add, rows)
                return await in_thread(gathered.table)
            finally:
                await in_thread(gathered.close)


class _QueryRows:
    """Rows of a query on their way to a table: in memory up to ``limit`` bytes, in files beyond.
    For threads.

    Where the database does not tell a column's type, its values do: from where a later one needs a
    wider type on, the rows go to a file of their own.
    """

    def __init__(self, columns: Sequence[tuple[str, pa.DataType | None]], limit: int) -> None:
        self._columns = columns
        self._limit = limit
        self._parts: list[pa.Table] = []
        self._bytes = 0
        self._spools: list[Spool] = []

    def add(self, rows: Sequence[Any]) -> None:
        part = _part(self._columns, rows)
        self._parts.append(part)
        self._bytes += part.nbytes
        if self._bytes > self._limit:
            self._write(_joined(self._parts))
            self._parts = []

    def _write(self, rows: pa.Table) -> None:
        schema = rows.schema
        if self._spools:
            schema = _joined([self._spools[-1].schema.empty_table(), rows.slice(0, 0)]).schema
        if not self._spools or schema != self._spools[-1].schema:
            self._spools.append(Spool(schema))
        self._spools[-1].write(rows.cast(schema))

    def table(self) -> pa.Table:
        parts = [spool.table() for spool in self._spools] + self._parts
        return _joined(parts or [_part(self._columns, [])])

    def close(self) -> None:
        for spool in self._spools:
            spool.close()


def _joined(parts: Sequence[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise SchemaMismatchError(f"The rows of the query make no table: {error}") from error


def _part(columns: Sequence[tuple[str, pa.DataType | None]], rows: Sequence[Any]) -> pa.Table:
    """Rows of a query as a table; the types that the database does not tell are its values'."""
    values = list(zip(*rows, strict=True)) or [()] * len(columns)
    arrays = []
    for (name, kind), column in zip(columns, values, strict=True):
        try:
            arrays.append(pa.array(column, kind))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise SchemaMismatchError(
                f"The query's column {name!r} has values that no column of a table can hold "
                f"({error}): cast it in the query, CAST(… AS text) AS {name}."
            ) from error
    return pa.Table.from_arrays(arrays, [name for name, _ in columns])


def _typed(table: pa.Table, types: Mapping[str, FeatureType]) -> pa.Table:
    """A query's columns as their types, where the database keeps these as numbers or text.

    SQLite has no times, dates, decimals and truth values: they come as integers as in the
    store's own tables (microseconds, days, 0 and 1), or as text (ISO 8601, digits).
    """
    for name, kind in types.items():
        if name not in table.column_names:
            continue
        column = table.column(name)
        text, whole = pa.types.is_string(column.type), pa.types.is_integer(column.type)
        as_text = text and (kind in (Date, Timestamp) or isinstance(kind, DecimalType))
        as_number = whole and kind in (Bool, Date, Timestamp)
        if not as_text and not as_number:
            continue
        try:
            column = _iso_times(column) if text and kind == Timestamp else _as(column, kind)
        except pa.ArrowException as error:
            raise SchemaMismatchError(
                f"The query's column {name!r} cannot be read as {kind}: {error}"
            ) from error
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _as(column: pa.ChunkedArray, kind: FeatureType) -> pa.ChunkedArray:
    if kind == Date and pa.types.is_integer(column.type):
        column = column.cast(pa.int32())
    return column.cast(kind.arrow)


def _iso_times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.timestamp("us")).cast(Timestamp.arrow)  # without a zone: UTC
    except pa.ArrowInvalid:
        return column.cast(Timestamp.arrow)


# --- checking -------------------------------------------------------------------------------


def prepare_entities(
    table: pa.Table,
    request: Request,
    timestamp_column: str,
    source: str | None = None,
    limit: int = IN_MEMORY_BYTES,
    stopped: threading.Event | None = None,
) -> Entities:
    """Check an entity table, and make its keys and times ready; see :func:`open_entities`."""
    types = {**request.key_columns, timestamp_column: Timestamp}
    if table.num_columns == table.num_rows == 0:  # a list of no rows says nothing of columns
        table = pa.table({name: pa.nulls(0, kind.arrow) for name, kind in types.items()})
    _check_names(table, request, types)
    needed = table.select(list(types))
    stored = {ROW: pa.int64(), AT: Timestamp.arrow}
    stored |= {name: kind.arrow for name, kind in request.key_columns.items()}
    checks = _Checks(timestamp_column, types)

    def keys() -> Iterator[pa.RecordBatch]:
        first = 0
        for batch in _pieces(needed):
            columns = checks.columns(batch, first)
            rows = pa.arange(first, first + batch.num_rows)
            times = columns[timestamp_column]
            named = [columns[name] for name in request.key_columns]
            yield pa.RecordBatch.from_arrays([rows, times, *named], schema=pa.schema(stored))
            first += batch.num_rows

    read = collected(keys(), pa.schema(stored), limit, stopped)
    checks.finish()
    return Entities(table, read, source)


def _pieces(table: pa.Table) -> Iterator[pa.RecordBatch]:
    for start in range(0, table.num_rows, PIECE_ROWS):
        piece = table.slice(start, PIECE_ROWS).combine_chunks()
        yield from piece.to_batches()


class _Checks:
    """Casts the needed columns piece by piece, and gathers what is wrong with them."""

    def __init__(self, timestamp_column: str, types: Mapping[str, FeatureType]) -> None:
        self._time = timestamp_column
        self._types = types
        self._shown: list[InvalidRow] = []
        self._count = 0

    def columns(self, batch: pa.RecordBatch, first: int) -> dict[str, pa.Array]:
        found = {}
        for name, kind in self._types.items():
            column = batch.column(batch.schema.get_field_index(name))
            try:
                found[name], bads = cast(column, kind)
            except (TypeMismatch, pa.ArrowNotImplementedError):
                raise SchemaMismatchError(
                    f"The entity table's column {name!r} is {column.type}, which cannot become "
                    f"{kind}.{_way_out(column.type, kind)}"
                ) from None
            if name == self._time:
                bads = [*bads, (column.is_null(), "is null")]
            for mask, reason in bads:
                self._note(mask, f"{name} {reason}", first)
        return found

    def _note(self, mask: pa.Array, reason: str, first: int) -> None:
        positions = pc.indices_nonzero(mask)
        self._count += len(positions)
        shown = positions[: max(_SHOWN - len(self._shown), 0)].to_pylist()
        self._shown += [InvalidRow(first + row, reason) for row in shown]

    def finish(self) -> None:
        """Raise :class:`InvalidRowsError` where anything was wrong."""
        if self._count:
            shown = sorted(self._shown, key=lambda bad: bad.row)
            raise InvalidRowsError("the entity table", shown, count=self._count)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    large = pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(large or pa.types.is_string(kind))


def _way_out(found: pa.DataType, kind: FeatureType) -> str:
    """What to do about text where there should be times."""
    if kind not in (Date, Timestamp) or not _is_text(found):
        return ""
    return " Parse the text first: pandas.to_datetime(…, utc=True), or str.to_datetime of Polars."


def _check_doubled(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        doubled = sorted({name for name in names if names.count(name) > 1})
        raise SchemaMismatchError(f"The entity table has two columns named {doubled[0]!r}.")


def _check_names(table: pa.Table, request: Request, types: Mapping[str, FeatureType]) -> None:
    names = table.column_names
    _check_doubled(names)
    given = set(names)
    for output in request.outputs:
        if output.name in given:
            join = request.joins[output.join]
            raise DefinitionError(
                f"The entity table has a column {output.name!r}, which is also the name of "
                f"{join.name}:{join.features[output.position]} in the result. Rename the column, "
                f"or read with full_feature_names=True."
            )
    for name in request.key_columns:
        if name in (ROW, AT):
            raise DefinitionError(
                f"The join key column {name!r} of the entity table has a name that the join needs "
                f"itself: map the key to a column of another name."
            )
    for name, kind in types.items():
        if name not in names:
            hint = NotFoundError.of("column", name, names) if names else "It has no columns."
            raise SchemaMismatchError(f"The entity table needs a column {name!r} ({kind}). {hint}")
        # A type that can never fit is told although there are no rows.
        _Checks("", {name: kind}).columns(
            pa.record_batch({name: pa.nulls(0, table.schema.field(name).type)}), 0
        )
