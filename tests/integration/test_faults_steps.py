"""A load that commits in steps and breaks off: the ledger says how far it came, and loading the
file again goes on from there, in whatever steps."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from faults import NAME, State, opened, rows_table, state, write_file

import featurestore as fs

both = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)

ROWS, STEP = 4_000, 900


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("files") / "rows.parquet", rows_table(ROWS))


async def undisturbed(url: str, path: Path) -> State:
    """What one load of a file comes to."""
    async with opened(url) as store:
        await store.ingest(NAME, path, on_invalid="quarantine")
        return await state(store)


async def broken_off(store: fs.FeatureStore, path: Path, **options: object) -> fs.Load:
    """Load in steps, and cancel it when two have been committed; the ledger's entry."""
    async with asyncio.TaskGroup() as group:
        loading = group.create_task(store.ingest(NAME, path, commit_every=STEP, **options))
        while sum(load.rows_read for load in await store.loads()) < 2 * STEP:
            assert not loading.done()
            await asyncio.sleep(0)
        loading.cancel()
    (load,) = await store.loads()
    return load


@both
@pytest.mark.parametrize("options", [{"commit_every": STEP}, {"commit_every": 250}, {}])
async def test_it_goes_on_from_where_it_came_to(featurestore_url: str, file: Path, options: dict):
    wanted = await undisturbed(featurestore_url, file)
    async with opened(featurestore_url) as store:
        load = await broken_off(store, file, on_invalid="quarantine")
        assert load.rows_total == ROWS
        assert 2 * STEP <= load.rows_read < ROWS
        assert load.rows_read % STEP == 0
        assert not load.complete
        found = await state(store)
        assert found.history.num_rows == load.rows_written
        assert len(found.rejected) == load.rows_rejected

        report = await store.ingest(NAME, file, on_invalid="quarantine", **options)
        assert report.rows_read == ROWS - load.rows_read
        assert (await state(store)).difference(wanted) == ""
        (whole,) = await store.loads()
        assert (whole.load_id, whole.complete) == (load.load_id, True)
        assert (await store.ingest(NAME, file)).loads[0].skipped


@both
async def test_what_was_committed_can_be_undone(featurestore_url: str, file: Path):
    wanted = await undisturbed(featurestore_url, file)
    async with opened(featurestore_url) as store:
        load = await broken_off(store, file, on_invalid="quarantine")
        await store.undo_load(load.load_id)
        assert (await state(store)).empty
        report = await store.ingest(NAME, file, on_invalid="quarantine", commit_every=STEP)
        assert report.rows_read == ROWS
        assert (await state(store)).difference(wanted) == ""


@both
@pytest.mark.parametrize("options", [{"commit_every": STEP}, {}])
async def test_a_row_that_does_not_fit_takes_all_of_its_file_back(
    featurestore_url: str, file: Path, options: dict
):
    """That of the steps that an earlier call has committed as well."""
    path = await asyncio.to_thread(
        lambda: write_file(file.with_name("bad.parquet"), rows_table(ROWS, bad_every=ROWS))
    )
    async with opened(featurestore_url) as store:
        await broken_off(store, path)
        with pytest.raises(fs.InvalidRowsError):
            await store.ingest(NAME, path, **options)
        assert (await state(store)).empty
