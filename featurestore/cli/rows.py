"""Rows from outside: JSON for push, a table of entities for a training set."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.cli import values
from featurestore.errors import InvalidRow, InvalidRowsError, SourceError

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.definitions import FeatureView
    from featurestore.types import FeatureType

SHOWN = 10
"""How many invalid rows an error lists."""


# --- JSON ---------------------------------------------------------------------------------


def read_rows(file: str) -> list[dict[str, Any]]:
    """The JSON objects of ``file`` (``-``: standard input): one after the other, or in arrays."""
    where = name_of(file)
    rows: list[Any] = []
    try:
        for value in values.parse_json_stream(_read_text(file)):
            rows += value if isinstance(value, list) else [value]
    except json.JSONDecodeError as error:
        raise SourceError(f"{where} is no JSON: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} is no JSON that can be read: {error}.") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise SourceError(
                f"Row {number} of {where} is no JSON object such as "
                f'{{"driver_id": 1001, "conv_rate": 0.5}}.'
            )
    return rows


def _read_text(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{name_of(file)} is no UTF-8 text: {error}.") from error
    except OSError as error:
        raise SourceError(f"{name_of(file)} cannot be read: {error.strerror}.") from error


def typed(found: list[dict[str, Any]], view: FeatureView, file: str) -> list[dict[str, Any]]:
    """``found`` with values of the types of ``view``; what cannot be read is invalid rows."""
    times = [view.timestamp_field, view.created_timestamp_field]
    kinds = {**view.join_keys, **view.types}
    readers = {name: values.json_reader(kind) for name, kind in kinds.items()}
    readers |= {name: values.json_reader(_timestamp()) for name in times if name is not None}
    read: list[dict[str, Any]] = []
    invalid: list[InvalidRow] = []
    for number, row in enumerate(found):
        try:
            read.append(values.read_json_row(row, readers))
        except ValueError as error:
            invalid.append(InvalidRow(number, str(error)))
    if invalid:
        raise InvalidRowsError(name_of(file), invalid[:SHOWN], len(invalid))
    return read


def name_of(file: str) -> str:
    """How messages call ``file``."""
    return "standard input" if file == "-" else file


def _timestamp() -> FeatureType:
    from featurestore.types import Timestamp

    return Timestamp


# --- tables -------------------------------------------------------------------------------


def read_table(path: str, keys: Mapping[str, FeatureType], time: str) -> pa.Table:
    """The table of ``path``, Parquet or CSV; of a CSV, ``keys`` and ``time`` get their types."""
    import pyarrow as pa

    try:
        if path.lower().endswith(".csv"):
            return _read_csv(path, {**keys, time: _timestamp()})
        import pyarrow.parquet as pq

        # Not read_table: that would take folders such as year=2024 for columns.
        with pq.ParquetFile(path) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error


def _read_csv(path: str, kinds: Mapping[str, FeatureType]) -> pa.Table:
    """Arrow guesses the types, but for those in ``kinds``: "007" and "NA" may be keys."""
    import pyarrow as pa
    from pyarrow import csv

    text = dict.fromkeys(kinds, pa.string())
    guessed = csv.ConvertOptions(column_types=text, strings_can_be_null=True)
    table = csv.read_csv(path, convert_options=guessed)
    known = [name for name in kinds if name in table.column_names]
    if not known:
        return table
    exact = csv.ConvertOptions(
        include_columns=known,
        column_types=text,
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    columns = csv.read_csv(path, convert_options=exact)
    for name in known:
        column = _typed_column(columns.column(name), name, kinds[name], path)
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _typed_column(column: pa.ChunkedArray, name: str, kind: FeatureType, path: str) -> pa.Array:
    import pyarrow as pa

    read = values.key_reader(kind)
    typed_values: list[Any] = []
    invalid: list[InvalidRow] = []
    for number, text in enumerate(column.to_pylist()):
        try:
            typed_values.append(None if text is None else kind.python(read(text)))
        except (ValueError, TypeError) as error:
            invalid.append(InvalidRow(number, f"{name}: {error}"))
    if invalid:
        raise InvalidRowsError(path, invalid[:SHOWN], len(invalid))
    return pa.array(typed_values, kind.arrow)
