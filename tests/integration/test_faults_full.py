"""Disks that are full: a small one of the database's own, and the limits that both have."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from faults import (
    NAME,
    VIEW,
    Complaints,
    SmallDisk,
    State,
    new_project,
    opened,
    rows_table,
    state,
)
from faults import write_file as write
from server import RestartableServer
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

import featurestore as fs
from featurestore.storage.address import resolve_url


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "rows.parquet"
    return write(path, rows_table(60_000, bad_every=20_000))


async def undisturbed(path: Path, folder: Path) -> State:
    """What one load of the file comes to."""
    async with opened(f"sqlite:///{folder / 'undisturbed.db'}") as store:
        await store.ingest(NAME, path, on_invalid="quarantine")
        return await state(store)


async def is_full(store: fs.FeatureStore, path: Path) -> None:
    """Check that a file does not fit, and leaves nothing."""
    for _ in range(2):
        with pytest.raises(fs.StoreUnavailableError, match=r"room|full") as caught:
            await store.ingest(NAME, path, on_invalid="quarantine")
        assert caught.value.__cause__ is not None
        assert "\n" not in str(caught.value)
        assert (await state(store)).empty


async def fits(store: fs.FeatureStore, path: Path, wanted: State) -> None:
    """Check that the file can be loaded now."""
    await store.ingest(NAME, path, on_invalid="quarantine")
    assert (await state(store)).difference(wanted) == ""


async def run(connection: Any, statement: str) -> None:
    await connection.execute(sa.text(statement))


async def test_a_full_disk_of_sqlite(small_disk: SmallDisk, file: Path, tmp_path: Path):
    wanted = await undisturbed(file, tmp_path)
    with Complaints():
        async with opened(f"sqlite:///{small_disk.folder / 'small.db'}") as store:
            await is_full(store, file)
            await asyncio.to_thread(small_disk.grow)
            await fits(store, file, wanted)


@pytest.fixture
def server(small_disk: SmallDisk) -> Iterator[RestartableServer]:
    """A server with a place for a tablespace on the small disk, and room for the rest."""
    with RestartableServer() as server:
        space = small_disk.folder / "tablespace"
        space.mkdir(mode=0o700)
        owner = server.data.stat()
        os.chown(space, owner.st_uid, owner.st_gid)
        server.create_database("full")
        yield server
    shutil.rmtree(space)


async def test_a_full_disk_of_postgresql(
    server: RestartableServer, small_disk: SmallDisk, file: Path, tmp_path: Path
):
    wanted = await undisturbed(file, tmp_path)
    with Complaints():
        async with opened(server.url("full"), project := new_project()) as store:
            await store.apply([VIEW])
            async with store.engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                place = small_disk.folder / "tablespace"
                await run(connection, f"CREATE TABLESPACE small LOCATION '{place}'")
                for part in ("history", "online"):
                    name = f"{project}__{NAME}__{part}"
                    await run(connection, f"ALTER TABLE {name} SET TABLESPACE small")
            await is_full(store, file)
            await asyncio.to_thread(small_disk.grow)
            await fits(store, file, wanted)


# --- limits that anybody may set --------------------------------------------------------------


async def test_a_limit_of_pages_in_sqlite(file: Path, tmp_path: Path):
    wanted = await undisturbed(file, tmp_path)
    pages = 500
    engine = create_async_engine(
        resolve_url(f"sqlite:///{tmp_path / 'limited.db'}"),
        poolclass=AsyncAdaptedQueuePool,
        pool_size=2,
        max_overflow=0,
    )

    @sa.event.listens_for(engine.sync_engine, "connect")
    def limit(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count = {pages}")
        cursor.close()

    try:
        with Complaints():
            async with fs.FeatureStore(engine=engine, project=new_project()) as store:
                await store.apply([VIEW])
                await is_full(store, file)
                pages = 1_000_000
                await engine.dispose()
                await fits(store, file, wanted)
    finally:
        await engine.dispose()


@pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)
async def test_a_limit_of_temporary_files_in_postgresql(
    featurestore_url: str, file: Path, tmp_path: Path
):
    """Sorting the rows of the file for their index takes more than it may."""
    wanted = await undisturbed(file, tmp_path)
    name = featurestore_url.rpartition("/")[2]

    async def set_to(store: fs.FeatureStore, limit: str) -> None:
        async with store.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await run(connection, f"ALTER DATABASE {name} SET maintenance_work_mem = '1MB'")
            await run(connection, f"ALTER DATABASE {name} SET max_parallel_maintenance_workers = 0")
            await run(connection, f"ALTER DATABASE {name} SET temp_file_limit = '{limit}'")

    with Complaints():
        async with opened(featurestore_url, project := new_project()) as store:
            await store.apply([VIEW])
            await set_to(store, "64kB")
        async with opened(featurestore_url, project) as store:
            await is_full(store, file)
            await set_to(store, "1GB")
        async with opened(featurestore_url, project) as store:
            await fits(store, file, wanted)
