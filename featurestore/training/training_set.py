"""What a training read answers with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurestore.errors import SourceError
from featurestore.training.summary_html import training_html

if TYPE_CHECKING:
    import pandas
    import polars


@dataclass(frozen=True)
class TrainingSet:
    """Entity rows with their features: every row kept, in order, its own columns first.

    ``match_rate`` maps each view to the share of rows (0 to 1) that found a value in it, and
    ``features`` each column that is a feature to its view, under the name that it was joined by.
    In a notebook it shows its size, columns, nulls, and how the values lie.
    """

    table: pa.Table
    match_rate: Mapping[str, float]
    features: Mapping[str, str] = field(default_factory=dict)

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
        """Write the rows to a Parquet file, whole or not at all.

        It blocks while it writes: async code calls ``asyncio.to_thread(ts.to_parquet, path)``.
        """
        import pyarrow.parquet as pq
        from pyarrow.fs import LocalFileSystem

        target = os.fspath(path)
        partial = f"{target}.partial"
        try:
            pq.write_table(self.table, partial)
            LocalFileSystem().move(partial, target)
        except OSError as error:
            raise SourceError(f"{target} cannot be written: {error}") from error

    def __repr__(self) -> str:
        rates = ", ".join(f"{view} {rate:.1%}" for view, rate in self.match_rate.items())
        return f"<TrainingSet: {len(self):,} rows, {self.table.num_columns} columns; found {rates}>"

    def _repr_html_(self) -> str:
        return training_html(self.table, self.features, self.match_rate)
