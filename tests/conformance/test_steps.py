"""Long files in steps, many files side by side: the same end as one after the other, at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import Row, driver_stats, hour, parquet, stats

import featurestore as fs

OpenStore = Callable[..., Awaitable[fs.FeatureStore]]

VIEW = driver_stats()
ROWS = [
    stats(number % 7, hour(number % 5), conv_rate=number / 8, trips=number)
    for number in range(1_000)
]


class StopError(Exception):
    """Raised by a progress callback: a load broken off where we want it."""


def stop_at(row: int) -> Callable[[Any], None]:
    def progress(now: Any) -> None:
        if now.rows_done >= row:
            raise StopError

    return progress


async def state(store: fs.FeatureStore) -> Any:
    """What a load leaves: history in its order, and what is online."""
    repository = store.repository("driver_stats")
    history = []
    for driver in range(7):
        table = await repository.history(driver_id=driver)
        history.append(table.select(["event_timestamp", "conv_rate", "trips"]).to_pylist())
    return history, await repository.get_many([{"driver_id": driver} for driver in range(8)])


async def expected(open_store: OpenStore, path: Path, name: str) -> Any:
    """The state after one undisturbed load, in a project of its own."""
    store = await open_store(project=name)
    await store.apply([VIEW])
    await store.ingest(VIEW, path)
    return await state(store)


@pytest.mark.parametrize("group", [1_000, 130])
@pytest.mark.parametrize("every", [1, 250, 999, 1_000, 5_000])
async def test_steps_come_to_the_same_as_one_transaction(
    store: fs.FeatureStore, open_store: OpenStore, tmp_path: Path, every: int, group: int
):
    rows = ROWS if every > 1 else ROWS[:40]
    path = await asyncio.to_thread(parquet, tmp_path, VIEW, rows, group=group)
    await store.apply([VIEW])
    report = await store.ingest(VIEW, path, commit_every=every)
    assert (report.rows_read, report.rows_written) == (len(rows), len(rows))
    assert len(report.loads) == 1
    assert await state(store) == await expected(open_store, path, f"{store.project}_whole")
    [load] = await store.loads()
    assert (load.rows_read, load.rows_total, load.complete) == (len(rows), len(rows), True)
    again = await store.ingest(VIEW, path, commit_every=every)
    assert again.loads[0].skipped
    assert (await store.ingest(VIEW, path)).loads[0].skipped


async def test_what_was_committed_stays_and_loading_goes_on(
    store: fs.FeatureStore, open_store: OpenStore, tmp_path: Path
):
    path = await asyncio.to_thread(parquet, tmp_path, VIEW, ROWS, group=100)
    await store.apply([VIEW])
    with pytest.raises(StopError):
        await store.ingest(VIEW, path, commit_every=150, progress=stop_at(700))
    [broken] = await store.loads()
    assert not broken.complete
    assert 0 < broken.rows_read < 1_000
    assert broken.rows_read % 150 == 0
    assert broken.rows_total == 1_000
    assert await store.repository("driver_stats").count() == broken.rows_read

    report = await store.ingest(VIEW, path, commit_every=90)
    assert report.rows_written == 1_000 - broken.rows_read
    assert report.loads[0].load_id == broken.load_id
    [load] = await store.loads()
    assert load.complete
    assert load.started_at == broken.started_at
    assert await state(store) == await expected(open_store, path, f"{store.project}_whole")
    assert (await store.ingest(VIEW, path)).loads[0].skipped


async def test_a_load_in_steps_can_be_ended_in_one(
    store: fs.FeatureStore, open_store: OpenStore, tmp_path: Path
):
    path = await asyncio.to_thread(parquet, tmp_path, VIEW, ROWS, group=100)
    await store.apply([VIEW])
    with pytest.raises(StopError):
        await store.ingest(VIEW, path, commit_every=100, progress=stop_at(500))
    [broken] = await store.loads()
    report = await store.ingest(VIEW, path)
    assert report.rows_written == 1_000 - broken.rows_read
    assert await state(store) == await expected(open_store, path, f"{store.project}_whole")
    assert [load.complete for load in await store.loads()] == [True]


async def test_what_was_committed_can_be_undone_and_loaded_anew(
    store: fs.FeatureStore, open_store: OpenStore, tmp_path: Path
):
    path = await asyncio.to_thread(parquet, tmp_path, VIEW, ROWS, group=100)
    await store.apply([VIEW])
    with pytest.raises(StopError):
        await store.ingest(VIEW, path, commit_every=100, progress=stop_at(500))
    [broken] = await store.loads()
    undone = await store.undo_load(broken.load_id)
    assert undone.rows_removed == broken.rows_written
    assert await store.repository("driver_stats").count() == 0
    report = await store.ingest(VIEW, path, commit_every=100)
    assert report.rows_written == 1_000
    assert await state(store) == await expected(open_store, path, f"{store.project}_whole")


async def test_two_loaders_in_steps_load_a_file_once(
    store: fs.FeatureStore, open_store: OpenStore, tmp_path: Path
):
    path = await asyncio.to_thread(parquet, tmp_path, VIEW, ROWS, group=100)
    await store.apply([VIEW])
    other = await open_store()
    one, two = await asyncio.gather(
        store.ingest(VIEW, path, commit_every=70), other.ingest(VIEW, path, commit_every=110)
    )
    assert one.rows_written + two.rows_written == 1_000
    assert len([load for load in await store.loads() if load.rows_written]) == 1
    assert await state(store) == await expected(open_store, path, f"{store.project}_whole")


async def test_an_invalid_row_keeps_nothing_of_the_file(store: fs.FeatureStore, tmp_path: Path):
    rows = [*ROWS[:500], stats(None, hour(0)), *ROWS[500:]]
    path = await asyncio.to_thread(parquet, tmp_path, VIEW, rows, group=100)
    await store.apply([VIEW])
    with pytest.raises(fs.InvalidRowsError) as caught:
        await store.ingest(VIEW, path, commit_every=100)
    assert [bad.row for bad in caught.value.rows] == [500]
    assert "500 rows of it committed before were taken back" in str(caught.value.__notes__)
    assert await store.repository("driver_stats").count() == 0
    assert await store.repository("driver_stats").get(driver_id=1) is None
    report = await store.ingest(VIEW, path, commit_every=100, on_invalid="quarantine")
    assert (report.rows_written, report.rows_rejected) == (1_000, 1)
    assert [(bad.row, bad.load_id) for bad in await store.rejected()] == [
        (500, report.loads[0].load_id)
    ]


async def test_steps_are_for_files_outside_of_transactions(store: fs.FeatureStore, tmp_path: Path):
    path = await asyncio.to_thread(parquet, tmp_path, VIEW, ROWS)
    await store.apply([VIEW])
    async with store.transaction() as tx:
        with pytest.raises(fs.DefinitionError, match="commit_every"):
            await tx.ingest(VIEW, path, commit_every=10)
    for wrong in (0, -1, True, 2.5):
        with pytest.raises(fs.DefinitionError, match="commit_every"):
            await store.ingest(VIEW, path, commit_every=wrong)  # type: ignore[arg-type]
    with pytest.raises(fs.DefinitionError, match="files_at_once"):
        await store.ingest(VIEW, path, files_at_once=0)


# --- several files -----------------------------------------------------------------------------


def files(folder: Path, contents: Sequence[Sequence[Row]]) -> list[Path]:
    return [
        parquet(folder, VIEW, rows, f"{index}.parquet", group=50)
        for index, rows in enumerate(contents)
    ]


@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
async def test_files_side_by_side_arrive_in_their_order(
    store: fs.FeatureStore, tmp_path: Path, at_once: int
):
    # All at one time: only the order of arrival tells which row is the newest.
    contents = [
        [stats(number % 9, hour(0), trips=index) for number in range(size)]
        for index, size in enumerate([1_500, 3, 1_200, 1, 5_000, 2, 1_100])
    ]
    paths = await asyncio.to_thread(files, tmp_path, contents)
    await store.apply([VIEW])
    report = await store.ingest(VIEW, paths, files_at_once=at_once)
    assert [load.rows_written for load in report.loads] == [len(rows) for rows in contents]
    numbers = [load.load_id for load in report.loads]
    assert numbers == sorted(numbers)
    found = await store.repository("driver_stats").get_many([{"driver_id": 0}, {"driver_id": 8}])
    assert [row and row["trips"] for row in found] == [6, 6]


async def test_files_before_the_failing_one_stay(store: fs.FeatureStore, tmp_path: Path):
    contents = [[stats(number, hour(0), trips=1) for number in range(3_000)] for _ in range(5)]
    contents[2][1] = stats(None, hour(0))
    contents = [[*rows, stats(10_000 + index, hour(0))] for index, rows in enumerate(contents)]
    paths = await asyncio.to_thread(files, tmp_path, contents)
    await store.apply([VIEW])
    with pytest.raises(fs.InvalidRowsError) as caught:
        await store.ingest(VIEW, paths, files_at_once=3)
    assert "File 3 of 5 failed" in str(caught.value.__notes__)
    assert [Path(load.source).name for load in await store.loads()] == ["0.parquet", "1.parquet"]
    assert await store.repository("driver_stats").count() == 6_002
    assert await store.repository("driver_stats").get(driver_id=10_003) is None


async def test_the_same_file_twice_is_loaded_once(store: fs.FeatureStore, tmp_path: Path):
    [path] = await asyncio.to_thread(files, tmp_path, [ROWS])
    await store.apply([VIEW])
    report = await store.ingest(VIEW, [path, path, path], files_at_once=3)
    assert [load.skipped for load in report.loads] == [False, True, True]
    assert await store.repository("driver_stats").count() == 1_000


async def test_loaders_of_the_same_files_in_opposite_orders(
    store: fs.FeatureStore, open_store: OpenStore, tmp_path: Path
):
    contents = [[stats(number, hour(index)) for number in range(1_500)] for index in range(6)]
    paths = await asyncio.to_thread(files, tmp_path, contents)
    await store.apply([VIEW])
    other = await open_store()
    async with asyncio.timeout(60):
        one, two = await asyncio.gather(
            store.ingest(VIEW, paths, files_at_once=3),
            other.ingest(VIEW, paths[::-1], files_at_once=3),
        )
    assert one.rows_written + two.rows_written == 9_000
    assert await store.repository("driver_stats").count() == 9_000
    assert sum(not load.skipped for load in (*one.loads, *two.loads)) == 6
