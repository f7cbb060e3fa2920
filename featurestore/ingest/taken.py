"""What a view takes from a file: which of its columns, and where their bytes lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from featurestore.definitions import FeatureView
from featurestore.ingest.conform import Conformed, check_schema, conform_arrow
from featurestore.ingest.layout import Layout
from featurestore.ingest.parquet import Chunks, Footer, plan_chunks
from featurestore.ingest.partitions import partition_values
from featurestore.ingest.ranges import RangeReader
from featurestore.ingest.sources import SourceFile


@dataclass(frozen=True)
class Taken:
    """What is taken from a file for a view: its columns, where their bytes lie, and a name for
    all of that by which the same file is known again."""

    layout: Layout
    columns: dict[str, str]
    constants: dict[str, pa.Scalar]
    read: list[str]
    plan: list[Chunks]
    identity: str

    @classmethod
    def of(
        cls,
        view: FeatureView,
        mapping: Mapping[str, str],
        file: SourceFile,
        reader: RangeReader,
        footer: Footer,
    ) -> Taken:
        """Find the view's columns in a file, by ``mapping`` (file column → view column) or name.

        Raises :class:`SchemaMismatchError` for columns that are missing or can never fit.
        """
        layout = Layout(view)
        folders = [mapping.get(name, name) for name, _ in file.partitions]
        columns = layout.locate(footer.schema, mapping, reader.name, folders)
        constants = partition_values(file, layout, mapping, reader.name, columns)
        check_schema(footer.schema, layout, columns, reader.name)
        # Where folders hold all of it, a column that nobody asks for tells how many rows there are.
        read = list(columns.values()) or footer.schema.names[:1]
        plan = plan_chunks(footer, read, reader.name, reader.size)
        # After a new field the file brings something new; the same rows of another folder are
        # other rows.
        taken = ",".join(f"{name}={columns[name]}" for name in sorted(columns))
        taken += "".join(f",{name}:{constants[name]!r}" for name in sorted(constants))
        named = hashlib.blake2b(f"{footer.digest},{taken}".encode(), digest_size=20)
        return cls(layout, columns, constants, read, plan, named.hexdigest())

    def conform(self, rows: pa.RecordBatch, first_row: int, where: str) -> Conformed:
        """Check rows of the file, the first of them number ``first_row``. For a thread."""
        return conform_arrow(rows, self.layout, self.columns, first_row, where, self.constants)
