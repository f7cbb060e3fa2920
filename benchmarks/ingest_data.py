"""The rows of `ingest.py`: the view, the files, and what the peers make of a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pgpq
import pyarrow as pa
import pyarrow.parquet as pq

import featurestore as fs

KEYS = 100_000
FLOATS = [f"f{i}" for i in range(6)]
EPOCH = 1_700_000_000_000_000
MONTH = 30 * 86_400_000_000
ROW_GROUP = 131_072
FILES = 8

BATCH_ROWS = 65_536
"""Rows per batch of the peers."""

COLUMNS = {
    "item_id": "bigint",
    "event_timestamp": "timestamptz",
    "created": "timestamptz",
    **dict.fromkeys(FLOATS, "double precision"),
    "n": "integer",
    "label": "text",
}
"""The columns of a file, as PostgreSQL declares them."""

view = fs.FeatureView(
    "bench",
    entities=[fs.Entity("item", join_keys={"item_id": fs.Int64})],
    fields=[
        *(fs.Field(name, fs.Float64) for name in FLOATS),
        fs.Field("n", fs.Int32),
        fs.Field("label", fs.String),
    ],
    timestamp_field="event_timestamp",
    created_timestamp_field="created",
)


def rows_of_part(part: int, rows: int) -> pa.Table:
    """A month's rows, in the order of their times."""
    random = np.random.default_rng(7 + part)
    times = np.sort(random.integers(0, MONTH, rows)) + EPOCH + part * MONTH
    stamp = pa.timestamp("us", tz="UTC")
    words = pa.array([f"label-{i}" for i in range(1000)])
    return pa.table(
        {
            "item_id": random.integers(0, KEYS, rows),
            "event_timestamp": pa.array(times).cast(stamp),
            "created": pa.array(times + 1_000_000).cast(stamp),
            **{name: random.random(rows) for name in FLOATS},
            "n": random.integers(0, 1000, rows).astype("int32"),
            "label": pa.DictionaryArray.from_arrays(
                pa.array(random.integers(0, 1000, rows).astype("int32")), words
            ),
        }
    )


class Files:
    """The benchmark's files in a folder; each is written when it is first asked for."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder = folder
        self.rows = rows

    def _once(self, name: str, write: Callable[[Path], None]) -> Path:
        path = self.folder / name
        if not path.exists():
            unfinished = path.with_name(f".{name}")
            write(unfinished)
            unfinished.rename(path)
        return path

    def first(self) -> Path:
        return self._once("first.parquet", lambda path: write(path, rows_of_part(0, self.rows)))

    def second(self) -> Path:
        """As many other rows for the same keys: those of the month after."""
        return self._once("second.parquet", lambda path: write(path, rows_of_part(1, self.rows)))

    def one_group(self) -> Path:
        """The rows of the first file in a single row group."""

        def write_it(path: Path) -> None:
            pq.write_table(
                rows_of_part(0, self.rows), path, compression="zstd", row_group_size=self.rows
            )

        return self._once("one-group.parquet", write_it)

    def several(self) -> Path:
        """A folder of 8 files that together hold the rows of the first."""

        def write_them(path: Path) -> None:
            path.mkdir()
            table, step = rows_of_part(0, self.rows), -(-self.rows // FILES)
            for index in range(FILES):
                write(path / f"part-{index}.parquet", table.slice(index * step, step))

        return self._once("several", write_them)

    def long(self) -> Path:
        """A file ten times as long as the first, which is its first tenth."""

        def write_it(path: Path) -> None:
            schema = rows_of_part(0, 1).schema
            with pq.ParquetWriter(path, schema, compression="zstd") as writer:
                for part in range(10):
                    writer.write_table(rows_of_part(part, self.rows), row_group_size=ROW_GROUP)

        return self._once("long.parquet", write_it)

    def copy_bytes(self) -> Path:
        """The first file's rows as the bytes of a binary COPY, which the server may read."""

        def write_it(path: Path) -> None:
            with path.open("wb") as file:
                file.writelines(encoded_pieces(self.first()))
            path.chmod(0o644)

        return self._once("copy.bin", write_it)


def write(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP)


def plain_schema(path: Path) -> pa.Schema:
    """The file's schema with text where it has a dictionary."""
    return pa.schema(
        [
            pa.field(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type)
            for f in pq.read_schema(path)
        ]
    )


def plain_batches(path: Path, limit: int | None = None) -> Iterator[pa.RecordBatch]:
    """The file in batches without dictionaries; ``limit`` is how many rows of it at most."""
    schema, left = plain_schema(path), limit
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            taken = batch if left is None else batch.slice(0, left)
            yield taken.cast(schema)
            if left is not None and (left := left - taken.num_rows) <= 0:
                return


def python_rows(path: Path, limit: int) -> Iterator[list[tuple[Any, ...]]]:
    """The first rows of the file as tuples, a batch at a time."""
    for batch in plain_batches(path, limit):
        yield list(zip(*(column.to_pylist() for column in batch.columns), strict=True))


Prepare = Callable[[pa.RecordBatch], pa.RecordBatch]


def encoded_pieces(path: Path, prepare: Prepare | None = None) -> Iterator[bytes]:
    """The file as the bytes of a binary COPY, by pgpq; ``prepare`` may change each batch."""
    encoder: Any = None
    for batch in plain_batches(path):
        ready = batch if prepare is None else prepare(batch)
        if encoder is None:
            encoder = pgpq.ArrowToPostgresBinaryEncoder(ready.schema)
            yield encoder.write_header()
        yield encoder.write_batch(ready)
    yield encoder.finish()


async def encoded(path: Path, prepare: Prepare | None = None) -> AsyncIterator[bytes]:
    """:func:`encoded_pieces` for a COPY, each made in a thread while the server takes in those
    before. Making them further ahead was no faster: the server is what takes the time."""
    pieces = encoded_pieces(path, prepare)
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece
