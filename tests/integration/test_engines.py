"""Engines and URLs: which are taken, how they come back, and what a database's absence says."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

import featurestore as fs
from featurestore.storage.address import resolve_url
from featurestore.storage.postgresql_wire import statement_options
from featurestore.testing import allow_blocking

view = fs.FeatureView(
    "driver_stats",
    entities=[fs.Entity("driver", join_keys={"driver_id": fs.Int64})],
    fields=[fs.Field("trips", fs.Int32)],
    timestamp_field="event_timestamp",
)
ROW = {"driver_id": 1, "event_timestamp": dt.datetime(2024, 1, 1, tzinfo=dt.UTC), "trips": 3}


def borrowed(url: str, size: int = 1) -> AsyncEngine:
    return create_async_engine(
        resolve_url(url), poolclass=AsyncAdaptedQueuePool, pool_size=size, max_overflow=0
    )


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("postgresql://host/db", "postgresql+asyncpg"),
        ("postgres://host/db", "postgresql+asyncpg"),
        ("postgresql+asyncpg://host/db", "postgresql+asyncpg"),
        ("sqlite:///file.db", "sqlite+aiosqlite"),
        ("sqlite://", "sqlite+aiosqlite"),
    ],
)
def test_urls_get_their_async_driver(given: str, driver: str):
    assert resolve_url(given).drivername == driver


def test_the_default_is_the_environment_then_a_file_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FEATURESTORE_URL", "postgresql://host/db")
    assert resolve_url(None).database == "db"
    monkeypatch.delenv("FEATURESTORE_URL")
    assert resolve_url(None).database == "featurestore.db"


def test_libpqs_sslmode_is_understood():
    assert dict(resolve_url("postgresql://h/d?sslmode=require").query) == {"ssl": "require"}


@pytest.mark.parametrize("url", ["mysql://host/db", "postgresql+psycopg2://h/d", "oracle://x", ":"])
def test_other_drivers_are_refused_with_what_to_use(url: str):
    with pytest.raises(fs.DefinitionError, match="postgresql://"):
        fs.FeatureStore(url)


@pytest.mark.parametrize(
    ("query", "sizes"),
    [
        ("", {}),
        ("ssl=require", {}),
        ("prepared_statement_cache_size=0", {"prepared": 0, "driver": 0}),
        ("statement_cache_size=0", {"prepared": 0, "driver": 0}),
        ("statement_cache_size=0&prepared_statement_cache_size=50", {"prepared": 0, "driver": 0}),
        ("statement_cache_size=7", {"driver": 7}),
        ("prepared_statement_cache_size=50", {"prepared": 50}),
    ],
)
def test_one_word_turns_off_both_caches_of_prepared_statements(query: str, sizes: dict[str, int]):
    names = {"prepared": "prepared_statement_cache_size", "driver": "statement_cache_size"}
    wanted = {names[which]: size for which, size in sizes.items()}
    assert statement_options(resolve_url(f"postgresql://h/d?{query}")) == wanted


@pytest.mark.parametrize("said", ["off", "-1", "0&statement_cache_size=1", "٣"])
def test_a_number_of_prepared_statements_that_is_none(said: str):
    with pytest.raises(fs.DefinitionError, match="statement_cache_size=0"):
        fs.FeatureStore(f"postgresql://me:secret@h/d?statement_cache_size={said}")


def test_making_a_store_does_no_io(tmp_path: Path):
    fs.FeatureStore(f"sqlite:///{tmp_path / 'nothing' / 'here.db'}")
    fs.FeatureStore("postgresql://nobody@192.0.2.1:1/none")
    assert not list(tmp_path.iterdir())


async def test_a_database_that_is_not_there_is_unavailable(tmp_path: Path):
    async with fs.FeatureStore(f"sqlite:///{tmp_path / 'nothing' / 'here.db'}") as store:
        with pytest.raises(fs.StoreUnavailableError, match="folder"):
            await store.list_views()


async def test_a_server_that_is_not_there_is_unavailable():
    with allow_blocking(), socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with fs.FeatureStore(f"postgresql://me:secret@127.0.0.1:{port}/db") as store:
        with pytest.raises(fs.StoreUnavailableError) as caught:
            await store.list_views()
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path):
    path = tmp_path / "text.db"
    await asyncio.to_thread(path.write_text, "this is no database at all " * 100)
    async with fs.FeatureStore(f"sqlite:///{path}") as store:
        with pytest.raises(fs.StoreUnavailableError, match="no SQLite database"):
            await store.list_views()


@pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)
async def test_an_unknown_database_of_a_server_is_unavailable(featurestore_url: str):
    url = sa.make_url(featurestore_url).set(database="no_such_database")
    async with fs.FeatureStore(url) as store:
        with pytest.raises(fs.StoreUnavailableError, match="no_such_database"):
            await store.list_views()


@pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)
async def test_a_borrowed_engine_is_left_as_it_was(featurestore_url: str):
    engine = borrowed(featurestore_url)
    try:
        async with fs.FeatureStore(engine=engine) as store:
            await store.apply(view)
            await store.push(view, [ROW])
        # Not disposed, and its transactions are still its own.
        async with engine.connect() as connection:
            table = "default__driver_stats__history"
            await connection.execute(sa.text(f"DELETE FROM {table}"))  # noqa: S608 - our own name
            await connection.rollback()
            count = sa.text(f"SELECT count(*) FROM {table}")  # noqa: S608
            assert (await connection.execute(count)).scalar_one() == 1
    finally:
        await engine.dispose()


@pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)
async def test_everything_works_on_a_pool_of_one(featurestore_url: str):
    engine = borrowed(featurestore_url)
    try:
        async with fs.FeatureStore(engine=engine) as store:
            await store.apply(view)
            rows = [{**ROW, "driver_id": n} for n in range(20)]
            await asyncio.gather(*(store.push(view, [row]) for row in rows))
            found = await asyncio.gather(
                *(store.get_online_features(["driver_stats:*"], [row]) for row in rows)
            )
            assert [one.to_dicts()[0]["trips"] for one in found] == [3] * 20
    finally:
        await engine.dispose()


async def test_a_database_in_memory_is_one_connection():
    async with fs.FeatureStore("sqlite://") as store:
        await store.apply(view)
        await asyncio.gather(*(store.push(view, [{**ROW, "driver_id": n}]) for n in range(10)))
        assert await store.repository(view).count() == 10


async def test_a_connection_that_an_engine_shares_is_used_by_one_call_at_a_time():
    """SQLAlchemy's engine on SQLite in memory hands one connection to several at a time: a read
    beside an open transaction would see its writes, and commit them."""
    engine = create_async_engine("sqlite+aiosqlite://")
    try:
        async with fs.FeatureStore(engine=engine) as store:
            await store.apply(view)
            repository = store.repository(view)
            pushed, done = asyncio.Event(), asyncio.Event()

            async def write() -> None:
                with contextlib.suppress(ZeroDivisionError):
                    async with store.transaction() as tx:
                        await tx.push(view, [ROW])
                        pushed.set()
                        await done.wait()
                        raise ZeroDivisionError

            async with asyncio.TaskGroup() as group:
                group.create_task(write())
                await pushed.wait()
                reading = group.create_task(repository.get(driver_id=ROW["driver_id"]))
                await asyncio.sleep(0.05)
                assert not reading.done()
                done.set()
            assert reading.result() is None
            assert await repository.count() == 0
            await asyncio.gather(*(store.push(view, [{**ROW, "driver_id": n}]) for n in range(10)))
            assert await repository.count() == 10
    finally:
        await engine.dispose()


def test_a_url_and_an_engine_are_one_too_many():
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(fs.DefinitionError, match="not both"):
        fs.FeatureStore("sqlite://", engine=engine)


@pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)
async def test_connections_that_the_server_closed_do_not_stay_in_the_pool(featurestore_url: str):
    url = sa.make_url(featurestore_url)
    async with fs.FeatureStore(url) as store, fs.FeatureStore(url) as other:
        await store.apply(view)
        await store.push(view, [ROW])
        async with other.engine.connect() as admin:
            terminated = await admin.execute(
                sa.text(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
            assert terminated.scalar_one() >= 1
        for _ in range(3):
            try:
                await store.get_online_features(["driver_stats:*"], [ROW])
            except fs.StoreUnavailableError:
                continue
        await store.push(view, [{**ROW, "driver_id": 2}])
        found = await store.get_online_features(["driver_stats:*"], [{"driver_id": 2}])
        assert found.to_dicts() == [{"driver_id": 2, "trips": 3}]


@pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)
async def test_streams_side_by_side_in_one_transaction(featurestore_url: str):
    entities = [{"driver_id": 1, "event_timestamp": ROW["event_timestamp"]}]
    async with fs.FeatureStore(featurestore_url) as store:
        await store.apply(view)
        async with store.transaction() as tx:
            await tx.push(view, [ROW])
            left_early = tx.stream_historical_features(entities, ["driver_stats:*"])
            assert (await anext(left_early)).num_rows == 1
            again = await tx.get_historical_features(entities, ["driver_stats:*"])
            assert again.to_arrow().column("trips").to_pylist() == [3]
            await left_early.aclose()
