"""Parquet files, whole and damaged: each loads exactly or gives one named error."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs

ROWS = 2_000
NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)

view = fs.FeatureView(
    "readings",
    entities=[fs.Entity("sensor", join_keys={"sensor_id": fs.Int64})],
    fields=[fs.Field("value", fs.Float64), fs.Field("label", fs.String)],
    timestamp_field="event_timestamp",
)

pytestmark = pytest.mark.parametrize("featurestore_url", ["sqlite"], indirect=True)


def readings(rows: int = ROWS) -> pa.Table:
    return pa.table(
        {
            "sensor_id": pa.array(range(rows), pa.int64()),
            "event_timestamp": pa.array([NOON] * rows, pa.timestamp("us", tz="UTC")),
            "value": pa.array([n / 3 for n in range(rows)]),
            "a.b": pa.array([{"c": n} for n in range(rows)]),
            "label": pa.array([f"label {n % 7}" for n in range(rows)]).dictionary_encode(),
            "unused": pa.array([[n, None] for n in range(rows)]),
        }
    )


async def write(path: Path, table: pa.Table, **options: object) -> Path:
    await asyncio.to_thread(pq.write_table, table, path, **options)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"row_group_size": 300},
        {"row_group_size": 300, "compression": "zstd", "write_page_index": True},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
        {"write_page_checksum": True, "row_group_size": 999},
        {"compression": "gzip", "data_page_size": 100},
    ],
    ids=str,
)
async def test_files_of_every_make_load_exactly(
    feature_store: fs.FeatureStore, tmp_path: Path, options: dict[str, object]
):
    await feature_store.apply(view)
    table = readings()
    path = await write(tmp_path / "made.parquet", table, **options)
    report = await feature_store.ingest(view, path)
    assert (report.rows_read, report.rows_written) == (ROWS, ROWS)
    stored = await feature_store.repository(view).history()
    wanted = table.select(["sensor_id", "event_timestamp", "value", "label"])
    assert stored.to_pylist() == wanted.to_pylist()


async def test_a_file_without_rows_is_no_error(feature_store: fs.FeatureStore, tmp_path: Path):
    await feature_store.apply(view)
    path = await write(tmp_path / "empty.parquet", readings(0))
    report = await feature_store.ingest(view, path)
    assert report.rows_written == 0
    assert [load.source for load in report.loads] == [str(path)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"PAR1", "4 bytes"),
        (b"a,b,c\n1,2,3\n" * 50, "no Parquet file"),
        (b"PAR1" + b"\0" * 500, "cut off"),
        (b"PAR1" + b"\xff" * 500 + b"\xff\xff\xff\x7fPAR1", "damaged"),
        (b"PAR1" + b"\xff" * 500 + b"\x40\x00\x00\x00PAR1", "damaged"),
        (b"PARE" + b"\0" * 500 + b"PARE", "encrypted"),
    ],
)
async def test_what_is_no_parquet_file_is_named(
    feature_store: fs.FeatureStore, tmp_path: Path, content: bytes, message: str
):
    await feature_store.apply(view)
    path = tmp_path / "strange.parquet"
    await asyncio.to_thread(path.write_bytes, content)
    with pytest.raises(fs.SourceError, match=message) as caught:
        await feature_store.ingest(view, path)
    assert "strange.parquet" in str(caught.value)
    assert await feature_store.loads() == []


async def test_a_file_cut_anywhere_leaves_nothing(feature_store: fs.FeatureStore, tmp_path: Path):
    await feature_store.apply(view)
    whole = await write(tmp_path / "whole.parquet", readings(), row_group_size=500)
    content = await asyncio.to_thread(whole.read_bytes)
    path = tmp_path / "cut.parquet"
    for length in random.Random(1).sample(range(len(content)), 25):
        await asyncio.to_thread(path.write_bytes, content[:length])
        with pytest.raises(fs.SourceError, match=r"cut\.parquet"):
            await feature_store.ingest(view, path)
    assert await feature_store.repository(view).count() == 0
    assert await feature_store.loads() == []


async def test_flipped_bytes_are_found_by_page_checksums(
    feature_store: fs.FeatureStore, tmp_path: Path
):
    await feature_store.apply(view)
    whole = await write(
        tmp_path / "whole.parquet",
        readings(),
        row_group_size=500,
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    content = await asyncio.to_thread(whole.read_bytes)
    middle = content.index(b"label 3")  # inside a data page
    damaged = content[:middle] + b"LABEL" + content[middle + 5 :]
    path = tmp_path / "damaged.parquet"
    await asyncio.to_thread(path.write_bytes, damaged)
    with pytest.raises(fs.SourceError, match=r"damaged\.parquet"):
        await feature_store.ingest(view, path)
    assert await feature_store.repository(view).count() == 0


async def test_a_load_reports_how_far_it_is(feature_store: fs.FeatureStore, tmp_path: Path):
    await feature_store.apply(view)
    path = await write(tmp_path / "made.parquet", readings(), row_group_size=500)
    told: list[fs.Progress] = []
    report = await feature_store.ingest(view, path, progress=told.append)
    phases = ["starting", "reading", "finishing", "done"]
    assert list(dict.fromkeys(one.phase for one in told)) == phases
    order = [phases.index(one.phase) for one in told]
    assert order == sorted(order)
    for done in ([one.rows_done for one in told], [one.bytes_done for one in told]):
        assert done[0] == 0
        assert done == sorted(done)
    assert [one.finished for one in told] == [False] * (len(told) - 1) + [True]
    last = told[-1]
    assert (last.rows_done, last.rows_total, last.rows_kept) == (ROWS, ROWS, 0)
    assert last.bytes_done == last.bytes_total
    assert (last.files_done, last.files_total, last.file_number) == (1, 1, 1)
    assert last.load_id == report.loads[0].load_id
    again: list[fs.Progress] = []
    await feature_store.ingest(view, path, progress=again.append)
    assert [(one.phase, one.rows_done) for one in again] == [("starting", 0), ("done", 0)]


async def test_the_loop_stays_free_while_a_file_is_loaded(
    feature_store: fs.FeatureStore, tmp_path: Path
):
    """The guard around every test fails where a callback takes 0.1 s; this one counts turns."""
    await feature_store.apply(view)
    table = await asyncio.to_thread(readings, 100_000)
    path = await write(tmp_path / "large.parquet", table, row_group_size=20_000)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    watcher = asyncio.create_task(turn())
    await feature_store.ingest(view, path)
    watcher.cancel()
    assert turns > 1_000
