"""What a training read answers with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurestore.errors import SchemaMismatchError
from featurestore.training.manifest import PARQUET_KEY, Manifest
from featurestore.training.report import TrainingPlan
from featurestore.training.summary import leak_remarks
from featurestore.training.summary_html import training_html
from featurestore.training.whole_file import whole_file

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow.parquet as pq

GROUP_ROWS = 131_072
"""Rows of a row group: what a reader of the file gets at a time."""

_NO_PARQUET = (pa.ArrowNotImplementedError, pa.ArrowInvalid)


@dataclass(frozen=True)
class TrainingSet:
    """Entity rows with their features: every row kept, in order, its own columns first.

    ``match_rate`` maps each view to the share of rows (0 to 1) that found a value in it, and
    ``leaked`` to the number of rows whose value, by the plain rule, was created after the row's
    time: what ``known_by="created_timestamp"`` would leave out, or has left out. ``features`` says
    which view each feature column is of, ``dated`` which views have created times of their own: of
    others the time of the load counts as created. ``manifest`` is what
    :meth:`FeatureStore.replay` makes the same rows again from. ``warnings`` tell what cannot be as
    it was asked for.

    A set that is larger than the memory allowed lies in a temporary file, and is read from there.
    Printed it shows its size, match rates, warnings and leaks; in a notebook its columns, nulls
    and how the values lie, too.
    """

    table: pa.Table
    match_rate: Mapping[str, float]
    features: Mapping[str, str] = field(default_factory=dict)
    leaked: Mapping[str, int] = field(default_factory=dict)
    manifest: Manifest | None = None
    plan: TrainingPlan | None = None
    warnings: tuple[str, ...] = ()
    dated: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)

    def to_arrow(self) -> pa.Table:
        """The rows as an Arrow table."""
        return self.table

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a pandas DataFrame (pandas must be installed)."""
        return self.table.to_pandas()

    def to_polars(self) -> polars.DataFrame:
        """The rows as a Polars DataFrame (polars must be installed)."""
        import polars

        return polars.DataFrame(self.table)

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the rows to a Parquet file, whole or not at all, a row group at a time. The
        manifest goes with them. Raises :class:`SchemaMismatchError` for a column of a type that
        Parquet cannot hold.

        It blocks while it writes: async code calls ``asyncio.to_thread(ts.to_parquet, path)``.
        """
        with parquet_file(path, self.table.schema) as writer:
            for start in range(0, self.table.num_rows, GROUP_ROWS):
                write_rows(writer, self.table.slice(start, GROUP_ROWS))
            add_manifest(writer, self.manifest)

    def explain(self) -> TrainingPlan:
        """Which engine made the set, and why that one; printing it shows a few lines."""
        if self.plan is None:
            return TrainingPlan("server", "it was made by a server", {}, (), len(self), 0.0)
        return self.plan

    def __repr__(self) -> str:
        rates = ", ".join(f"{view} {rate:.1%}" for view, rate in self.match_rate.items())
        rows = f"{self._rows:,} rows{' (streamed)' if self._streamed else ''}"
        said = [f"<TrainingSet: {rows}, {self.table.num_columns} columns; found {rates}>"]
        said += [f"warning: {text}" for text in self.warnings]
        return "\n".join([*said, *self._leaks])

    def _repr_html_(self) -> str:
        return training_html(
            self.table,
            self.features,
            self.match_rate,
            warnings=self.warnings,
            remarks=self._leaks,
            streamed=self._rows if self._streamed else None,
        )

    @property
    def _streamed(self) -> bool:
        """Whether the rows went to whoever read the stream, and only their columns are here."""
        return self.plan is not None and not len(self) and self.plan.rows > 0

    @property
    def _rows(self) -> int:
        return self.plan.rows if self._streamed and self.plan is not None else len(self)

    @property
    def _leaks(self) -> list[str]:
        # Where nothing says when a row was created, all of a first load leaks: no news to anyone.
        leaked = {view: count for view, count in self.leaked.items() if view in self.dated}
        known = self.manifest is not None and self.manifest.known_by is not None
        return leak_remarks(leaked, self._rows, left_out=known)


@contextmanager
def parquet_file(path: str | os.PathLike[str], schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A Parquet file at ``path`` that is there when all went well, and else not touched."""
    with whole_file(path) as new, _opened(new, schema) as writer:
        yield writer


def _opened(path: str, schema: pa.Schema) -> pq.ParquetWriter:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetWriter(path, schema)
    except _NO_PARQUET:
        _check_columns(schema)
        raise


def write_rows(writer: pq.ParquetWriter, table: pa.Table) -> None:
    """Write rows as a row group; :class:`SchemaMismatchError` names what Parquet cannot hold."""
    try:
        writer.write_table(table)
    except _NO_PARQUET:
        _check_columns(table.schema, table)
        raise


def _check_columns(schema: pa.Schema, rows: pa.Table | None = None) -> None:
    """Raise where a column cannot be written: Arrow's own error does not say which it is."""
    import pyarrow.parquet as pq

    for number, column in enumerate(schema):
        try:
            with pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([column])) as writer:
                if rows is not None:
                    writer.write_table(rows.select([number]))
        except _NO_PARQUET as error:
            raise SchemaMismatchError(
                f"Parquet cannot hold column {column.name!r}, which is {column.type} ({error}): "
                f"cast it to another type, or drop it from the entity table. Nothing was written."
            ) from error


def add_manifest(writer: pq.ParquetWriter, manifest: Manifest | None) -> None:
    """Put a manifest into a file that is being written."""
    if manifest is not None:
        writer.add_key_value_metadata({PARQUET_KEY: manifest.to_json().encode()})
