"""Local sources: which files a path stands for, and what of them is read."""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs
from featurestore.ingest.ranges import FileReader
from featurestore.ingest.sources import SourceFile, resolve_sources

ROWS = 20_000
NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
COLUMNS = ["sensor_id", "event_timestamp", "value"]
TAIL = 64 * 1024  # how much of a file's end is read at first

view = fs.FeatureView(
    "readings",
    entities=[fs.Entity("sensor", join_keys={"sensor_id": fs.Int64})],
    fields=[fs.Field("value", fs.Float64)],
    timestamp_field="event_timestamp",
)


def readings() -> pa.Table:
    """Needed columns with columns between them that nobody needs, and that don't compress."""
    noise = [pa.array(np.random.default_rng(n).random(ROWS)) for n in range(3)]
    return pa.table(
        {
            "sensor_id": pa.array(range(ROWS), pa.int64()),
            "noise_1": noise[0],
            "event_timestamp": pa.array([NOON] * ROWS, pa.timestamp("us", tz="UTC")),
            "noise_2": noise[1],
            "value": pa.array([n / 3 for n in range(ROWS)]),
            "noise_3": noise[2],
        }
    )


@pytest.mark.parametrize("featurestore_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("small", [False, True], ids=["row groups", "pieces"])
async def test_only_the_needed_bytes_are_read(
    feature_store: fs.FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool
):
    read: list[tuple[int, int]] = []
    plain = FileReader.read

    async def recorded(self: FileReader, offset: int, length: int) -> bytes:
        read.append((offset, offset + length))
        return await plain(self, offset, length)

    monkeypatch.setattr(FileReader, "read", recorded)
    path = tmp_path / "x.parquet"
    table = await asyncio.to_thread(readings)
    await asyncio.to_thread(pq.write_table, table, path, row_group_size=ROWS // 2)
    await feature_store.apply(view)
    memory = {"max_bytes_in_flight": 512 * 1024} if small else {}
    assert (await feature_store.ingest(view, path, **memory)).rows_written == ROWS
    stored = await feature_store.repository(view).history()
    assert await asyncio.to_thread(stored.equals, table.select(COLUMNS).cast(stored.schema))

    metadata = await asyncio.to_thread(pq.read_metadata, path)
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    chunks = [group.column(n) for group in groups for n in range(group.num_columns)]
    starts = [(one.dictionary_page_offset or one.data_page_offset, one) for one in chunks]
    needed = [
        (start, start + one.total_compressed_size)
        for start, one in starts
        if one.path_in_schema in COLUMNS
    ]
    size = (await asyncio.to_thread(path.stat)).st_size
    assert read[0] == (size - TAIL, size)
    assert (len(read) > 1 + len(needed)) == small
    assert all(any(a <= start and end <= b for a, b in needed) for start, end in read[1:])
    assert sum(b - a for a, b in needed) == sum(end - start for start, end in read[1:])
    assert sum(end - start for start, end in read) < size * 0.75


async def names(source: str, folder: Path) -> list[str]:
    files = await resolve_sources([source])
    return [Path(file.path).relative_to(folder).as_posix() for file in files]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/1.parquet", "a/deep/2.pq", "b/3.PARQ", "b/readme.txt", "_c/4.parquet"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "b" / "folder.parquet").mkdir()
    (tmp_path / "[x].parquet").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("", ["[x].parquet", "a/1.parquet", "a/deep/2.pq", "b/3.PARQ"]),
        ("a/", ["a/1.parquet", "a/deep/2.pq"]),
        ("[ab]/", ["a/1.parquet", "a/deep/2.pq", "b/3.PARQ"]),
        ("b/*", ["b/3.PARQ", "b/readme.txt"]),
        ("**/deep/", ["a/deep/2.pq"]),
        ("*/*/", ["a/deep/2.pq"]),
        ("**/*.p*", ["[x].parquet", "a/1.parquet", "a/deep/2.pq"]),
        ("[x].parquet", ["[x].parquet"]),
        ("_c", ["_c/4.parquet"]),
        ("_c/*.parquet", ["_c/4.parquet"]),
        ("b/readme.txt", ["b/readme.txt"]),
    ],
)
async def test_which_files_a_path_stands_for(folder: Path, source: str, wanted: Sequence[str]):
    assert await names(f"{folder}/{source}", folder) == wanted


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("c", "no such file or folder"),
        ("b/readme.txt/", "no such file or folder"),
        ("b/folder.parquet", "holds no Parquet file"),
        ("*.pq", "matches no file"),
        ("?", r"matches no file, but folders \(end it with / "),
        ("b/*/", "matches no folder with a Parquet file in it"),
        ("_*/*", "matches no file"),
    ],
)
async def test_what_stands_for_no_file(folder: Path, source: str, message: str):
    with pytest.raises(fs.SourceError, match=message):
        await resolve_sources([f"{folder}/{source}"])


async def test_a_url_that_went_through_pathlib_is_named():
    with pytest.raises(fs.SourceError, match="a URL is given as text"):
        await resolve_sources([str(Path("s3://bucket/x.parquet"))])


async def test_order_is_that_of_the_list(folder: Path):
    given = [f"{folder}/b", "https://host/x.parquet", f"{folder}/a/*.parquet"]
    assert await resolve_sources(given) == [
        SourceFile(f"{folder}/b/3.PARQ"),
        SourceFile("https://host/x.parquet"),
        SourceFile(f"{folder}/a/1.parquet"),
    ]


# Which thread imports pandas, which pyarrow does with the first value that it makes: for a second
# nothing else would run on the loop.
IMPORTER = """
import asyncio, importlib.abc, sys, threading

class Recorder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "pandas":
            print(threading.current_thread() is threading.main_thread())

sys.meta_path.insert(0, Recorder())
import featurestore as fs

view = fs.FeatureView(
    "readings",
    entities=[fs.Entity("sensor", join_keys={"sensor_id": fs.Int64})],
    fields=[fs.Field("value", fs.Float64)],
    timestamp_field="event_timestamp",
)

async def main():
    async with fs.FeatureStore("sqlite:///x.db") as store:
        await store.apply(view)
        await store.ingest(view, "data")

asyncio.run(main())
"""


async def test_folders_values_are_made_off_the_loop(tmp_path: Path):
    folder = tmp_path / "data" / "event_timestamp=2024-01-01"
    await asyncio.to_thread(folder.mkdir, parents=True)
    table = pa.table({"sensor_id": [1], "value": [0.5]})
    await asyncio.to_thread(pq.write_table, table, folder / "x.parquet")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", IMPORTER), cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, printed.split()) == (0, [b"False"])
