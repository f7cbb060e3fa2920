"""Files of a copy that are written anew: they hold rows that were taken out, or are too small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.export.copy import Copy, DataFile
from featurestore.export.writer import GROUP_ROWS
from featurestore.storage.marks import Ranges
from featurestore.storage.tables import ARRIVAL

MANY_SMALL_FILES = 16
"""So many files of one bucket that together would fit a row group or two are made one."""


def files_hit(copy: Copy, ranges: Ranges) -> tuple[list[DataFile], int]:
    """The files that hold rows with arrivals in the ranges, and how many rows. For a thread."""
    import pyarrow.parquet as pq

    hit, rows = [], 0
    for file in copy.files:
        near = _near(ranges, file)
        if not near:
            continue
        column = pq.read_table(copy.folder / file.path, columns=[ARRIVAL], partitioning=None)
        count = pc.sum(among(column.column(ARRIVAL), near), min_count=0).as_py()
        if count:
            hit.append(file)
            rows += count
    return hit, rows


def small_files(files: Iterable[DataFile]) -> list[DataFile]:
    """Files to be made one, bucket by bucket: readers would spend their time opening them."""
    by_bucket: dict[int, list[DataFile]] = {}
    for file in files:
        if file.rows < GROUP_ROWS:
            by_bucket.setdefault(file.bucket, []).append(file)
    return [file for many in by_bucket.values() if len(many) >= MANY_SMALL_FILES for file in many]


def surviving(copy: Copy, file: DataFile, ranges: Ranges) -> Iterator[pa.Table]:
    """The rows of a file whose arrivals are in none of the ranges, in pieces."""
    import pyarrow.parquet as pq

    near = _near(ranges, file)
    with pq.ParquetFile(copy.folder / file.path) as source:
        for batch in source.iter_batches(batch_size=GROUP_ROWS):
            rows = pa.Table.from_batches([batch])
            if near:
                rows = rows.filter(pc.invert(among(rows.column(ARRIVAL), near)))
            if rows.num_rows:
                yield rows


def _near(ranges: Ranges, file: DataFile) -> list[tuple[int, int]]:
    return [
        (first, last)
        for first, last in ranges
        if first <= file.last_arrival and last >= file.first_arrival
    ]


def among(arrivals: pa.ChunkedArray, ranges: Sequence[tuple[int, int]]) -> pa.ChunkedArray:
    """Which of the arrivals are in any of the ranges, which are few, or hold one each."""
    singles = [first for first, last in ranges if first == last]
    found = pc.is_in(arrivals, value_set=pa.array(singles, pa.int64()))
    for first, last in ranges:
        if first != last:
            inside = pc.and_(pc.greater_equal(arrivals, first), pc.less_equal(arrivals, last))
            found = pc.or_(found, inside)
    return found
