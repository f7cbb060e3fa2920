"""A load of more rows than a block of arrivals has is one to marks, replay, copies and undo."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from builders import driver_stats, entity_rows, hour, stats, training

import featurestore as fs
from featurestore.storage.dialect import BLOCK

pytestmark = pytest.mark.slow

OpenStore = Callable[..., Awaitable[fs.FeatureStore]]

VIEW = driver_stats(fields=[fs.Field("trips", fs.Int32)])
ROWS = BLOCK + 10
ASKED = entity_rows(*((driver, hour(1)) for driver in range(4)))


def large() -> pa.Table:
    """Rows of drivers 0 to 2, all of one time, so that the last of each wins."""
    numbers = pa.array(range(ROWS), pa.int64())
    return pa.table(
        {
            "driver_id": pc.subtract(numbers, pc.multiply(pc.divide(numbers, 3), 3)),
            "event_timestamp": pa.repeat(pa.scalar(hour(0), fs.Timestamp.arrow), ROWS),
            "trips": numbers.cast(pa.int32()),
        }
    )


def winners(of_the_fourth: int) -> list[int]:
    return [*sorted(range(ROWS - 3, ROWS), key=lambda number: number % 3), of_the_fourth]


async def known(store: fs.FeatureStore, as_of: Any = None, **options: Any) -> list[Any]:
    rows = await training(store, ASKED, ["driver_stats:trips"], as_of=as_of, **options)
    return [row["trips"] for row in rows]


async def push(store: fs.FeatureStore, driver: int, trips: int) -> None:
    row = stats(driver, hour(0), trips=trips)
    del row["conv_rate"]
    await store.push(VIEW, [row])


async def test_a_load_of_several_blocks_is_whole_to_marks_replay_copies_and_undo(
    store: fs.FeatureStore, tmp_path: Path
):
    await store.apply([VIEW])
    await push(store, 3, 7)
    before = await store.mark()
    first = await store.export_history(VIEW, tmp_path / "copy")
    assert first.rows == 1
    [loaded] = (await store.ingest(VIEW, await asyncio.to_thread(large))).loads

    # Its last rows are of a later block than its number.
    mark, wanted = await store.mark(), winners(7)
    assert mark.arrival >= (loaded.load_id + 1) * BLOCK
    made = await store.get_historical_features(ASKED, ["driver_stats:trips"])
    for engine in ("sql", "duckdb"):
        assert await known(store, str(mark), engine=engine) == wanted
        again = await store.replay(made.manifest, engine=engine)
        assert again.to_arrow().equals(made.to_arrow())
    with pytest.raises(fs.DefinitionError, match="ahead of this store"):
        await known(store, replace(mark, arrival=mark.arrival + 1))
    finished = (await store.loads(VIEW))[-1].finished_at
    assert finished is not None

    second = await store.export_history(VIEW, tmp_path / "copy")
    assert (second.rows_added, second.rows) == (ROWS, ROWS + 1)
    await push(store, 0, -1)
    for as_of in (mark, finished):
        assert await known(store, as_of) == wanted

    assert (await store.undo_load(loaded.load_id)).rows_removed == ROWS
    assert await known(store) == [-1, None, None, 7]
    assert await known(store, before) == [None, None, None, 7]
    lost = await store.get_historical_features(ASKED, ["driver_stats:trips"], as_of=mark)
    assert lost.to_arrow()["trips"].to_pylist() == [None, None, None, 7]
    assert f"undoing load {loaded.load_id} has since taken {ROWS:,} rows" in lost.warnings[0]
    with pytest.raises(fs.NotFoundError, match=f"{ROWS:,} rows of load {loaded.load_id} "):
        await store.replay(made.manifest)
    third = await store.export_history(VIEW, tmp_path / "copy")
    assert (third.rows_added, third.rows_removed, third.rows) == (1, ROWS, 2)


async def test_a_load_of_several_blocks_in_flight_is_not_there_for_a_mark(
    store: fs.FeatureStore, open_store: OpenStore, tmp_path: Path
):
    await store.apply([VIEW])
    await push(store, 3, 7)  # which makes the index: others wait for that
    other = await open_store()
    several = store.engine.dialect.name != "sqlite"  # SQLite has one writer
    async with store.transaction() as tx:
        await tx.ingest(VIEW, await asyncio.to_thread(large))
        if several:
            await push(other, 3, 8)
        mark, then = await other.mark(), [None, None, None, 8 if several else 7]
        assert await known(other, mark) == then
        if several:
            await other.export_history(VIEW, tmp_path / "copy")
    assert await known(other) == winners(then[-1])
    for engine in ("sql", "duckdb"):
        assert await known(other, mark, engine=engine) == then
    after = await other.mark()
    assert await known(other, after) == winners(then[-1])
    report = await other.export_history(VIEW, tmp_path / "copy")
    assert report.rows == ROWS + 1 + several
    assert report.rows_added == (ROWS if several else ROWS + 1)
