"""Training sets where something breaks: full disks, too little memory, lost backends and servers,
and the ways in which a second connection to PostgreSQL cannot be had."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import duckdb
import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from faults import (
    NAME,
    START,
    VIEW,
    Complaints,
    SmallDisk,
    becomes_idle,
    checked_out,
    new_project,
    opened,
    rows_table,
)
from server import RestartableServer
from sqlalchemy.ext.asyncio import create_async_engine
from ways import asked, streamed

import featurestore as fs
from featurestore.selection import resolve
from featurestore.storage import postgresql_adbc
from featurestore.storage.postgresql_adbc import conninfo
from featurestore.testing import PostgresServer, allow_blocking
from featurestore.training.asked import Asked, names_of
from featurestore.training.duckdb_join.answers import OnDisk
from featurestore.training.duckdb_join.history import History
from featurestore.training.memory import Memory
from featurestore.training.read import read_training_set

postgresql = pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)

FEATURES = [f"{NAME}:trips", f"{NAME}:city"]
MIB = 1 << 20
PLENTY = 1 << 30


def entities(rows: int, **extra: Any) -> pa.Table:
    """Entity rows of drivers in turn, later than all of history."""
    numbers = np.arange(rows)
    late = pa.repeat(pa.scalar(START.replace(year=2025), fs.Timestamp.arrow), rows)
    return pa.table({"driver_id": numbers % 200, "event_timestamp": late, **extra})


def history(rows: int, city_length: int) -> pa.Table:
    """Rows of history that do not compress."""
    numbers = np.arange(rows)
    micros = int(START.timestamp()) * 1_000_000 + numbers * 1_000_000
    noise = np.random.default_rng(1).bytes(city_length * rows // 2).hex()
    cities = [noise[n * city_length : (n + 1) * city_length] for n in range(rows)]
    return pa.table(
        {
            "driver_id": numbers % 150,
            "event_timestamp": pa.array(micros, fs.Timestamp.arrow),
            "conv_rate": np.random.default_rng(2).random(rows),
            "trips": pa.array(numbers % 1000, pa.int32()),
            "city": pa.array(cities),
        }
    )


async def with_memory(
    store: fs.FeatureStore, table: pa.Table, features: Any, engine: str, memory: Memory
) -> pa.Table:
    """A training set within a memory that no user could ask for: too small for a stage."""
    wanted = Asked(
        names=partial(names_of, features),
        find=partial(resolve, features, full_feature_names=False),
        engine=engine,
        memory=memory,
    )
    return (await read_training_set(store._context, table, wanted)).to_arrow()


# --- disks ------------------------------------------------------------------------------------

PADDED = entities(60_000, note=pa.repeat(pa.scalar("a note of some length " * 4), 60_000))
SPILLS: dict[str, tuple[pa.Table, str, Memory]] = {
    "entity keys": (entities(300_000), "sql", Memory(64 * MIB, 0, 0, 1)),
    "results": (PADDED, "sql", Memory(64 * MIB, 0, 2 * MIB, 1)),
    "history": (entities(1_000), "duckdb", Memory(64 * MIB, 0, PLENTY, 1)),
    "DuckDB": (entities(800_000), "duckdb", Memory(20 * MIB, 32 * MIB, PLENTY, 1)),
}
"""What goes to the disk: entities, engine, and a memory that leaves no other way."""


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return history(150_000, 40)


@pytest.fixture
def on_small_disk(small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> SmallDisk:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk.folder))
    return small_disk


def says_what_to_do(error: fs.StoreUnavailableError, folder: Path) -> None:
    told = str(error)
    assert "\n" not in told
    assert str(folder) in told
    assert "TMPDIR" in told
    assert "memory_limit" in told
    assert error.__cause__ is not None


async def test_a_disk_that_fills_is_one_clear_error_and_nothing_is_left(
    featurestore_url: str, on_small_disk: SmallDisk, rows: pa.Table
):
    folder = on_small_disk.folder
    with Complaints():
        async with opened(featurestore_url) as store:
            await store.ingest(NAME, rows)
            wanted = {}
            for name, (table, engine, memory) in SPILLS.items():
                with pytest.raises(fs.StoreUnavailableError) as caught:
                    await with_memory(store, table, FEATURES, engine, memory)
                says_what_to_do(caught.value, folder)
                assert await asyncio.to_thread(os.listdir, folder) == [], name
                assert checked_out(store) == 0
                enough = Memory(PLENTY, PLENTY, PLENTY, 2)
                wanted[name] = await with_memory(store, table, FEATURES, engine, enough)
            await asyncio.to_thread(on_small_disk.grow)
            for name, (table, engine, memory) in SPILLS.items():
                if name == "DuckDB":
                    continue  # as little memory as that is too little even with room on the disk
                found = await with_memory(store, table, FEATURES, engine, memory)
                assert found.equals(wanted[name]), name
                del found
            assert await asyncio.to_thread(os.listdir, folder) == []


async def test_a_folder_that_cannot_be_written_is_one_clear_error(
    featurestore_url: str, on_small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
):
    async with opened(featurestore_url) as store:
        await store.push(NAME, rows_table(10))
        await asyncio.to_thread(on_small_disk.lock)
        for folder in (on_small_disk.folder, Path("/nowhere/at/all")):
            monkeypatch.setattr(tempfile, "tempdir", str(folder))
            for way in ("duckdb in memory", "duckdb on disk", "sql, result on disk"):
                with pytest.raises(fs.StoreUnavailableError) as caught:
                    await asked(store, entities(10), FEATURES, way)
                says_what_to_do(caught.value, folder)
            # Where nothing is written there, none is needed.
            assert len(await asked(store, entities(10), FEATURES, "sql")) == 10


LIMITED = """
import asyncio, os, resource, sys, tempfile
sys.path[:0] = {paths!r}
from test_training_faults import *

async def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (512 * 1024, resource.RLIM_INFINITY))
    async with fs.FeatureStore({url!r}, project={project!r}) as store:
        for name, (table, engine, memory) in SPILLS.items():
            try:
                found = await with_memory(store, table, FEATURES, engine, memory)
            except fs.StoreUnavailableError as error:
                says_what_to_do(error, tempfile.gettempdir())
                print(name, "told", os.listdir(tempfile.gettempdir()))

asyncio.run(main())
"""


async def test_a_limit_on_the_size_of_files_is_told_as_a_full_disk_is(
    featurestore_url: str, tmp_path: Path, rows: pa.Table
):
    project, folder = new_project(), tmp_path / "temporary"
    await asyncio.to_thread(folder.mkdir)
    async with opened(featurestore_url, project) as store:
        await store.apply([VIEW])
        await store.ingest(NAME, rows)
    here = Path(__file__).parent
    paths = [str(here), str(here.parent)]
    program = LIMITED.format(paths=paths, url=featurestore_url, project=project)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [f"{name} told []" for name in SPILLS], done.stderr


# --- memory -----------------------------------------------------------------------------------


async def test_the_least_memory_is_enough_for_hundreds_of_thousands_of_rows(featurestore_url: str):
    async with opened(featurestore_url) as store:
        await store.ingest(NAME, await asyncio.to_thread(history, 300_000, 30))
        table = entities(200_000)
        wanted = (await store.get_historical_features(table, FEATURES, engine="sql")).to_arrow()
        found = await store.get_historical_features(
            table, FEATURES, engine="duckdb", memory_limit="128MiB"
        )
        assert found.to_arrow().equals(wanted)
        on_disk = Memory(128 * MIB, 0, PLENTY, 1)
        assert (await with_memory(store, table, FEATURES, "duckdb", on_disk)).equals(wanted)


async def test_wide_rows_are_sorted_where_memory_is_scarce(featurestore_url: str):
    """Four threads would mostly have too little, one has enough."""
    async with opened(featurestore_url) as store:
        await store.ingest(NAME, await asyncio.to_thread(history, 60_000, 1_000))
        table = entities(100_000)
        wanted = await with_memory(store, table, FEATURES, "sql", Memory(PLENTY, 0, PLENTY, 1))
        little = Memory(96 * MIB, 0, PLENTY, 4)
        assert (await with_memory(store, table, FEATURES, "duckdb", little)).equals(wanted)


async def test_where_threads_have_too_little_memory_one_does_the_work(
    featurestore_url: str, monkeypatch: pytest.MonkeyPatch
):
    """And where that is too little for one, it is told."""
    asked_for: list[int] = []
    in_order = OnDisk._sorted

    def scarce(self: OnDisk, cursor: duckdb.DuckDBPyConnection, size: int) -> Any:
        ((threads,),) = cursor.execute("SELECT current_setting('threads')").fetchall()
        asked_for.append(threads)
        if threads > most:
            raise duckdb.OutOfMemoryException("Out of Memory Error: failed to pin block")
        return in_order(self, cursor, size)

    monkeypatch.setattr(OnDisk, "_sorted", scarce)
    memory = Memory(PLENTY, 0, PLENTY, 4)
    async with opened(featurestore_url) as store:
        await store.ingest(NAME, rows_table(400, bad_every=1000))
        most = 1
        found = await with_memory(store, entities(300), FEATURES, "duckdb", memory)
        assert asked_for == [4, 1]
        assert found["trips"].null_count < 300
        most = 0
        with pytest.raises(fs.StoreUnavailableError, match="allow more memory by memory_limit"):
            await with_memory(store, entities(300), FEATURES, "duckdb", memory)
        assert asked_for == [4, 1, 4, 1]


async def test_answers_of_wide_texts_are_cut_by_their_bytes(featurestore_url: str):
    """Of 400,000 rows with 6,000 letters each: more than 2 GB, which one column could not hold."""
    async with opened(featurestore_url) as store:
        await store.ingest(NAME, await asyncio.to_thread(history, 150, 6_000))
        rows = nulls = 0
        async with aclosing(
            store.stream_historical_features(entities(400_000), FEATURES, engine="duckdb")
        ) as batches:
            async for batch in batches:
                assert batch.nbytes < 80 * MIB
                rows += batch.num_rows
                nulls += batch["city"].null_count
    assert (rows, nulls) == (400_000, 100_000)


async def test_a_text_far_longer_than_others_does_not_overflow_a_column(featurestore_url: str):
    """The average says nothing of what is matched: here always the longest."""

    def one_long() -> pa.Table:
        rows = rows_table(20_000, bad_every=10**9)
        cities = pa.array(["y"] * 19_999 + ["x" * 12_000_000])
        return rows.set_column(rows.column_names.index("city"), "city", cities)

    rows = await asyncio.to_thread(one_long)
    driver = pa.repeat(rows["driver_id"][19_999], 200)
    table = entities(200).set_column(0, "driver_id", driver)
    async with opened(featurestore_url) as store:
        await store.ingest(NAME, rows)
        found = streamed(store, table, [f"{NAME}:city"], "duckdb in memory")
        assert sum([batch.num_rows async for batch in found]) == 200


async def test_views_share_the_memory_for_history(
    featurestore_url: str, monkeypatch: pytest.MonkeyPatch
):
    held: list[int] = []
    read = History.read

    async def noted(*arguments: Any) -> History:
        found = await read(*arguments)
        held.append(found.held)
        return found

    monkeypatch.setattr(History, "read", noted)
    views = [replace(VIEW, name=f"stats_{n}") for n in range(4)]
    async with opened(featurestore_url, new_project()) as store:
        await store.apply(views)
        for view in views:
            await store.ingest(view, await asyncio.to_thread(history, 20_000, 100))
        features = [view[["city"]].with_name(f"view_{n}") for n, view in enumerate(views)]
        asking = Asked(
            names=partial(names_of, features),
            find=partial(resolve, features, full_feature_names=True),
            engine="duckdb",
            memory=Memory(PLENTY, 8 * MIB, PLENTY, 1),
        )
        found = (await read_training_set(store._context, entities(1_000), asking)).to_arrow()
    assert len(held) == 4
    assert held[0] > 2 * MIB
    assert 0 in held
    assert sum(held) <= 8 * MIB
    first, *others = (found[f"view_{n}__city"] for n in range(4))
    assert first.null_count < 300
    assert all(one.equals(first) for one in others)


# --- PostgreSQL -------------------------------------------------------------------------------


def terminate(server: PostgresServer, url: str, where: str = "true") -> int:
    """End the backends of a database of which a condition holds."""

    async def end(connection: asyncpg.Connection) -> int:
        return len(
            await connection.fetch(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity "  # noqa: S608
                f"WHERE datname = $1 AND pid <> pg_backend_pid() AND {where}",
                url.rpartition("/")[2],
            )
        )

    return int(server._query(end))


@postgresql
@pytest.mark.parametrize("way", ["sql", "duckdb in memory", "duckdb on disk"])
async def test_a_session_whose_backend_is_ended_tells_so_and_the_next_one_works(
    featurestore_url: str, featurestore_postgres: PostgresServer, way: str
):
    table = entities(150_000)
    with Complaints():
        async with opened(featurestore_url) as store:
            await store.ingest(NAME, rows_table(4_000, bad_every=10_000))
            rows = streamed(store, table, FEATURES, way)
            await anext(rows)
            ended = await asyncio.to_thread(terminate, featurestore_postgres, featurestore_url)
            assert ended
            with pytest.raises(fs.StoreUnavailableError):
                async for _ in rows:
                    pass
            assert checked_out(store) == 0
            assert len(await asked(store, table, FEATURES, way)) == 150_000
        await becomes_idle(featurestore_postgres, featurestore_url)


@postgresql
async def test_a_scan_whose_backend_is_ended_tells_so_and_the_next_one_works(
    featurestore_url: str, featurestore_postgres: PostgresServer
):
    """In the midst of the rows of history, of which there are more than the sockets hold."""
    ended = 0

    def end(progress: fs.TrainingProgress) -> None:
        nonlocal ended
        if progress.stage == "history" and not ended:
            with allow_blocking():
                ended = terminate(featurestore_postgres, featurestore_url, "query LIKE 'COPY%'")

    with Complaints():
        async with opened(featurestore_url) as store:
            await store.ingest(NAME, await asyncio.to_thread(history, 200_000, 200))
            for way in ("duckdb in memory", "duckdb on disk"):
                ended = 0
                with pytest.raises(fs.StoreUnavailableError, match="broke off") as caught:
                    await asked(store, entities(10_000), FEATURES, way, progress=end)
                assert ended == 1
                assert "\n" not in str(caught.value)
                assert checked_out(store) == 0
                assert len(await asked(store, entities(10), FEATURES, way)) == 10


@pytest.fixture(scope="module")
def own_server() -> Iterator[RestartableServer]:
    with tempfile.TemporaryDirectory(prefix="socket-", dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        with RestartableServer(unix_socket_directories=folder) as server:
            server.socket_folder = folder
            yield server


async def test_a_server_that_stops_is_told_and_found_again(own_server: RestartableServer):
    await asyncio.to_thread(own_server.create_database, "stopped")
    with Complaints():
        async with opened(own_server.url("stopped")) as store:
            await store.ingest(NAME, rows_table(4_000, bad_every=10_000))
            for way in ("sql", "duckdb in memory"):
                rows = streamed(store, entities(150_000), FEATURES, way)
                await anext(rows)
                await asyncio.to_thread(own_server.stop)
                with pytest.raises(fs.StoreUnavailableError):
                    async for _ in rows:
                        pass
                with pytest.raises(fs.StoreUnavailableError):
                    await asked(store, entities(10), FEATURES, way)
                await asyncio.to_thread(own_server.start)
                assert len(await asked(store, entities(10), FEATURES, way)) == 10


# --- the second connection --------------------------------------------------------------------


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a connection of its own could be had, for each time that one was wanted."""
    seen: list[bool] = []
    opening = postgresql_adbc.open_scan

    async def noted(*arguments: Any) -> Any:
        scan = await opening(*arguments)
        seen.append(scan is not None)
        return scan

    monkeypatch.setattr(postgresql_adbc, "open_scan", noted)
    return seen


@asynccontextmanager
async def borrowed(url: str, project: str, **options: Any) -> AsyncIterator[fs.FeatureStore]:
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"), **options)
    try:
        async with fs.FeatureStore(engine=engine, project=project) as store:
            yield store
    finally:
        await engine.dispose()


@postgresql
async def test_where_only_the_engine_can_connect_the_rows_come_through_it(
    featurestore_url: str, scans: list[bool]
):
    project, table = new_project(), entities(400)
    async with opened(featurestore_url, project) as store:
        await store.apply([VIEW])
        await store.ingest(NAME, rows_table(4_000, bad_every=10_000))
        wanted = (await asked(store, table, FEATURES, "duckdb in memory")).to_arrow()
        assert wanted.equals((await asked(store, table, FEATURES, "sql")).to_arrow())
        assert scans == [True]

        async with store.engine.begin() as connection:
            await connection.execute(sa.text("DROP ROLE IF EXISTS nobody"))
            await connection.execute(sa.text("CREATE ROLE nobody LOGIN"))
        nobody = featurestore_url.replace("postgres@", "nobody@")
        connect = partial(asyncpg.connect, featurestore_url)
        for url, options in {
            "postgresql://someone:secret@127.0.0.1:1/none": {"async_creator": connect},
            nobody: {"async_creator": connect},  # it may connect, and read nothing
            "postgresql://127.0.0.1:1/": {"async_creator": connect},
        }.items():
            scans.clear()
            async with borrowed(url, project, **options) as other:
                for way in ("duckdb in memory", "duckdb on disk"):
                    found = (await asked(other, table, FEATURES, way)).to_arrow()
                    assert found.equals(wanted), url
            assert scans == [False, False], url
        async with store.engine.begin() as connection:
            await connection.execute(sa.text("DROP ROLE nobody"))


@postgresql
async def test_a_schema_that_only_the_engine_knows_is_the_one_that_is_read(
    featurestore_url: str, scans: list[bool]
):
    """Two stores in one database, of one project, whose tables have the same names."""
    project = new_project()
    settings = {"server_settings": {"search_path": "other"}}
    async with opened(featurestore_url, project) as store:
        await store.apply([VIEW])
        await store.ingest(NAME, rows_table(4_000, bad_every=10_000))
        async with store.engine.begin() as connection:
            await connection.execute(sa.text("CREATE SCHEMA other"))
        async with borrowed(featurestore_url, project, connect_args=settings) as other:
            await other.apply([VIEW])
            await other.ingest(NAME, rows_table(1_001, bad_every=10_000))
            one, two = [
                (await asked(each, entities(150), FEATURES, "duckdb in memory")).to_arrow()
                for each in (store, other)
            ]
            assert not one.equals(two)
            assert two.equals((await asked(other, entities(150), FEATURES, "sql")).to_arrow())
            assert scans == [True, True]


async def test_sockets_and_passwords_of_any_characters(
    own_server: RestartableServer, scans: list[bool]
):
    secret = "p @:/?#[]%'\"\\+ü=& "
    await asyncio.to_thread(own_server.create_database, "secrets")
    hba = own_server.data / "pg_hba.conf"

    def ask_for_passwords() -> None:
        hba.write_text("local all secret scram-sha-256\nhost all secret all scram-sha-256\n"
                       + hba.read_text())  # fmt: skip

    await asyncio.to_thread(ask_for_passwords)
    plain = own_server.url("secrets")
    async with opened(plain, project := new_project()) as store:
        await store.apply([VIEW])
        await store.ingest(NAME, rows_table(4_000, bad_every=10_000))
        async with store.engine.begin() as connection:
            escaped = secret.replace("'", "''").replace(":", "\\:")
            await connection.execute(sa.text(f"CREATE ROLE secret LOGIN PASSWORD '{escaped}'"))
            for granted in ("ALL ON ALL TABLES", "ALL ON ALL SEQUENCES"):
                await connection.execute(sa.text(f"GRANT {granted} IN SCHEMA public TO secret"))
            await connection.execute(sa.text("SELECT pg_reload_conf()"))
        wanted = (await asked(store, entities(400), FEATURES, "sql")).to_arrow()
    address = sa.make_url(plain)
    port, folder = address.port, own_server.socket_folder
    as_secret = f"secret:{quote(secret, safe='')}"
    urls = [
        f"postgresql://{as_secret}@127.0.0.1:{port}/secrets",
        f"postgresql://{as_secret}@127.0.0.1:{port}/secrets?prepared_statement_cache_size=0",
        f"postgresql://{as_secret}@127.0.0.1:{port}/secrets?ssl=disable",
        f"postgresql://{as_secret}@/secrets?host={folder}&port={port}",
    ]
    for url in urls:
        scans.clear()
        async with opened(url, project) as store:
            found = (await asked(store, entities(400), FEATURES, "duckdb in memory")).to_arrow()
            assert found.equals(wanted), url
        assert scans == [True], url


def test_a_url_as_libpq_reads_it():
    said: Callable[[str], str] = lambda url: conninfo(sa.make_url(url))  # noqa: E731
    assert said(
        "postgresql+asyncpg://u:p%27%5C@h:5/d?ssl=true&prepared_statement_cache_size=0"
    ) == (
        "host='h' port='5' user='u' password='p\\'\\\\' dbname='d' connect_timeout='10' "
        "sslmode='require'"
    )
    assert "sslmode='verify-full'" in said("postgresql://h/d?ssl=verify-full")
    assert "sslrootcert='/a b/c.pem'" in said("postgresql://h/d?sslrootcert=/a%20b/c.pem")
    assert said("postgresql:///d?host=/run/pg&port=6") == (
        "host='/run/pg' port='6' dbname='d' connect_timeout='10'"
    )
