"""Loads: what is loaded once, in which order, what fails whole, and what can be undone."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from builders import (
    Cases,
    ago,
    driver_stats,
    entity_rows,
    hour,
    online_column,
    parquet,
    read_bytes,
    report,
    stats,
    table_of,
    training,
    weather,
    write_bytes,
    write_parquet,
)

import featurestore as fs


@pytest.fixture
async def drivers(store: fs.FeatureStore) -> fs.FeatureRepository:
    await store.apply([driver_stats(), weather()])
    return store.repository("driver_stats")


def names(loaded: fs.IngestReport) -> list[str]:
    return [Path(load.source).name for load in loaded.loads]


def file(folder: Path, name: str, trips: int, rows: int = 1) -> Path:
    """A file of ``rows`` drivers that all have ``trips``, at one time."""
    data = [stats(number, hour(0), trips=trips) for number in range(rows)]
    return parquet(folder, driver_stats(), data, name, group=100)


# --- where rows come from ---------------------------------------------------------------------


async def test_a_path_may_be_text_or_a_path(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    loaded = await store.ingest("driver_stats", str(file(tmp_path, "a.parquet", 1, rows=3)))
    assert (loaded.rows_read, loaded.rows_written, loaded.rows_rejected) == (3, 3, 0)
    await store.ingest("driver_stats", file(tmp_path, "b.parquet", 2))
    assert await drivers.count() == 4


async def test_a_view_may_be_given_itself(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    await store.ingest(driver_stats(), file(tmp_path, "a.parquet", 1))
    await store.push(driver_stats(), [stats(1, hour(0))])
    assert await store.repository(driver_stats()).count() == 2
    assert len(await store.loads(driver_stats())) == 2


async def test_folders_and_globs_load_in_path_order_past_hidden_names(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    for trips, name in enumerate(["c.parquet", "a.parquet", "b.parquet", "a2.parquet"]):
        file(tmp_path / "data", name, trips)
    for hidden in ("_a.parquet", ".b.parquet"):
        file(tmp_path / "data", hidden, 99)
    wanted = ["a.parquet", "a2.parquet", "b.parquet", "c.parquet"]
    folder = await store.ingest("driver_stats", tmp_path / "data")
    assert names(folder) == wanted
    glob = await store.ingest("driver_stats", str(tmp_path / "data" / "*.parquet"), force=True)
    assert names(glob) == wanted
    assert await online_column(store, "driver_stats:trips", [{"driver_id": 0}]) == [0]  # c's
    assert await drivers.count() == 8


async def test_a_list_keeps_its_order(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    files = [file(tmp_path, f"{name}.parquet", trips) for trips, name in enumerate("cab")]
    assert names(await store.ingest("driver_stats", files)) == [
        "c.parquet",
        "a.parquet",
        "b.parquet",
    ]
    assert await online_column(store, "driver_stats:trips", [{"driver_id": 0}]) == [2]


async def test_a_glob_picks_by_its_pattern(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    for trips, name in enumerate(["day=1.parquet", "day=2.parquet", "week=1.parquet"]):
        file(tmp_path, name, trips)
    loaded = await store.ingest("driver_stats", str(tmp_path / "day=?.parquet"))
    assert names(loaded) == ["day=1.parquet", "day=2.parquet"]


async def test_a_file_with_an_odd_name_is_a_file(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    odd = ["[1].parquet", "a*b.parquet", "ü ß.parquet", "50%.parquet", "no_extension"]
    with Cases() as cases:
        for trips, name in enumerate(odd):
            with cases.case(name):
                path = file(tmp_path, name, trips)
                assert names(await store.ingest("driver_stats", path)) == [name]
    assert await drivers.count() == len(odd)


async def test_many_files_at_once(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    for number in range(15):
        file(tmp_path, f"{number:02}.parquet", number, rows=2)
    loaded = await store.ingest("driver_stats", tmp_path)
    assert names(loaded) == [f"{number:02}.parquet" for number in range(15)]
    assert loaded.rows_written == await drivers.count() == 30
    assert await online_column(store, "driver_stats:trips", [{"driver_id": 1}]) == [14]


# --- input that is not what it should be ------------------------------------------------------


async def test_input_that_cannot_be_read_is_named(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    whole = read_bytes(file(tmp_path, "whole.parquet", 1, rows=50))
    inputs = {
        "missing.parquet": None,
        "gl*b.parquet": None,
        "text.parquet": b"driver_id,trips\n1,2\n" * 10,
        "cut.parquet": whole[: len(whole) // 2],
        "headless.parquet": whole[-len(whole) // 2 :],
        "empty.parquet": b"",
    }
    with Cases() as cases:
        for name, content in inputs.items():
            if content is not None:
                write_bytes(tmp_path / name, content)
            for on_invalid in ("raise", "quarantine"):
                with (
                    cases.case(name, on_invalid),
                    pytest.raises(fs.SourceError, match=re.escape(name)),
                ):
                    await store.ingest("driver_stats", tmp_path / name, on_invalid=on_invalid)
    assert await drivers.count() == 0
    assert await store.loads() == []


async def test_a_file_damaged_in_the_middle_leaves_nothing(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    data = table_of(driver_stats(), [stats(n, hour(0), trips=n) for n in range(5000)])
    path = write_parquet(
        tmp_path / "damaged.parquet", data, row_group_size=1000, compression="snappy"
    )
    content = bytearray(read_bytes(path))
    middle = len(content) // 2
    content[middle : middle + 4000] = b"\xff" * 4000
    write_bytes(path, bytes(content))
    with pytest.raises(fs.SourceError, match=r"damaged\.parquet"):
        await store.ingest("driver_stats", path)
    assert await drivers.count() == 0
    assert await store.loads() == []
    assert await drivers.get(driver_id=1) is None


async def test_of_several_files_those_before_the_failing_one_stay(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    good = [
        file(tmp_path, name, driver, rows=2)
        for driver, name in ((1, "a.parquet"), (11, "b.parquet"))
    ]
    bad = parquet(tmp_path, driver_stats(), [stats(None, hour(0))], "bad.parquet")
    after = file(tmp_path, "z.parquet", 2, rows=3)
    with pytest.raises(fs.InvalidRowsError, match=r"bad\.parquet"):
        await store.ingest("driver_stats", [*good, bad, after])
    assert await drivers.count() == 4
    assert [Path(load.source).name for load in await store.loads()] == ["a.parquet", "b.parquet"]

    with pytest.raises(fs.SourceError, match=r"nowhere\.parquet"):
        await store.ingest("driver_stats", [after, tmp_path / "nowhere.parquet"], force=True)
    assert await drivers.count() in (4, 7)  # a missing file may be noticed before the first load

    rest = await store.ingest("driver_stats", [*good, after])
    assert [load.skipped for load in rest.loads][:2] == [True, True]
    assert await drivers.count() == 7


# --- once -------------------------------------------------------------------------------------


async def test_the_same_content_is_skipped_whatever_its_name(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    first = file(tmp_path, "a.parquet", 1, rows=3)
    write_bytes(tmp_path / "b.parquet", read_bytes(first))
    (loaded,) = (await store.ingest("driver_stats", first)).loads
    for path in (first, tmp_path / "b.parquet"):
        again = await store.ingest("driver_stats", path)
        (skipped,) = again.loads
        assert skipped.skipped
        assert skipped.load_id == loaded.load_id
        assert again.rows_written == 0
    assert not loaded.skipped
    assert await drivers.count() == 3
    assert len(await store.loads()) == 1


async def test_two_files_of_the_same_content_in_one_list(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    path = file(tmp_path, "a.parquet", 1)
    other = file(tmp_path, "b.parquet", 1)
    loaded = await store.ingest("driver_stats", [path, other, path])
    assert [load.skipped for load in loaded.loads] == [False, True, True]
    assert await drivers.count() == 1


async def test_the_same_file_loaded_by_two_at_the_same_time_is_loaded_once(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, open_store, tmp_path: Path
):
    other = await open_store()
    path = file(tmp_path, "a.parquet", 1, rows=500)
    reports = await asyncio.gather(
        *(one.ingest("driver_stats", path) for one in (store, other, store, other))
    )
    assert sorted(load.skipped for one in reports for load in one.loads) == [
        False,
        True,
        True,
        True,
    ]
    assert await drivers.count() == 500


async def test_force_loads_it_again(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    path = file(tmp_path, "a.parquet", 1)
    await store.ingest("driver_stats", path)
    assert not (await store.ingest("driver_stats", path, force=True)).loads[0].skipped
    assert await drivers.count() == 2
    assert (await store.ingest("driver_stats", path)).loads[0].skipped


async def test_other_data_behind_the_same_footer_is_loaded(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    plain = {"write_statistics": False, "use_dictionary": False, "compression": "none"}
    for trips in (1, 2):
        data = table_of(driver_stats(), [stats(n, hour(0), trips=trips) for n in range(100)])
        path = write_parquet(tmp_path / f"{trips}.parquet", data, **plain)
        assert not (await store.ingest("driver_stats", path)).loads[0].skipped
    assert await drivers.count() == 200


async def test_a_file_that_changed_under_its_name_is_loaded(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    for trips in (1, 2):
        path = file(tmp_path, "a.parquet", trips)
        assert not (await store.ingest("driver_stats", path)).loads[0].skipped
    assert await online_column(store, "driver_stats:trips", [{"driver_id": 0}]) == [2]


async def test_another_view_loads_the_same_file(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    path = file(tmp_path, "a.parquet", 1)
    await store.apply([driver_stats("stats_too")])
    await store.ingest("driver_stats", path)
    assert not (await store.ingest("stats_too", path)).loads[0].skipped


async def test_a_failed_load_is_not_remembered(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    rows = [stats(1, hour(0)), stats(None, hour(0))]
    path = parquet(tmp_path, driver_stats(), rows)
    with pytest.raises(fs.InvalidRowsError):
        await store.ingest("driver_stats", path)
    loaded = await store.ingest("driver_stats", path, on_invalid="quarantine")
    assert not loaded.loads[0].skipped
    assert await drivers.count() == 1


async def test_arrow_objects_and_pushes_are_never_skipped(
    store: fs.FeatureStore, drivers: fs.FeatureRepository
):
    table = table_of(driver_stats(), [stats(1, hour(0))])
    for _ in range(2):
        assert not (await store.ingest("driver_stats", table)).loads[0].skipped
        await store.push("driver_stats", table)
        await store.push("driver_stats", [stats(1, hour(0))])
    assert await drivers.count() == 6


# --- the ledger -------------------------------------------------------------------------------


async def test_the_ledger_lists_loads_oldest_first(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    path = file(tmp_path, "a.parquet", 1, rows=2)
    ids = [
        (await store.ingest("driver_stats", path)).loads[0].load_id,
        (await store.push("weather", [report("jfk", hour(0), 1.0)])).load_id,
        (await store.push("driver_stats", [stats(1, ago(days=-3))])).load_id,
    ]
    loads = await store.loads()
    assert [load.load_id for load in loads] == ids
    assert [load.view for load in loads] == ["driver_stats", "weather", "driver_stats"]
    assert [load.rows_written for load in loads] == [2, 1, 1]
    assert [load.rows_future for load in loads] == [0, 0, 1]
    assert [load.undone_at for load in loads] == [None] * 3
    assert "a.parquet" in loads[0].source
    assert [load.load_id for load in await store.loads("weather")] == [ids[1]]
    ranges = [(load.first_arrival, load.last_arrival) for load in loads]
    assert [last - first + 1 for first, last in ranges] == [2, 1, 1]
    assert ranges == sorted(ranges)
    assert all(load.started_at <= load.finished_at for load in loads)


# --- undo -------------------------------------------------------------------------------------


async def test_undo_takes_one_load_back_out(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    await store.push("driver_stats", [stats(0, hour(-1), trips=10)])
    path = file(tmp_path, "a.parquet", 20, rows=3)
    load_id = (await store.ingest("driver_stats", path)).loads[0].load_id
    await store.push("driver_stats", [stats(1, hour(-1), trips=30), stats(2, hour(9), trips=40)])

    undone = await store.undo_load(load_id)
    assert undone == fs.UndoReport(load_id, "driver_stats", 3, keys_changed=2, keys_removed=0)
    keys = [{"driver_id": number} for number in range(3)]
    assert await online_column(store, "driver_stats:trips", keys) == [10, 30, 40]
    found = await training(store, entity_rows(*[(n, hour(1)) for n in range(3)]), [driver_stats()])
    assert [row["trips"] for row in found] == [10, 30, None]
    assert await drivers.count() == 3
    (entry,) = [load for load in await store.loads() if load.load_id == load_id]
    assert entry.undone_at is not None

    again = await store.ingest("driver_stats", path)  # the file is forgotten
    assert not again.loads[0].skipped
    assert await online_column(store, "driver_stats:trips", keys) == [20, 20, 40]


async def test_undoing_the_only_load_of_a_key_leaves_nothing_online(
    store: fs.FeatureStore, drivers: fs.FeatureRepository
):
    load_id = (await store.push("driver_stats", [stats(1, hour(0))])).load_id
    undone = await store.undo_load(load_id)
    assert (undone.keys_changed, undone.keys_removed) == (0, 1)
    answer = await store.get_online_features(["driver_stats:trips"], [{"driver_id": 1}])
    assert answer.statuses == [{"trips": fs.Status.NOT_FOUND}]
    assert await drivers.count() == 0


async def test_undo_uncovers_ties(store: fs.FeatureStore, drivers: fs.FeatureRepository):
    ids = [
        (await store.push("driver_stats", [stats(1, hour(0), trips=n)])).load_id for n in range(3)
    ]
    for load_id, left in ((ids[2], 1), (ids[0], 1), (ids[1], None)):
        await store.undo_load(load_id)
        row = await drivers.get(driver_id=1)
        assert (row and row["trips"]) == left


async def test_an_unknown_load_is_not_found(store: fs.FeatureStore, drivers: fs.FeatureRepository):
    with pytest.raises(fs.NotFoundError, match="12345"):
        await store.undo_load(12345)


@pytest.mark.parametrize("number", [0, -1, 2**63, 2**80])
async def test_a_number_that_no_load_has(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, number: int
):
    with pytest.raises(fs.NotFoundError, match=str(number)):
        await store.undo_load(number)
    assert await store.loads(load_id=number) == []
    assert await store.rejected(number) == []


@pytest.mark.parametrize("number", ["1", 1.0, True, b"1", [1]])
async def test_what_is_no_number_of_a_load(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, number: Any
):
    await store.push("driver_stats", [stats(1, hour(0))])
    for call in (store.undo_load(number), store.rejected(number), store.loads(load_id=number)):
        with pytest.raises(fs.DefinitionError, match="loads have whole numbers"):
            await call
    with pytest.raises(fs.DefinitionError, match="loads have whole numbers"):
        await store.undo_load(None)  # type: ignore[arg-type]


async def test_the_latest_loads_and_one(store: fs.FeatureStore, drivers: fs.FeatureRepository):
    pushes = [await store.push("driver_stats", [stats(n, hour(0))]) for n in range(4)]
    ids = [push.load_id for push in pushes]
    for limit, found in ((None, ids), (0, []), (1, ids[-1:]), (3, ids[-3:]), (9, ids)):
        assert [load.load_id for load in await store.loads(limit=limit)] == found
    [one] = await store.loads(load_id=ids[1])
    assert (one.load_id, one.rows_written) == (ids[1], 1)
    assert await store.loads("driver_stats", load_id=ids[1]) == [one]
    for limit in (-1, 1.0, "1", True):
        with pytest.raises(fs.DefinitionError, match="limit="):
            await store.loads(limit=limit)  # type: ignore[arg-type]


async def test_rejected_rows_page_by_page(
    store: fs.FeatureStore, drivers: fs.FeatureRepository, tmp_path: Path
):
    rows = [stats(None, hour(0)) if n % 3 else stats(n, hour(0)) for n in range(20)]
    path = parquet(tmp_path, driver_stats(), rows)
    loaded = await store.ingest("driver_stats", path, on_invalid="quarantine")
    load_id = loaded.loads[0].load_id
    expected = [n for n in range(20) if n % 3]
    assert [row.row for row in await store.rejected(load_id)] == expected
    assert [row.row for row in await store.rejected(limit=4)] == expected[-4:]
    found: list[int] = []
    while page := await store.rejected(load_id, limit=5, after_row=found[-1] if found else -1):
        found += [row.row for row in page]
    assert found == expected
    with pytest.raises(fs.DefinitionError, match="after_row=-2"):
        await store.rejected(load_id, after_row=-2)


async def test_undo_of_a_view_without_online(store: fs.FeatureStore):
    await store.apply([driver_stats(online=False)])
    first = await store.push("driver_stats", [stats(1, hour(0))])
    await store.push("driver_stats", [stats(1, hour(1))])
    assert (await store.undo_load(first.load_id)).rows_removed == 1
    assert await store.repository("driver_stats").count() == 1


async def test_pushes_committed_together_are_undone_apart(
    store: fs.FeatureStore, drivers: fs.FeatureRepository
):
    pushes = await asyncio.gather(
        *(store.push("driver_stats", [stats(n, hour(0), trips=n)]) for n in range(20))
    )
    assert len({push.load_id for push in pushes}) == 20
    await store.undo_load(pushes[7].load_id)
    left = await drivers.get_many([{"driver_id": n} for n in range(20)])
    assert [row and row["trips"] for row in left] == [n if n != 7 else None for n in range(20)]


class Table:
    """A source whose length is not to be trusted."""

    def __init__(self, table: Any, length: Any) -> None:
        self.table = table
        self.length = length

    def __len__(self) -> int:
        if isinstance(self.length, Exception):
            raise self.length
        return int(self.length)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("length", [0, 1, 10**18, TypeError("unsized")], ids=repr)
async def test_the_length_of_a_stream_is_not_asked_for(
    drivers: fs.FeatureRepository, store: fs.FeatureStore, length: Any
):
    rows = [stats(number, hour(0), trips=number) for number in range(1_500)]
    source = Table(table_of(driver_stats(), rows), length)
    report = await store.ingest("driver_stats", source)
    assert report.rows_written == 1_500
    assert await online_column(store, "driver_stats:trips", [{"driver_id": 1_499}]) == [1_499]
