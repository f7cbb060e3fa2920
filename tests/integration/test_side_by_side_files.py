"""Files side by side where the first is slow: nothing waits for what waits for it."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from sqlalchemy.ext.asyncio import create_async_engine

import featurestore as fs

pytestmark = pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)

VIEW = fs.FeatureView(
    "readings",
    entities=[fs.Entity("sensor", join_keys={"sensor_id": fs.Int64})],
    fields=[fs.Field("value", fs.Int64)],
    timestamp_field="at",
)
START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


def write(path: Path, sensors: list[int | None], value: int) -> Path:
    table = pa.table(
        {
            "sensor_id": pa.array(sensors, pa.int64()),
            "at": [START] * len(sensors),
            "value": [value] * len(sensors),
        }
    )
    pq.write_table(table, path)
    return path


@asynccontextmanager
async def slow_server(folder: Path, seconds: float) -> AsyncIterator[str]:
    """Serves a folder, and takes so long for each answer."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return web.FileResponse(folder / request.match_info["name"])

    application = web.Application()
    application.router.add_get("/{name}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def test_a_materialize_beside_them(featurestore_url: str, tmp_path: Path):
    for number in (1, 2):
        await asyncio.to_thread(write, tmp_path / f"{number}.parquet", [number], number)
    async with (
        slow_server(tmp_path, 0.5) as address,
        fs.FeatureStore(featurestore_url) as store,
        asyncio.timeout(30),
    ):
        await store.apply(VIEW)
        await store.push(VIEW, [{"sensor_id": 9, "at": START, "value": 9}])
        files = [f"{address}/1.parquet", str(tmp_path / "2.parquet")]
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(store.ingest(VIEW, files))
            await asyncio.sleep(0.3)
            group.create_task(store.materialize())
        assert loading.result().rows_written == 2


async def test_a_pool_of_one(featurestore_url: str, tmp_path: Path):
    for number in (1, 2):
        await asyncio.to_thread(write, tmp_path / f"{number}.parquet", [number], number)
    url = featurestore_url.replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=1)
    try:
        async with (
            slow_server(tmp_path, 0.6) as address,
            fs.FeatureStore(engine=engine) as store,
        ):
            await store.apply(VIEW)
            files = [f"{address}/1.parquet", str(tmp_path / "2.parquet")]
            report = await store.ingest(VIEW, files)
        assert report.rows_written == 2
    finally:
        await engine.dispose()


@pytest.mark.parametrize("bad", [0, 2])
async def test_a_skipped_file_does_not_let_later_ones_pass(
    featurestore_url: str, tmp_path: Path, bad: int
):
    sensors: list[list[int | None]] = [[*range(60_000)], [1], [2, 3]]
    sensors[bad].append(None)
    paths = [
        await asyncio.to_thread(write, tmp_path / f"{number}.parquet", rows, number)
        for number, rows in enumerate(sensors)
    ]
    async with fs.FeatureStore(featurestore_url) as store:
        await store.apply(VIEW)
        await store.ingest(VIEW, paths[1])
        with pytest.raises(fs.InvalidRowsError):
            await store.ingest(VIEW, paths, files_at_once=3)
        loaded = [Path(load.source).name for load in await store.loads()]
    assert loaded == (["1.parquet"] if bad == 0 else ["1.parquet", "0.parquet"])
