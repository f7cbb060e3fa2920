"""Parquet to batches: exactly what pyarrow reads of the whole file, in the memory given."""

from __future__ import annotations

import asyncio
import gc
import io
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_files import SMALL, Column, Page, parquet_file, read, table_of, written

from featurestore.errors import SourceError
from featurestore.ingest.parquet import (
    BATCH_ROWS,
    ContentDigest,
    Limits,
    content_digest,
    plan_chunks,
    read_batches,
    read_footer,
)
from featurestore.ingest.ranges import FileReader, open_file

ROWS = 3_000
TINY = Limits(bytes_in_flight=300_000, batch_bytes=3_000)
"""Many small batches of what is read whole."""


def text(row: int) -> str:
    return "w" * (row % 50) if row % 1000 else "W" * 4000


def everything(rows: int = ROWS) -> pa.Table:
    """Columns of all shapes: narrow and wide, flat and nested, even and uneven."""
    every = range(rows)
    return pa.table(
        {
            "number": pa.array([row if row % 9 else None for row in every]),
            "category": pa.array([f"v{row % 300}" for row in every]),
            "text": pa.array([text(row) for row in every]),
            "flag": pa.array([bool(row % 3) for row in every]),
            "list": pa.array([list(range(row % 5)) if row % 11 else None for row in every]),
            "words": pa.array([[f"item{i}" for i in range(row % 3)] for row in every]),
            "long": pa.array([[1.5] * (2000 if row % 1000 == 0 else 1) for row in every]),
            "lists": pa.array([[[row], [row, row]] for row in every]),
            "parts": pa.array([{"a": row, "b": [str(row)]} for row in every]),
            "map": pa.array([[("k", row)] for row in every], pa.map_(pa.string(), pa.int64())),
            "nothing": pa.nulls(rows),
            "fixed": pa.array([bytes([row % 256] * 7) for row in every], pa.binary(7)),
            "coded": pa.array([f"cat{row % 4}" for row in every]).dictionary_encode(),
        }
    )


def made(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def as_pyarrow_has_it(content: bytes) -> pa.Table:
    return pq.ParquetFile(io.BytesIO(content), arrow_extensions_enabled=False).read()


def same(batches: list[pa.RecordBatch], expected: pa.Table) -> bool:
    found = pa.Table.from_batches(batches)
    for index, column in enumerate(expected.columns):
        if pa.types.is_dictionary(column.type):
            plain = column.cast(column.type.value_type)
            expected = expected.set_column(index, expected.schema.names[index], plain)
    return bool(found.combine_chunks().equals(expected.combine_chunks()))


MAKES: list[dict[str, Any]] = [
    {"compression": "none", "row_group_size": 700},
    {"compression": "snappy", "data_page_size": 300},
    {"compression": "snappy", "data_page_size": 300, "data_page_version": "2.0"},
    {"compression": "gzip", "use_dictionary": False, "data_page_size": 1000},
    {"compression": "brotli", "data_page_version": "2.0", "row_group_size": 999},
    {"compression": "lz4", "write_page_checksum": True, "use_dictionary": False},
    {"compression": "zstd", "write_page_index": True, "write_page_checksum": True},
    {
        "compression": "zstd",
        "use_dictionary": False,
        "data_page_size": 400,
        "column_encoding": {
            "text": "DELTA_BYTE_ARRAY",
            "category": "DELTA_LENGTH_BYTE_ARRAY",
            "words.list.element": "DELTA_BYTE_ARRAY",
            "fixed": "DELTA_BYTE_ARRAY",
            "flag": "RLE",
            "long.list.element": "BYTE_STREAM_SPLIT",
        },
    },
]


@pytest.mark.parametrize("limits", [Limits(), SMALL, TINY], ids=["roomy", "small", "tiny"])
@pytest.mark.parametrize("options", MAKES, ids=str)
async def test_every_make_is_read_exactly(tmp_path: Path, options: dict[str, Any], limits: Limits):
    content = await asyncio.to_thread(made, everything(), **options)
    path = await written(tmp_path / "made.parquet", content)

    expected = await asyncio.to_thread(as_pyarrow_has_it, content)
    assert await asyncio.to_thread(same, await read(path, limits), expected)


@pytest.mark.parametrize("columns", [["text"], ["words", "number"], ["lists"], ["nothing"]])
@pytest.mark.parametrize("limits", [Limits(), SMALL], ids=["roomy", "small"])
async def test_only_some_columns(tmp_path: Path, columns: list[str], limits: Limits):
    content = await asyncio.to_thread(made, everything(), data_page_size=500)
    path = await written(tmp_path / "made.parquet", content)
    found = await table_of(path, limits, columns)
    assert sorted(found.column_names) == sorted(columns)
    assert found.to_pylist() == everything().select(found.column_names).to_pylist()


@pytest.mark.parametrize("limits", [Limits(), SMALL, TINY], ids=["roomy", "small", "tiny"])
@pytest.mark.parametrize("skip", [1, 999, 1000, 1001, 2500, 2999, 3000])
async def test_rows_are_skipped(tmp_path: Path, limits: Limits, skip: int):
    table = everything().select(["number", "text", "list"])
    content = await asyncio.to_thread(made, table, row_group_size=1000, data_page_size=400)
    path = await written(tmp_path / "made.parquet", content)
    batches = await read(path, limits, skip=skip)
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert rows == table.slice(skip).to_pylist()


async def test_row_groups_before_the_first_wanted_row_are_not_read(tmp_path: Path):
    table = everything().select(["number", "text"])
    content = await asyncio.to_thread(made, table, row_group_size=1000)
    path = await written(tmp_path / "made.parquet", content)
    async with open_recording(path) as reader:
        footer = await read_footer(reader)
        plan = plan_chunks(footer, ["number", "text"], reader.name, reader.size)
        reader.ranges.clear()
        source = read_batches(
            reader, footer, plan, ["number", "text"], None, Limits(), skip_rows=2000
        )
        assert sum([batch.num_rows async for batch, _ in source]) == 1000
    first = min(offset for offset, _ in reader.ranges)
    assert first >= sum(chunks.bytes for chunks in plan[:2])


async def test_batches_have_at_most_so_many_rows_and_bytes(tmp_path: Path):
    rows = 200_000
    table = pa.table({"n": pa.array(range(rows)), "x": pa.array([0.5] * rows)})
    path = await written(tmp_path / "made.parquet", await asyncio.to_thread(made, table))
    sizes = [batch.num_rows for batch in await read(path)]
    assert sizes == [BATCH_ROWS] * 3 + [rows - 3 * BATCH_ROWS]
    limits = Limits(batch_bytes=100_000)
    batches = await read(path, limits)
    assert sum(batch.num_rows for batch in batches) == rows
    assert max(batch.nbytes for batch in batches) <= 125_000
    assert len(batches) < 70  # and no smaller than they have to be


@pytest.mark.parametrize("encoded", [True, False, {"text": "DELTA_BYTE_ARRAY"}], ids=str)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
async def test_rows_that_differ_in_width_make_batches_that_do_not(
    tmp_path: Path, encoded: Any, version: str
):
    """The wide rows stand together: an average over the row group says nothing of them."""

    def wide_in_the_middle() -> pa.Table:
        texts = ["x" * 10] * 20_000 + ["y" * 20_000] * 400 + ["z"] * 20_000
        lists = [[1]] * 20_000 + [[7] * 2_500] * 400 + [[]] * 20_000
        return pa.table({"text": texts, "list": lists})

    table = await asyncio.to_thread(wide_in_the_middle)
    encoding = encoded if isinstance(encoded, dict) else None
    content = await asyncio.to_thread(
        made,
        table,
        use_dictionary=encoded is True,
        column_encoding=encoding,
        data_page_version=version,
        data_page_size=50_000,
    )
    path = await written(tmp_path / "made.parquet", content)
    for limits in (Limits(batch_bytes=500_000), Limits(1_200_000, 500_000)):
        batches = await read(path, limits)
        assert max(batch.nbytes for batch in batches) <= 625_000
        assert sum(batch.nbytes for batch in batches) > 15_000_000
        assert sum(batch.num_rows for batch in batches) == table.num_rows


async def test_one_row_larger_than_a_batch_comes_alone(tmp_path: Path):
    table = pa.table({"text": ["a", "b" * 100_000, "c"], "n": [1, 2, 3]})
    path = await written(tmp_path / "made.parquet", await asyncio.to_thread(made, table))
    batches = await read(path, Limits(batch_bytes=10_000))
    assert [batch.num_rows for batch in batches] == [1, 1, 1]


# --- how it is read -------------------------------------------------------------------------


class Recording(FileReader):
    """A reader of a file that remembers what was asked of it."""

    ranges: list[tuple[int, int]]

    async def read_ranges(self, ranges: Any) -> dict[int, bytes]:
        self.ranges += list(ranges)
        return await super().read_ranges(ranges)


@asynccontextmanager
async def open_recording(path: Path) -> AsyncIterator[Recording]:
    async with open_file(str(path)) as reader:
        found = Recording(reader.name, reader.size, reader._handle)
        found.ranges = []
        yield found


def noise(rows: int) -> pa.Table:
    """Numbers and texts that do not compress, one column wider than the others."""
    some = random.Random(1)
    columns: dict[str, Any] = {f"x{n}": [some.random() for _ in range(rows)] for n in range(3)}
    columns["text"] = [some.randbytes(20).hex() for _ in range(rows)]
    return pa.table(columns)


async def test_a_large_row_group_is_read_in_pieces_as_they_are_used(tmp_path: Path):
    rows = 60_000
    table = await asyncio.to_thread(noise, rows)
    content = await asyncio.to_thread(
        made, table, row_group_size=rows, data_page_size=20_000, use_dictionary=False
    )
    path = await written(tmp_path / "made.parquet", content)
    limits = Limits(bytes_in_flight=1_000_000, batch_bytes=100_000)
    async with open_recording(path) as reader:
        footer = await read_footer(reader)
        names = footer.schema.names
        plan = plan_chunks(footer, names, reader.name, reader.size)
        total = plan[0].bytes
        assert total > 3 * limits.bytes_in_flight
        reader.ranges.clear()
        told = passed = 0
        async for batch, size in read_batches(reader, footer, plan, names, ContentDigest(), limits):
            passed += batch.num_rows
            told += size
            asked = sum(length for _, length in reader.ranges)
            # What was used is in proportion to the rows: no more than the limit lies ahead of it.
            assert asked - total * passed / rows < limits.bytes_in_flight
            assert told == pytest.approx(total * passed / rows, rel=0.02, abs=2)
    assert told == total == sum(length for _, length in reader.ranges)


async def test_the_next_row_group_is_read_while_one_is_decoded(tmp_path: Path):
    content = await asyncio.to_thread(made, noise(9_000), row_group_size=3_000)
    path = await written(tmp_path / "made.parquet", content)
    async with open_recording(path) as reader:
        footer = await read_footer(reader)
        plan = plan_chunks(footer, ["x1", "text"], reader.name, reader.size)
        source = read_batches(reader, footer, plan, ["x1", "text"], None, Limits())
        await anext(source)
        starts = {offset for offset, _ in reader.ranges}
        assert starts == {offset for chunks in plan[:2] for offset, _ in chunks.ranges}
        await source.aclose()  # type: ignore[attr-defined]


async def test_the_same_bytes_have_the_same_digest_however_they_are_read(tmp_path: Path):
    content = await asyncio.to_thread(made, everything(), row_group_size=1100, data_page_size=600)
    path = await written(tmp_path / "made.parquet", content)
    digests = set()
    for limits in (Limits(), SMALL, TINY, Limits(100_000, 10_000)):
        async with open_file(str(path)) as reader:
            footer = await read_footer(reader)
            plan = plan_chunks(footer, ["text", "list"], reader.name, reader.size)
            digest = ContentDigest()
            async for _ in read_batches(reader, footer, plan, ["text", "list"], digest, limits):
                pass
            digests |= {digest.hexdigest(), await content_digest(reader, plan)}
    assert len(digests) == 1
    changed = bytearray(content)
    changed[plan[1].ranges[0][0] + 90] ^= 1
    path = await written(tmp_path / "changed.parquet", bytes(changed))
    async with open_file(str(path)) as reader:
        assert await content_digest(reader, plan) not in digests


async def test_row_groups_are_let_go_of_at_once(tmp_path: Path):
    """Without a collector of circles: what is done with is not held by anything."""
    numbers = await asyncio.to_thread(pa.array, range(200_000))
    table = pa.table({f"x{n}": numbers for n in range(8)})
    content = await asyncio.to_thread(made, table, row_group_size=10_000)
    path = await written(tmp_path / "made.parquet", content)
    await asyncio.to_thread(gc.collect)
    gc.disable()
    try:
        before, most = pa.total_allocated_bytes(), 0
        async with open_file(str(path)) as reader:
            footer = await read_footer(reader)
            names = footer.schema.names
            plan = plan_chunks(footer, names, reader.name, reader.size)
            async for _ in read_batches(reader, footer, plan, names, None, Limits()):
                most = max(most, pa.total_allocated_bytes() - before)
    finally:
        gc.enable()
    assert most < 5_000_000 < table.nbytes / 2


# --- stopping -------------------------------------------------------------------------------


def our_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("featurestore-parquet")]


async def no_threads() -> bool:
    for _ in range(200):
        if not our_threads():
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.mark.parametrize("limits", [Limits(), Limits(1_000_000, 50_000)], ids=["whole", "pieces"])
async def test_cancelling_at_any_moment_leaves_nothing(tmp_path: Path, limits: Limits):
    content = await asyncio.to_thread(made, noise(40_000), data_page_size=20_000)
    path = await written(tmp_path / "made.parquet", content)
    before = asyncio.all_tasks()
    ended = 0
    for turns in range(60):
        task = asyncio.create_task(read(path, limits))
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.sleep(turns / 2000)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        ended += not task.cancelled()
        assert asyncio.all_tasks() == before
    assert ended < 60
    assert await no_threads()


async def test_a_reader_that_stops_early_leaves_nothing(tmp_path: Path):
    content = await asyncio.to_thread(made, noise(40_000), data_page_size=20_000)
    path = await written(tmp_path / "made.parquet", content)
    before = asyncio.all_tasks()
    async with open_file(str(path)) as reader:
        footer = await read_footer(reader)
        plan = plan_chunks(footer, ["x1", "text"], reader.name, reader.size)
        limits = Limits(500_000, 50_000)
        source = read_batches(reader, footer, plan, ["x1", "text"], None, limits)
        await anext(source)
        await source.aclose()  # type: ignore[attr-defined]
        assert asyncio.all_tasks() == before
    assert await no_threads()


async def test_a_file_that_shrinks_under_way_is_named(tmp_path: Path):
    content = await asyncio.to_thread(made, noise(40_000), data_page_size=20_000)
    path = await written(tmp_path / "made.parquet", content)
    async with open_file(str(path)) as reader:
        footer = await read_footer(reader)
        plan = plan_chunks(footer, ["x1", "text"], reader.name, reader.size)
        await written(path, content[: len(content) // 2])
        with pytest.raises(SourceError, match=r"made\.parquet: the file ends at byte"):
            async for _ in read_batches(
                reader, footer, plan, ["x1", "text"], None, Limits(500_000, 50_000)
            ):
                pass
    assert await no_threads()


# --- edges ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(), SMALL], ids=["roomy", "small"])
async def test_no_rows_at_all(tmp_path: Path, limits: Limits):
    for number, table in enumerate([everything(0), everything(1)]):
        path = await written(tmp_path / f"{number}.parquet", await asyncio.to_thread(made, table))
        assert (await read(path, limits) != []) == bool(number)


async def test_empty_row_groups_between_others(tmp_path: Path):
    def write() -> bytes:
        sink = io.BytesIO()
        table = everything(10).select(["number", "text", "list"])
        with pq.ParquetWriter(sink, table.schema) as writer:
            for part in (table.slice(0, 0), table, table.slice(0, 0), table, table.slice(0, 0)):
                writer.write_table(part)
        return sink.getvalue()

    path = await written(tmp_path / "made.parquet", await asyncio.to_thread(write))
    for limits in (Limits(), SMALL):
        assert (await table_of(path, limits)).num_rows == 20


async def test_two_columns_of_one_name_and_names_with_dots(tmp_path: Path):
    table = pa.table([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "a", "a.b"])
    path = await written(tmp_path / "made.parquet", await asyncio.to_thread(made, table))
    found = await read(path)
    assert [column.to_pylist() for column in found[0].columns] == [[1], [2], [3]]
    assert (await table_of(path, columns=["a.b"])).to_pylist() == [{"a.b": 3}]


async def test_moments_of_old_writers_beyond_nanoseconds(tmp_path: Path):
    """INT96 holds days and nanoseconds: read as nanoseconds the year 9999 would wrap."""
    days, nanos = 5_373_484, 86_399_999_999_999
    body = nanos.to_bytes(8, "little") + days.to_bytes(4, "little")
    path = await written(
        tmp_path / "old.parquet", parquet_file([Column("at", 3, [Page(body, 1)])], 1)
    )
    found = await table_of(path)
    assert str(found.column("at")[0]) == "9999-12-31 23:59:59.999999"
