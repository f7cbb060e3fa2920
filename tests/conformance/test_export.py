"""A copy of history in Parquet has what history has, each row once, at every mark."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from builders import calendar, driver_stats, hour, parquet, scanned, small_blocks, stats, write
from cases import kinds, next_example
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import KEY_KINDS, TTL, Batch, Delete, Undo, batches, grid_times, keys_of

import featurestore as fs
from featurestore.export import run as export_run
from featurestore.export.buckets import bucket_of
from featurestore.export.copy import Copy, read_copy
from featurestore.selection import resolve
from featurestore.storage.tables import ARRIVAL, CREATED, EVENT
from featurestore.training.cluster import find_copies, mark_of

OpenStore = Callable[..., Awaitable[fs.FeatureStore]]

KINDS = kinds(TTL)
VIEW = driver_stats()


async def state_of(folder: Path) -> Copy:
    copy = await asyncio.to_thread(read_copy, folder)
    assert copy is not None
    return copy


def read_files(copy: Copy) -> pa.Table:
    """All rows of a copy, each of whose files is what its state says."""
    tables = []
    for file in copy.files:
        table = pq.read_table(copy.folder / file.path, partitioning=None)
        assert table.schema.equals(copy.schema), file.path
        assert table.num_rows == file.rows
        arrivals = table.column(ARRIVAL).to_pylist()
        assert (min(arrivals), max(arrivals)) == (file.first_arrival, file.last_arrival)
        if copy.keys:
            columns = [table.column(key) for key in copy.keys]
            buckets = bucket_of(columns, list(copy.keys.values()), copy.buckets)
            assert set(buckets.to_pylist()) == {file.bucket}
        tables.append(table)
    stray = set(copy.folder.rglob("*.parquet"))
    assert stray == {copy.folder / file.path for file in copy.files}
    return pa.concat_tables([copy.schema.empty_table(), *tables])


def sorted_rows(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(repr(sorted(row.items())) for row in rows)


async def check(store: Any, view: fs.FeatureView, folder: Path) -> pa.Table:
    """The copy has the rows of history, each once."""
    copy = await state_of(folder)
    table = await asyncio.to_thread(read_files, copy)
    arrivals = table.column(ARRIVAL).to_pylist()
    assert len(set(arrivals)) == len(arrivals)
    names = {EVENT: view.timestamp_field, CREATED: view.created_timestamp_field}
    shown = [name for name in table.column_names if name != ARRIVAL and names.get(name, name)]
    mine = table.select(shown).rename_columns([names.get(name, name) for name in shown])
    found = await scanned(store.repository(view.name))
    assert sorted_rows(mine.to_pylist()) == sorted_rows(found)
    return table


# --- whatever happens -------------------------------------------------------------------------


@dataclass(frozen=True)
class Export:
    """Bring one of two copies up to date."""

    folder: int


@st.composite
def export_cases(draw: st.DrawFn) -> tuple[str, list[Any]]:
    kind = draw(st.sampled_from(KEY_KINDS))
    batch = batches(kind, grid_times)
    step = st.one_of(
        batch,
        batch,
        st.builds(Undo, st.integers(0, 5)),
        st.builds(Delete, keys_of(kind)),
        st.builds(Export, st.integers(0, 1)),
    )
    return kind, draw(st.lists(step, max_size=8))


@pytest.fixture
async def kinds_store(store: fs.FeatureStore) -> fs.FeatureStore:
    await store.apply([kind.view for kind in KINDS.values()])
    return store


@settings(max_examples=25)
@given(case=export_cases())
async def test_a_copy_has_what_history_has_after_any_writes_undos_and_erasures(
    kinds_store: fs.FeatureStore, tmp_path: Path, case: tuple[str, list[Any]]
):
    # The copies and the views are those of all examples: they grow in ever smaller steps.
    kind, example = KINDS[case[0], False], next_example()
    loads: list[int] = []
    for step in [*case[1], Export(0), Export(1)]:
        if isinstance(step, Batch):
            rows = [kind.row(example, draft) for draft in step.rows]
            loads.append(await write(kinds_store, kind.view, rows, step.way, tmp_path))
        elif isinstance(step, Undo) and loads:
            await kinds_store.undo_load(loads.pop(step.choice % len(loads)))
        elif isinstance(step, Delete):
            repository = kinds_store.repository(kind.view)
            await repository.delete(**kind.key_row(example, step.keys))
        elif isinstance(step, Export):
            folder = tmp_path / f"{case[0]}-{step.folder}"
            before = await asyncio.to_thread(read_copy, folder)
            report = await kinds_store.export_history(kind.view, folder, buckets=3)
            table = await check(kinds_store, kind.view, folder)
            rows_before = 0 if before is None else before.rows
            assert report.rows == table.num_rows
            assert report.rows == rows_before + report.rows_added - report.rows_removed
            assert not report.remade


async def test_writers_side_by_side_and_exports_between_them(
    store: fs.FeatureStore, open_store: OpenStore, tmp_path: Path
):
    await store.apply([VIEW])
    stores = [store, *[await open_store() for _ in range(3)]]
    writing = True
    chance = random.Random(7)

    async def keep_writing(one: fs.FeatureStore, first: int) -> None:
        for number in range(first, first + 25):
            rows = [stats(number * 100 + n, hour(n), trips=n) for n in range(chance.randint(1, 9))]
            pushed = await one.push(VIEW, rows)
            if number % 6 == 0:
                await one.undo_load(pushed.load_id)
            if number % 7 == 0:
                await one.repository(VIEW).delete(driver_id=number * 100)

    async def keep_exporting() -> int:
        exports = 0
        while writing:
            await store.export_history(VIEW, tmp_path / "copy")
            exports += 1
        return exports

    exporting = asyncio.create_task(keep_exporting())
    await asyncio.gather(*(keep_writing(one, 1_000 * n) for n, one in enumerate(stores)))
    writing = False
    assert await exporting > 2
    await store.export_history(VIEW, tmp_path / "copy")
    await check(store, VIEW, tmp_path / "copy")


async def test_a_transaction_that_was_in_flight_at_the_mark_comes_with_the_next(
    store: fs.FeatureStore, open_store: OpenStore, tmp_path: Path
):
    if store.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer, and the export is one at its end")
    await store.apply([VIEW])
    await store.push(VIEW, [stats(0, hour(0))])  # which makes the index: others wait for that
    other = await open_store()

    class Undone(Exception):
        pass

    async def roll_back() -> None:
        async with store.transaction() as tx:
            await tx.push(VIEW, [stats(3, hour(0))])
            raise Undone

    async with store.transaction() as tx:
        await tx.push(VIEW, [stats(1, hour(0)), stats(1, hour(1))])
        with pytest.raises(Undone):
            await roll_back()
        await other.push(VIEW, [stats(2, hour(0))])
        report = await other.export_history(VIEW, tmp_path)
        assert report.rows_added == 2
    report = await store.export_history(VIEW, tmp_path)
    assert (report.rows_added, report.rows) == (2, 4)
    await check(store, VIEW, tmp_path)
    assert (await store.export_history(VIEW, tmp_path)).rows_added == 0


async def test_an_export_tells_how_far_it_is(store: fs.FeatureStore, tmp_path: Path):
    """Rows that come in, and those of files that are written anew; of none, that too."""
    told: list[fs.ExportProgress] = []
    await store.apply([VIEW])
    rows = [stats(n % 50, hour(n // 50), trips=n) for n in range(20_000)]
    await store.ingest(VIEW, pa.Table.from_pylist(rows))

    async def export() -> fs.ExportReport:
        told.clear()
        return await store.export_history(VIEW, tmp_path, buckets=1, progress=told.append)

    await export()
    assert {(one.view, one.total) for one in told} == {("driver_stats", 20_000)}
    counts = [one.rows for one in told]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2
    assert (counts[0], counts[-1]) == (0, 20_000)
    assert [one.finishing for one in told] == [*[False] * (len(told) - 1), True]

    await store.repository(VIEW).delete(driver_id=7)
    await store.push(VIEW, [stats(8, hour(1))])
    report = await export()
    assert (report.rows_removed, report.rows_added) == (400, 1)
    assert [(one.rows, one.total) for one in told] == [
        *((0, 19_601), (19_600, 19_601), (19_601, 19_601), (19_601, 19_601)),
    ]
    await export()
    assert [(one.rows, one.total, one.finishing) for one in told] == [(0, 0, False), (0, 0, True)]


async def test_an_export_that_its_progress_ends_leaves_the_copy_as_it_was(
    store: fs.FeatureStore, tmp_path: Path
):
    class StopError(Exception):
        pass

    def stop(now: fs.ExportProgress) -> None:
        if now.rows:
            raise StopError

    await store.apply([VIEW])
    await store.push(VIEW, [stats(1, hour(0))])
    await store.export_history(VIEW, tmp_path)
    before = await state_of(tmp_path)
    await store.push(VIEW, [stats(1, hour(1))])
    with pytest.raises(StopError):
        await store.export_history(VIEW, tmp_path, progress=stop)
    assert await state_of(tmp_path) == before
    await store.export_history(VIEW, tmp_path)
    await check(store, VIEW, tmp_path)


@pytest.mark.parametrize("block_bits", [20, 5])
async def test_a_load_in_steps_comes_in_steps(
    store: fs.FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bits: int
):
    small_blocks(monkeypatch, block_bits)

    class StopError(Exception):
        pass

    def stop(now: fs.Progress) -> None:
        if now.rows_done >= 400:
            raise StopError

    await store.apply([VIEW])
    rows = [stats(n % 7, hour(n % 5), trips=n) for n in range(1_000)]
    path = await asyncio.to_thread(parquet, tmp_path, VIEW, rows, group=100)
    with pytest.raises(StopError):
        await store.ingest(VIEW, path, commit_every=150, progress=stop)
    await store.push(VIEW, [stats(8, hour(0))])
    first = await store.export_history(VIEW, tmp_path / "copy")
    assert 1 < first.rows < 1_001
    await store.ingest(VIEW, path, commit_every=150)
    second = await store.export_history(VIEW, tmp_path / "copy")
    assert (second.rows_added, second.rows) == (1_001 - first.rows, 1_001)
    await check(store, VIEW, tmp_path / "copy")
    [load, _] = await store.loads(VIEW)
    await store.undo_load(load.load_id)
    third = await store.export_history(VIEW, tmp_path / "copy")
    assert (third.rows_removed, third.rows) == (1_000, 1)
    await store.ingest(VIEW, path)
    await store.export_history(VIEW, tmp_path / "copy")
    await check(store, VIEW, tmp_path / "copy")


# --- what a copy is good for ------------------------------------------------------------------


async def read_at(store: fs.FeatureStore, as_of: fs.Mark | None) -> fs.Mark:
    """The mark at which a training set is read from the copy of the view."""
    async with store._context.reading([VIEW.name]) as (session, catalog):
        request = resolve([VIEW], catalog, full_feature_names=False)
        return await mark_of(session, request, await find_copies(session, request), as_of)


async def test_a_copy_made_while_a_load_was_in_flight_is_too_old_for_marks_that_have_it(
    store: fs.FeatureStore, open_store: OpenStore, tmp_path: Path
):
    if store.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer: what is in flight has the later number")
    await store.apply([VIEW])
    await store.push(VIEW, [stats(0, hour(0))])
    other = await open_store()
    async with store.transaction() as tx:
        await tx.push(VIEW, [stats(1, hour(0))])
        await other.push(VIEW, [stats(2, hour(0))])
        exported = await other.export_history(VIEW, tmp_path)
        meanwhile = await other.mark()
        assert await read_at(other, meanwhile) == meanwhile
    later = await store.mark()
    assert later.arrival == fs.Mark.parse(exported.mark).arrival
    with pytest.raises(fs.DefinitionError, match=r"older than what is asked for.*export_history"):
        await read_at(store, later)
    assert await read_at(store, None) == fs.Mark.parse(exported.mark)
    assert await read_at(store, meanwhile) == meanwhile
    await store.export_history(VIEW, tmp_path)
    assert await read_at(store, later) == later


async def test_a_copy_made_between_steps_of_a_load_is_too_old_for_marks_that_have_the_rest(
    store: fs.FeatureStore, tmp_path: Path
):
    class StopError(Exception):
        pass

    def stop(now: fs.Progress) -> None:
        if now.rows_done >= 20:
            raise StopError

    await store.apply([VIEW])
    rows = [stats(1, hour(0), trips=number) for number in range(40)]
    path = await asyncio.to_thread(parquet, tmp_path, VIEW, rows)
    with pytest.raises(StopError):
        await store.ingest(VIEW, path, commit_every=10, progress=stop)
    await store.push(VIEW, [stats(2, hour(0))])
    exported = await store.export_history(VIEW, tmp_path / "copy")
    between = await store.mark()
    await store.ingest(VIEW, path, commit_every=10)
    later = await store.mark()
    assert later.arrival == fs.Mark.parse(exported.mark).arrival
    with pytest.raises(fs.DefinitionError, match=r"older than what is asked for.*export_history"):
        await read_at(store, later)
    assert await read_at(store, between) == between
    assert await read_at(store, None) == fs.Mark.parse(exported.mark)
    await store.export_history(VIEW, tmp_path / "copy")
    assert await read_at(store, later) == later


# --- what is in the folder --------------------------------------------------------------------


async def test_every_type_and_a_global_view(store: fs.FeatureStore, tmp_path: Path):
    key_types = {"b": fs.Bool, "i": fs.Int32, "s": fs.String, "y": fs.Bytes, "d": fs.Date}
    keys = {**key_types, "t": fs.Timestamp, "n": fs.Decimal(30, 3)}
    kinds_ = [fs.Float32, fs.Json, fs.Array(fs.String), fs.Decimal(12, 2), fs.Date, fs.Bytes]
    wide = fs.FeatureView(
        "wide",
        entities=[fs.Entity("all_kinds", join_keys=keys)],
        fields=[fs.Field(f"f{n}", kind) for n, kind in enumerate(kinds_)],
        timestamp_field="at",
    )
    await store.apply([wide, calendar()])
    from decimal import Decimal

    for n in range(40):
        row: dict[str, Any] = {
            **{"b": n % 2 == 0, "i": n, "s": "é" * n, "y": b"\0" * n, "d": dt.date(9999, 12, 31)},
            **{"t": hour(n), "n": Decimal(n) / 8 - 2, "at": hour(n)},
        }
        features = [0.1, {"a": [n, None]}, ["x", None], Decimal("1.50"), dt.date(1, 1, 1), b"\xff"]
        row |= {f"f{i}": value if n % 3 else None for i, value in enumerate(features)}
        await store.push(wide, [row])
    await store.push("calendar", [{"event_timestamp": hour(n), "holiday": None} for n in range(9)])
    await store.export_history(wide, tmp_path / "wide")
    table = await check(store, wide, tmp_path / "wide")
    assert len({file.bucket for file in (await state_of(tmp_path / "wide")).files}) > 8

    def by_arrow() -> pa.Table:
        return ds.dataset(tmp_path / "wide", partitioning="hive").to_table()

    plain = await asyncio.to_thread(by_arrow)
    assert plain.num_rows == 40
    assert plain.column_names == [*table.column_names, "key__bucket"]
    await store.export_history("calendar", tmp_path / "calendar")
    await check(store, calendar(), tmp_path / "calendar")
    assert (await state_of(tmp_path / "calendar")).buckets == 1


async def test_an_empty_view_and_an_export_of_nothing_new(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([VIEW])
    report = await store.export_history(VIEW, tmp_path)
    assert (report.rows, report.files_written) == (0, 0)
    await store.push(VIEW, [stats(1, hour(0))])
    await store.export_history(VIEW, tmp_path)
    report = await store.export_history(VIEW, tmp_path)
    assert (report.rows_added, report.files_written, report.files_rewritten) == (0, 0, 0)
    assert "driver_stats: 0 rows added, 0 removed" in str(report)
    await check(store, VIEW, tmp_path)


async def test_row_groups_are_in_the_order_of_keys_and_times(
    store: fs.FeatureStore, tmp_path: Path
):
    await store.apply([VIEW])
    rows = [stats(n * 7 % 13, hour(n * 5 % 11), trips=n) for n in range(500)]
    await store.push(VIEW, rows)
    await store.export_history(VIEW, tmp_path, buckets=1)
    [path] = (await state_of(tmp_path)).of_bucket(0)
    table = await asyncio.to_thread(pq.read_table, path, partitioning=None)
    found = [(row["driver_id"], row[EVENT], row[ARRIVAL]) for row in table.to_pylist()]
    assert found == sorted(found)


async def test_small_files_are_made_one(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([VIEW])
    for number in range(40):
        await store.push(VIEW, [stats(number, hour(0))])
        await store.export_history(VIEW, tmp_path, buckets=1)
        assert len((await state_of(tmp_path)).files) <= 16
    await check(store, VIEW, tmp_path)


async def test_only_files_with_rows_that_were_erased_are_written_anew(
    store: fs.FeatureStore, tmp_path: Path
):
    await store.apply([VIEW])
    for trips in range(3):
        await store.push(VIEW, [stats(n, hour(0), trips=trips) for n in range(50)])
        await store.export_history(VIEW, tmp_path)
    before = {file.path for file in (await state_of(tmp_path)).files}
    await store.repository(VIEW).delete(driver_id=7)
    report = await store.export_history(VIEW, tmp_path)
    after = {file.path for file in (await state_of(tmp_path)).files}
    assert report.rows_removed == report.files_rewritten == 3
    assert len(before - after) == 3
    table = await check(store, VIEW, tmp_path)
    assert 7 not in table.column("driver_id").to_pylist()


@pytest.mark.parametrize("change", ["added", "widened", "dropped and added again"])
async def test_a_view_of_other_columns_makes_all_of_the_copy_anew(
    store: fs.FeatureStore, tmp_path: Path, change: str
):
    await store.apply([VIEW])
    await store.push(VIEW, [stats(n, hour(0), trips=n) for n in range(20)])
    await store.export_history(VIEW, tmp_path)
    rate, _ = VIEW.fields
    if change == "added":
        view = driver_stats(fields=[*VIEW.fields, fs.Field("city", fs.String)])
    elif change == "widened":
        view = driver_stats(fields=[rate, fs.Field("trips", fs.Int64)])
    else:
        view = VIEW
        await store.apply([driver_stats(fields=[rate])], allow={"drop"})
    await store.apply([view])
    report = await store.export_history(view, tmp_path)
    assert (report.remade, report.rows_added, report.rows_removed) == (True, 20, 20)
    assert "all of it anew" in str(report)
    await check(store, view, tmp_path)
    assert not (await store.export_history(view, tmp_path)).remade


# --- what a folder may not be -----------------------------------------------------------------


async def test_a_folder_of_anything_else_is_refused(
    store: fs.FeatureStore, open_store: OpenStore, tmp_path: Path
):
    other = driver_stats("other")
    await store.apply([VIEW, other])
    await store.push(VIEW, [stats(1, hour(0))])
    await asyncio.to_thread((tmp_path / "notes.txt").write_text, "mine")
    with pytest.raises(fs.SourceError, match=r"notes\.txt"):
        await store.export_history(VIEW, tmp_path)
    await store.export_history(VIEW, tmp_path / "copy")
    with pytest.raises(fs.SourceError, match="a copy of view 'driver_stats'"):
        await store.export_history(other, tmp_path / "copy")
    elsewhere = await open_store(project=f"{store.project}_2")
    await elsewhere.apply([VIEW])
    with pytest.raises(fs.SourceError, match="of project"):
        await elsewhere.export_history(VIEW, tmp_path / "copy")
    with pytest.raises(fs.SourceError, match="cannot be"):
        await store.export_history(VIEW, tmp_path / "notes.txt")
    with pytest.raises(fs.NotFoundError):
        await store.export_history("nothing", tmp_path / "nothing")
    for wrong in ("s3://bucket/copy", ""):
        with pytest.raises(fs.DefinitionError, match="folder of a file system"):
            await store.export_history(VIEW, wrong)
    for buckets in (0, 513, True, "8"):
        with pytest.raises(fs.DefinitionError, match="buckets"):
            await store.export_history(VIEW, tmp_path / "new", buckets=buckets)
    with pytest.raises(fs.DefinitionError, match="was made with 16"):
        await store.export_history(VIEW, tmp_path / "copy", buckets=8)
    # What is refused is not begun.
    assert sorted(await asyncio.to_thread(os.listdir, tmp_path)) == ["copy", "notes.txt"]


async def test_a_copy_from_another_database_is_refused(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([VIEW])
    await store.push(VIEW, [stats(1, hour(0))])
    await store.export_history(VIEW, tmp_path)
    async with fs.FeatureStore(f"sqlite:///{tmp_path}.db", project=store.project) as another:
        await another.apply([VIEW])
        await another.push(VIEW, [stats(1, hour(0))])
        with pytest.raises(fs.SourceError, match="another database"):
            await another.export_history(VIEW, tmp_path)


async def test_a_damaged_copy_is_told(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([VIEW])
    await store.push(VIEW, [stats(n, hour(0)) for n in range(3)])
    await store.export_history(VIEW, tmp_path, buckets=1)
    [path] = (await state_of(tmp_path)).of_bucket(0)
    await asyncio.to_thread(Path(path).write_bytes, b"PAR1 no more")
    await store.repository(VIEW).delete(driver_id=1)
    with pytest.raises(fs.SourceError, match="export anew"):
        await store.export_history(VIEW, tmp_path)
    await asyncio.to_thread(Path(path).unlink)
    with pytest.raises(fs.SourceError, match="has lost files"):
        await store.export_history(VIEW, tmp_path)
    for text in ("{", '{"format": 2}', "[]"):
        await asyncio.to_thread((tmp_path / "_export.json").write_text, text)
        with pytest.raises(fs.SourceError, match="not the state of a copy"):
            await store.export_history(VIEW, tmp_path)


async def test_the_registry_knows_where_copies_are(store: fs.FeatureStore, tmp_path: Path):
    await store.apply([VIEW])
    for name in ("a", "b", "a"):
        report = await store.export_history(VIEW, tmp_path / name)
        assert json.loads(json.dumps(report.mark)) == str((await state_of(tmp_path / name)).mark)
    async with store._context.reading(["driver_stats"]) as (session, catalog):
        found = await export_run.registered_copies(session, catalog.view("driver_stats"))
    assert found == [tmp_path / "a", tmp_path / "b"]
