"""Views that notify: what writers tell, and the caches of other processes that hear it.

Stores of one process know of each other's writes without being told. So other processes are
played by statements past the store, with the message that belongs to them; once it is a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pyarrow as pa
import pytest
import sqlalchemy as sa
from faults import Complaints
from sqlalchemy.ext.asyncio import create_async_engine

import featurestore as fs
from featurestore.storage import notices
from featurestore.storage.tables import table_names
from featurestore.testing import PostgresServer

pytestmark = pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
CHANNEL = "featurestore_default"
HOUR = dt.timedelta(hours=1)
SECONDS = 10
DRIVER = fs.Entity("driver", join_keys={"driver_id": fs.Int64})


def view(name: str = "told", **changes: Any) -> fs.FeatureView:
    options: dict[str, Any] = {
        "entities": [DRIVER],
        "fields": [fs.Field("trips", fs.Int64)],
        "timestamp_field": "at",
        "notify": True,
    }
    return fs.FeatureView(name, **(options | changes))


def row(driver: int, hours: float, trips: int) -> dict[str, Any]:
    return {"driver_id": driver, "at": START + hours * HOUR, "trips": trips}


@pytest.fixture
async def store(featurestore_url: str) -> AsyncIterator[fs.FeatureStore]:
    """A store without a cache, on drivers 1 to 3 of a view that notifies and one that does not."""
    async with fs.FeatureStore(featurestore_url) as store:
        await store.apply([view(), view("silent", notify=False)])
        for name in ("told", "silent"):
            await store.push(name, [row(number, 0, 10 * number) for number in (1, 2, 3)])
        yield store


@pytest.fixture
async def cached(store: fs.FeatureStore, featurestore_url: str) -> AsyncIterator[fs.FeatureStore]:
    """A store whose cache would keep its answers for an hour."""
    async with fs.FeatureStore(featurestore_url, cache=fs.Cache(max_staleness=HOUR)) as cached:
        yield cached


async def trips(store: Any, *drivers: int, of: str = "told") -> list[int | None]:
    rows = [{"driver_id": number} for number in drivers]
    answer = await store.get_online_features([f"{of}:trips"], rows)
    return [one["trips"] for one in answer.to_dicts()]


async def becomes(read: Callable[[], Awaitable[Any]], expected: Any) -> None:
    """Wait until a read gives what is expected."""
    async with asyncio.timeout(SECONDS):
        while await read() != expected:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)


async def listeners(server: PostgresServer, store: fs.FeatureStore) -> list[str]:
    """The connections to the store's database that listen."""
    activity = await asyncio.to_thread(server.activity, store.engine.url.database)
    return [line for line in activity if "LISTEN" in line]


async def others_write(
    store: fs.FeatureStore, trips: int, said: str | None, *, of: str = "told"
) -> None:
    """Change all online rows of a view as another process would, and say so as it would."""
    table = sa.table(table_names(store.project, of)[1], sa.column("trips"))
    async with store.engine.begin() as connection:
        await connection.execute(table.update().values(trips=trips))
        if said is not None:
            await connection.execute(sa.select(notices.sending(CHANNEL, said)))


async def listening(store: fs.FeatureStore, number: int = 1_000) -> None:
    """Wait until the store's cache hears what is said; all trips are ``number`` then."""
    await trips(store, 1)
    await others_write(store, number, '{"view": "told"}')
    await becomes(lambda: trips(store, 1), [number])


# --- hearing ----------------------------------------------------------------------------------


async def test_what_others_say_is_dropped(cached: fs.FeatureStore):
    await listening(cached)
    for number, said in enumerate(
        [
            '{"view": "told"}',
            '{"view": "told", "keys": [[1], [2], [3]]}',
            "{}",
            "no message of ours",
            "[1]",
            '{"view": 7}',
            '{"view": "told", "keys": 7}',
            '{"view": "told", "keys": [[1, 2], [{}]]}',
            '{"view": "told", "keys": [[1, 2]]}',
        ]
    ):
        assert None not in await trips(cached, 1, 2)
        await others_write(cached, number, said)
        await becomes(lambda: trips(cached, 1, 2), [number, number])


async def test_what_is_not_named_is_kept(cached: fs.FeatureStore):
    await listening(cached, 5)
    assert await trips(cached, 1, 2, 3) == [5, 5, 5]
    await others_write(cached, 6, '{"view": "told", "keys": [[1], [3]]}')
    await becomes(lambda: trips(cached, 1), [6])
    assert await trips(cached, 1, 2, 3) == [6, 5, 6]
    await others_write(cached, 7, '{"view": "another", "keys": [[1], [2], [3]]}')
    await others_write(cached, 8, '{"view": "told", "keys": [[3]]}')
    await becomes(lambda: trips(cached, 3), [8])
    assert await trips(cached, 1, 2, 3) == [6, 5, 8]


async def test_views_that_do_not_notify_are_not_listened_for(
    cached: fs.FeatureStore, featurestore_postgres: PostgresServer
):
    assert await trips(cached, 1, of="silent") == [10]
    await asyncio.sleep(0.2)
    assert await listeners(featurestore_postgres, cached) == []
    await others_write(cached, 77, None, of="silent")
    await listening(cached)
    assert await trips(cached, 1, of="silent") == [10]
    assert len(await listeners(featurestore_postgres, cached)) == 1


async def test_a_store_without_a_cache_does_not_listen(
    store: fs.FeatureStore, featurestore_postgres: PostgresServer
):
    await trips(store, 1)
    await asyncio.sleep(0.2)
    assert await listeners(featurestore_postgres, store) == []


async def test_the_listener_stands_beside_the_pool_and_goes_with_the_store(
    cached: fs.FeatureStore, store: fs.FeatureStore, featurestore_postgres: PostgresServer
):
    await listening(cached)
    assert cached.stats.pool_in_use == 0
    size = cached.stats.pool_size
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(size):
            await stack.enter_async_context(cached.transaction())
        assert cached.stats.pool_in_use == size
        assert len(await listeners(featurestore_postgres, store)) == 1
    await cached.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "featurestore notices"]

    async def count() -> int:
        return len(await listeners(featurestore_postgres, store))

    await becomes(count, 0)


async def test_a_store_may_be_closed_while_its_listener_connects(
    store: fs.FeatureStore, featurestore_url: str, featurestore_postgres: PostgresServer
):
    for steps in range(0, 60, 4):
        with Complaints():
            async with fs.FeatureStore(featurestore_url, cache=fs.Cache(max_staleness=HOUR)) as one:
                await trips(one, 1)
                for _ in range(steps):
                    await asyncio.sleep(0.0005)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "featurestore notices"]
    await store.close()

    async def count() -> int:
        return len(
            await asyncio.to_thread(featurestore_postgres.activity, store.engine.url.database)
        )

    await becomes(count, 0)


async def test_what_is_missed_while_the_connection_is_lost_is_dropped(
    cached: fs.FeatureStore, featurestore_postgres: PostgresServer
):
    await listening(cached)
    for number in range(3):
        assert await trips(cached, 1) != [number]
        (line,) = await listeners(featurestore_postgres, cached)
        async with cached.engine.begin() as connection:
            await connection.execute(sa.select(sa.func.pg_terminate_backend(int(line.split()[0]))))
        await others_write(cached, number, None)  # whatever was said of it, nobody has heard
        await becomes(lambda: trips(cached, 1), [number])

        async def count() -> int:
            return len(await listeners(featurestore_postgres, cached))

        await becomes(count, 1)
    await listening(cached, 99)


async def test_what_is_kept_is_dropped_at_once_when_the_connection_is_lost(
    cached: fs.FeatureStore,
    featurestore_postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(notices, "FIRST_PAUSE", 60.0)  # it does not listen again in time
    await listening(cached, 5)
    (line,) = await listeners(featurestore_postgres, cached)
    assert await trips(cached, 1) == [5]
    async with cached.engine.begin() as connection:
        await connection.execute(sa.select(sa.func.pg_terminate_backend(int(line.split()[0]))))
    await others_write(cached, 6, None)
    await becomes(lambda: trips(cached, 1), [6])
    assert await listeners(featurestore_postgres, cached) == []


async def test_a_listener_that_hears_nothing_asks_whether_its_server_is_there(
    cached: fs.FeatureStore,
    featurestore_postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(notices, "CHECK_SECONDS", 0.05)
    await listening(cached)

    async def asked() -> bool:
        activity = await asyncio.to_thread(
            featurestore_postgres.activity, cached.engine.url.database
        )
        return any(line.endswith("idle: SELECT 1") for line in activity)

    await becomes(asked, True)
    await listening(cached, 99)


async def test_an_engine_of_ones_own_lends_the_listener_its_connection(
    store: fs.FeatureStore, featurestore_url: str, featurestore_postgres: PostgresServer
):
    url = featurestore_url.replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(url, pool_size=1, max_overflow=0)
    try:
        async with fs.FeatureStore(engine=engine, cache=fs.Cache(max_staleness=HOUR)) as cached:
            await listening(cached)
            assert len(await listeners(featurestore_postgres, store)) == 1
        assert engine.pool.checkedout() == 0
    finally:
        await engine.dispose()


# --- saying -----------------------------------------------------------------------------------


@asynccontextmanager
async def heard(url: str) -> AsyncIterator[Callable[[], Awaitable[list[Any]]]]:
    """Listens: gives what was said on the project's channel since it was last asked."""
    said: list[str] = []
    connection = await asyncpg.connect(url)
    try:
        await connection.add_listener(CHANNEL, lambda *message: said.append(message[-1]))

        async def news() -> list[Any]:
            # Messages keep their order.
            await connection.execute(f"NOTIFY {CHANNEL}, 'that is all'")
            async with asyncio.timeout(SECONDS):
                while "that is all" not in said:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            found = [json.loads(text) for text in said[:-1]]
            said.clear()
            return found

        yield news
    finally:
        await connection.close()


async def test_each_write_says_what_it_has_changed(store: fs.FeatureStore, featurestore_url: str):
    changed = {"view": "told"}
    later = [row(number, 1, number) for number in range(1, 12)]
    arrow = pa.Table.from_pylist(later)
    async with heard(featurestore_url) as news:
        await store.push("told", [row(1, 1, 1)])
        assert await news() == [{"view": "told", "keys": [[1]]}]
        await store.push("told", [row(2, 1, 1), row(1, 2, 1), row(2, 3, 1)])
        assert await news() == [{"view": "told", "keys": [[2], [1]]}]
        await store.push("told", later)
        assert await news() == [changed]
        await store.push("told", [])
        assert await news() == [{"view": "told", "keys": []}]
        await store.push("told", arrow)
        assert await news() == [changed]
        load = (await store.ingest("told", arrow)).loads[0].load_id
        assert await news() == [changed]
        await store.undo_load(load)
        assert await news() == [changed]
        await store.materialize("told")
        assert await news() == [changed]
        await store.repository("told").delete(driver_id=1)
        assert await news() == [changed]


async def test_a_view_that_does_not_notify_says_nothing(
    store: fs.FeatureStore, featurestore_url: str
):
    async with heard(featurestore_url) as news:
        await store.push("silent", [row(1, 1, 1)])
        await store.ingest("silent", pa.Table.from_pylist([row(2, 1, 1)]))
        await store.materialize("silent")
        assert await news() == []
        await store.apply([view("silent", notify=True)])
        assert await news() == [{}]
        await store.push("silent", [row(1, 2, 1)])
        assert await news() == [{"view": "silent", "keys": [[1]]}]
        await store.apply([view("told", notify=False), view("silent", notify=False)])
        await news()
        await store.push("silent", [row(1, 3, 1)])
        await store.apply([view("silent", notify=False, description="new")])
        assert await news() == []


async def test_what_is_not_committed_is_not_said(store: fs.FeatureStore, featurestore_url: str):
    async with heard(featurestore_url) as news:
        with contextlib.suppress(ZeroDivisionError):
            async with store.transaction() as tx:
                await tx.push("told", [row(1, 1, 1)])
                raise ZeroDivisionError
        with pytest.raises(fs.InvalidRowsError):
            await store.push("told", [row(1, 1, 1), row(None, 1, 1)])  # type: ignore[arg-type]
        assert await news() == []
        async with store.transaction() as tx:
            await tx.push("told", [row(1, 1, 1)])
            await tx.push("silent", [row(1, 1, 1)])
            assert await news() == []
        said = await news()
        assert said
        assert {one["view"] for one in said} == {"told"}


async def test_callers_whose_pushes_gather_are_told_of_together(
    store: fs.FeatureStore, featurestore_url: str
):
    async with heard(featurestore_url) as news:
        await asyncio.gather(*(store.push("told", [row(n, 1, n)]) for n in range(200)))
        said = await news()
        assert 1 < len(said) < 20
        assert {"view": "told"} in said


KEYS: dict[str, tuple[dict[str, fs.FeatureType], dict[str, Any], bool]] = {
    "bool": ({"k": fs.Bool}, {"k": True}, True),
    "int": ({"k": fs.Int64}, {"k": 2**63 - 1}, True),
    "text": ({"k": fs.String}, {"k": 'a "quote", ß, 😀 and \\'}, True),
    "two": ({"k": fs.Int32, "j": fs.String}, {"k": -1, "j": ""}, True),
    "long": ({"k": fs.String, "j": fs.String}, {"k": "€" * 333, "j": "\x01" * 900}, True),
    "bytes": ({"k": fs.Bytes}, {"k": b"x"}, False),
    "date": ({"k": fs.Date}, {"k": dt.date(2024, 1, 1)}, False),
    "time": ({"k": fs.Timestamp}, {"k": START}, False),
}


async def test_keys_that_json_keeps_are_named(store: fs.FeatureStore, featurestore_url: str):
    async with heard(featurestore_url) as news:
        for name, (types, keys, named) in KEYS.items():
            await store.apply([view(name, entities=[fs.Entity(name, types)])])
            more = {"at": START, "trips": 1}
            for _ in range(2):  # the first makes the index, the second is a statement by itself
                await news()
                await store.push(name, [keys | more])
            expected = {"view": name, "keys": [list(keys.values())]} if named else {"view": name}
            assert await news() == [expected], name


async def test_what_would_be_too_long_is_not_said_in_full(
    store: fs.FeatureStore, featurestore_url: str
):
    await store.apply([view("long", entities=[fs.Entity("long", {"k": fs.String})])])
    rows = [{"k": f"{n}" * 990, "at": START, "trips": n} for n in range(8)]
    async with heard(featurestore_url) as news:
        await store.push("long", rows)
        await store.push("long", rows)
        assert await news() == [{"view": "long"}, {"view": "long"}]


# --- two processes ----------------------------------------------------------------------------

_WRITER = """
import datetime, json, sys
import featurestore as fs

with fs.sync.FeatureStore(sys.argv[1]) as store:
    for line in sys.stdin:
        rows = json.loads(line)
        for row in rows:
            row["at"] = datetime.datetime.fromisoformat(row["at"])
        store.push("told", rows)
        print("written", flush=True)
"""


async def test_the_writes_of_another_process_are_seen(
    cached: fs.FeatureStore, featurestore_url: str
):
    pipe = asyncio.subprocess.PIPE
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, featurestore_url, stdin=pipe, stdout=pipe
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    try:
        await listening(cached)
        await others_write(cached, 0, '{"view": "told"}')
        for hours, drivers in ((1, [1]), (2, [1, 2, 3]), (3, list(range(1, 20))), (4, [2])):
            before = await trips(cached, 1, 2, 3)
            rows = [row(number, hours, hours) for number in drivers]
            writer.stdin.write(json.dumps(rows, default=str).encode() + b"\n")
            async with asyncio.timeout(30):
                assert await writer.stdout.readline() == b"written\n"
            expected = [
                hours if number in drivers else old
                for number, old in zip((1, 2, 3), before, strict=True)
            ]
            await becomes(lambda: trips(cached, 1, 2, 3), expected)
    finally:
        writer.stdin.close()
        async with asyncio.timeout(30):
            assert await writer.wait() == 0
