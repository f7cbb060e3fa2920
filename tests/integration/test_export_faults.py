"""Exports that are killed, cancelled or fail, or meet another: the copy is as it was, or done."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cancelling import How, by_scope, by_task, by_task_twice, cancelled_at, waits_of

import featurestore as fs
from featurestore.export import run as export_run
from featurestore.export import writer
from featurestore.export.copy import read_copy
from featurestore.export.lock import locked
from featurestore.storage.tables import ARRIVAL

VIEW = fs.FeatureView(
    "driver_stats",
    entities=[fs.Entity("driver", join_keys={"driver_id": fs.Int64})],
    fields=[fs.Field("trips", fs.Int64)],
    timestamp_field="event_timestamp",
)


def rows(count: int, first: int = 0) -> pa.Table:
    numbers = pa.arange(first, first + count)
    return pa.table(
        {
            "driver_id": numbers,
            "event_timestamp": numbers.cast(pa.timestamp("s", "UTC")),
            "trips": numbers,
        }
    )


def read(folder: Path) -> tuple[list[int], str]:
    """The arrivals that a copy has, and the mark it is at; its files are whole."""
    copy = read_copy(folder)
    if copy is None or copy.mark is None:
        return [], ""
    arrivals: list[int] = []
    for file in copy.files:
        table = pq.read_table(folder / file.path, partitioning=None)
        assert table.num_rows == file.rows
        arrivals += table.column(ARRIVAL).to_pylist()
    assert len(set(arrivals)) == len(arrivals)
    return sorted(arrivals), str(copy.mark)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("part-*")}


@pytest.fixture
async def store(featurestore_url: str) -> AsyncIterator[fs.FeatureStore]:
    async with fs.FeatureStore(featurestore_url) as store:
        await store.apply([VIEW])
        await store.push(VIEW, rows(300))
        yield store


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come in many fetches, and fill row groups and files."""
    monkeypatch.setattr(export_run, "STREAM_ROWS", 40)
    monkeypatch.setattr(writer, "GROUP_ROWS", 20)
    monkeypatch.setattr(writer, "FILE_ROWS", 60)


@pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("how", [by_task, by_task_twice, by_scope], ids=lambda how: how.__name__)
async def test_cancelled_at_any_point_a_copy_is_as_it_was_or_done(
    store: fs.FeatureStore, tmp_path: Path, how: How, small_steps: None
):
    folder = tmp_path / "copy"
    await store.export_history(VIEW, folder, buckets=3)
    await store.push(VIEW, rows(150, first=300))
    await store.repository(VIEW).delete(driver_id=7)
    waits = await waits_of(store.export_history(VIEW, tmp_path / "other", buckets=3))
    reached = 0
    for wait in range(1, waits + 1, 1 if how is by_task else 5):
        was, mark = await asyncio.to_thread(read, folder)
        reached += await cancelled_at(wait, how, store.export_history(VIEW, folder))
        now, later = await asyncio.to_thread(read, folder)
        if later == mark:
            assert now == was
        else:
            assert (len(now), 7 in now) == (449, False)
        if len(now) == 449:  # done: there must be something to do again
            await store.push(VIEW, rows(1, first=1_000 + wait))
            await store.undo_load((await store.loads(VIEW, limit=1))[0].load_id)
    assert reached > 3
    report = await store.export_history(VIEW, folder)
    done, _ = await asyncio.to_thread(read, folder)
    assert report.rows == len(done) == await store.repository(VIEW).count()
    copy = await asyncio.to_thread(read_copy, folder)
    assert copy is not None
    assert await asyncio.to_thread(names, folder) == {file.path for file in copy.files}


async def test_a_first_export_that_is_cancelled_lets_go_of_the_folder_when_it_writes_no_more(
    store: fs.FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written = asyncio.Event()
    loop = asyncio.get_running_loop()
    real = export_run.write_copy

    def slow(copy: Any) -> None:
        loop.call_soon_threadsafe(written.set)
        time.sleep(0.3)
        real(copy)

    monkeypatch.setattr(export_run, "write_copy", slow)
    task = asyncio.create_task(store.export_history(VIEW, tmp_path / "copy"))
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(read_copy, tmp_path / "copy") is not None


PROGRAM = """
import asyncio, os, signal, sys
import featurestore as fs
from featurestore.export import copy, run, writer

url, folder, where = sys.argv[1:]

def kill(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "while rows come":
    run.STREAM_ROWS = 40
    writer.GROUP_ROWS = 20
    real = writer._OpenFile.write
    def write(self, rows):
        real(self, rows)
        write.calls += 1
        if write.calls == 5:
            kill()
    write.calls = 0
    writer._OpenFile.write = write
elif where == "before the state":
    copy.write_copy = kill
elif where == "within the state":
    copy.Path.replace = kill
elif where == "before the old files go":
    copy.Path.unlink = kill
elif where == "before the registry":
    run._register = kill

async def main():
    async with fs.FeatureStore(url) as store:
        await store.export_history("driver_stats", folder)

asyncio.run(main())
"""
POINTS = {
    "while rows come": False,
    "before the state": False,
    "within the state": False,
    "before the old files go": True,
    "before the registry": True,
}


@pytest.mark.slow
@pytest.mark.parametrize("where", POINTS)
async def test_killed_a_copy_is_as_it_was_or_done_and_the_next_export_cleans_up(
    store: fs.FeatureStore, featurestore_url: str, tmp_path: Path, where: str
):
    folder = tmp_path / "copy"
    await store.export_history(VIEW, folder, buckets=3)
    was = await asyncio.to_thread(read, folder)
    await store.push(VIEW, rows(150, first=300))
    await store.repository(VIEW).delete(driver_id=7)

    def killed() -> int:
        command = [sys.executable, "-c", PROGRAM, featurestore_url, str(folder), where]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode

    assert await asyncio.to_thread(killed) == -signal.SIGKILL
    now = await asyncio.to_thread(read, folder)
    if POINTS[where]:
        assert len(now[0]) == 449
    else:
        assert now == was
    report = await store.export_history(VIEW, folder)
    assert report.rows == 449
    copy = await asyncio.to_thread(read_copy, folder)
    assert copy is not None
    assert await asyncio.to_thread(names, folder) == {file.path for file in copy.files}


async def test_a_first_export_that_was_killed_leaves_nothing_that_counts(
    store: fs.FeatureStore, featurestore_url: str, tmp_path: Path
):
    def killed() -> int:
        where = "while rows come"
        command = [sys.executable, "-c", PROGRAM, featurestore_url, str(tmp_path), where]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode

    assert await asyncio.to_thread(killed) == -signal.SIGKILL
    assert await asyncio.to_thread(names, tmp_path)
    assert (await asyncio.to_thread(read, tmp_path)) == ([], "")
    report = await store.export_history(VIEW, tmp_path)
    assert (report.rows, report.remade) == (300, False)
    copy = await asyncio.to_thread(read_copy, tmp_path)
    assert copy is not None
    assert await asyncio.to_thread(names, tmp_path) == {file.path for file in copy.files}


async def test_of_two_exports_at_once_one_is_refused(store: fs.FeatureStore, tmp_path: Path):
    ended = await asyncio.gather(
        *(store.export_history(VIEW, tmp_path) for _ in range(3)), return_exceptions=True
    )
    reports = [one for one in ended if isinstance(one, fs.ExportReport)]
    refused = [one for one in ended if not isinstance(one, fs.ExportReport)]
    assert reports
    assert all(isinstance(one, fs.SourceError) for one in refused)
    assert all("is under way" in str(one) for one in refused)

    def hold() -> Any:
        holding = locked(tmp_path)
        holding.__enter__()
        return holding

    holding = await asyncio.to_thread(hold)
    with pytest.raises(fs.SourceError, match="is under way"):
        await store.export_history(VIEW, tmp_path)
    await asyncio.to_thread(holding.__exit__, None, None, None)
    assert (await store.export_history(VIEW, tmp_path)).rows == 300


def full(real: Callable[..., Any]) -> Callable[..., Any]:
    """Writes until the disk is full."""
    calls = 0

    def write(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(28, os.strerror(28))
        return real(*args)

    return write


async def test_a_full_disk_is_told_and_the_copy_is_as_it_was(
    store: fs.FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_steps: None
):
    await store.export_history(VIEW, tmp_path, buckets=3)
    was, files = await asyncio.to_thread(read, tmp_path), await asyncio.to_thread(names, tmp_path)
    await store.push(VIEW, rows(150, first=300))
    with monkeypatch.context() as patch:
        patch.setattr(writer._OpenFile, "write", full(writer._OpenFile.write))
        with pytest.raises(fs.SourceError, match="No space left"):
            await store.export_history(VIEW, tmp_path)
    assert await asyncio.to_thread(read, tmp_path) == was
    assert await asyncio.to_thread(names, tmp_path) == files
    assert (await store.export_history(VIEW, tmp_path)).rows == 450
