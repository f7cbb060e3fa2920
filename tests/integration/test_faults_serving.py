"""Many callers, and a database that fails them: each gets its right answer or one clear error
within its deadline, connections never pass the pool's size, no backend lingers, and serving goes
on by itself afterwards."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from faults import Complaints, becomes_idle, busy, checked_out, new_project
from proxy import Do, Message, Proxy
from server import RestartableServer
from sqlalchemy.ext.asyncio import create_async_engine

import featurestore as fs
from featurestore.testing import PostgresServer

postgresql = pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)

NOW = dt.datetime.now(dt.UTC)
VIEW = fs.FeatureView(
    "stats",
    entities=[fs.Entity("driver", join_keys={"driver_id": fs.Int64})],
    fields=[fs.Field("trips", fs.Int64), fs.Field("city", fs.String)],
    timestamp_field="at",
)
DRIVERS = 500
TERMINATE = sa.text(
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = :database"
)
EXPECTED = (fs.StoreUnavailableError, fs.OverloadedError)


def row(driver: int, trips: int) -> dict[str, object]:
    return {"driver_id": driver, "at": NOW, "trips": trips, "city": f"città {driver}"}


@asynccontextmanager
async def serving(
    url: str, limits: fs.Limits | None = None, project: str | None = None
) -> AsyncIterator[fs.FeatureStore]:
    """A store with the view, filled."""
    project = project or new_project()
    async with fs.FeatureStore(url, project=project) as filling:
        await filling.apply([VIEW])
        await filling.push(VIEW, [row(driver, driver) for driver in range(DRIVERS)])
    options = {} if limits is None else {"limits": limits}
    async with fs.FeatureStore(url, project=project, **options) as store:
        await read(store, 1)
        yield store
        assert checked_out(store) == 0, "connections were left checked out"


async def read(store: fs.FeatureStore, driver: int) -> None:
    """One read, whose answer is right."""
    answer = await store.get_online_features(["stats:*"], [{"driver_id": driver}])
    assert answer.to_dicts() == [{"driver_id": driver, "trips": driver, "city": f"città {driver}"}]


async def tried(call: Awaitable[object], deadline: float) -> str:
    """How a call ended: well, cancelled, or with one of the errors that it may end with."""
    began = time.monotonic()
    try:
        await call
    except EXPECTED as error:
        ended = type(error).__name__
    except asyncio.CancelledError:
        return "cancelled"
    else:
        ended = "answered"
    assert time.monotonic() - began < deadline
    return ended


async def callers(
    store: fs.FeatureStore, count: int, stop: asyncio.Event, deadline: float
) -> Counter[str]:
    """So many callers that read one key after the other until ``stop``."""
    ended: Counter[str] = Counter()

    async def one(number: int) -> None:
        chance = random.Random(number)
        while not stop.is_set():
            ended[await tried(read(store, chance.randrange(DRIVERS)), deadline)] += 1
            await asyncio.sleep(0.001)  # where the database is gone, errors come at once

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))
    return ended


async def goes_on(store: fs.FeatureStore, seconds: float = 20.0) -> None:
    """Check that soon all is answered again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            await read(store, 7)
            break
        except EXPECTED:
            assert time.monotonic() < deadline, "it does not recover"
            await asyncio.sleep(0.1)
    await asyncio.gather(*(read(store, driver) for driver in range(100)))


@pytest.fixture(scope="module")
def restartable() -> Iterator[RestartableServer]:
    with RestartableServer() as server:
        server.create_database("served")
        yield server


@postgresql
async def test_a_thousand_callers_on_a_pool_of_five_every_third_cancelled(
    featurestore_url: str, featurestore_postgres: PostgresServer
):
    project = new_project()
    engine = create_async_engine(
        featurestore_url.replace("postgresql://", "postgresql+asyncpg://"),
        pool_size=5,
        max_overflow=0,
    )
    try:
        async with (
            serving(featurestore_url, project=project),
            fs.FeatureStore(engine=engine, project=project) as store,
        ):
            await read(store, 1)
            with Complaints():
                for pause in (0.0, 0.001, 0.01, 0.05):
                    tasks = [
                        asyncio.create_task(tried(read(store, number % DRIVERS), 10))
                        if number % 5
                        else asyncio.create_task(
                            tried(store.push(VIEW, [row(number % 7, number % 7)]), 10)
                        )
                        for number in range(1_000)
                    ]
                    await asyncio.sleep(pause)
                    for task in tasks[::3]:
                        task.cancel()
                    async with asyncio.timeout(30):
                        ended = await asyncio.gather(*tasks, return_exceptions=True)
                    kept = [end for number, end in enumerate(ended) if number % 3]
                    assert set(kept) == {"answered"}
                    assert checked_out(store) == 0
                    assert len(await busy(featurestore_postgres, featurestore_url)) <= 5
                await goes_on(store)
            await becomes_idle(featurestore_postgres, featurestore_url)
    finally:
        await engine.dispose()


@postgresql
async def test_backends_that_are_terminated_under_load(
    featurestore_url: str, featurestore_postgres: PostgresServer
):
    database = featurestore_url.rpartition("/")[2]
    async with serving(featurestore_url) as store:
        stop = asyncio.Event()
        load = asyncio.create_task(callers(store, 100, stop, 10))
        async with (
            fs.FeatureStore(featurestore_url.rpartition("/")[0] + "/postgres") as admin,
            admin.engine.connect() as connection,
        ):
            for _ in range(8):
                await asyncio.sleep(0.15)
                await connection.execute(TERMINATE, {"database": database})
        stop.set()
        ended = await load
        # A read is sent again where its connection was lost: few see anything of it.
        assert ended["answered"] > 20 * (ended.total() - ended["answered"])
        await goes_on(store)
        assert store.stats.pool_in_use == 0
        assert store.stats.reads.waiting == store.stats.reads.in_flight == 0
    await becomes_idle(featurestore_postgres, featurestore_url)


@pytest.mark.slow
async def test_a_server_that_is_stopped_and_started(restartable: RestartableServer):
    server = restartable
    async with serving(server.url("served")) as store:
        stop = asyncio.Event()
        load = asyncio.create_task(callers(store, 50, stop, 10))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(server.start)
        await goes_on(store)
        stop.set()
        ended = await load
        assert ended["StoreUnavailableError"]
        assert ended["answered"]
        await goes_on(store)


@postgresql
async def test_a_connection_that_hangs(featurestore_url: str):
    """Two connections give no answer: their callers are told in time, others go on."""
    limits = fs.Limits(wait_seconds=0.5, answer_seconds=1.0)
    async with Proxy(featurestore_url) as proxy, serving(proxy.url, limits) as store:
        for _ in range(2):
            hanging = set()

            def hook(message: Message, hanging: set[int] = hanging) -> Do:
                if message.kind == "Bind" and (len(hanging) < 2 or message.connection in hanging):
                    hanging.add(message.connection)
                    return Do.STALL
                return Do.FORWARD

            proxy.on_message = hook
            # Longest: half a second in the lane, one until it is late, two until it is given up.
            ended = Counter(
                await asyncio.gather(*(tried(read(store, number), 5) for number in range(60)))
            )
            assert ended["StoreUnavailableError"] >= 2, ended
            proxy.forward()
            await goes_on(store)
            assert store.stats.pool_in_use == 0


@postgresql
async def test_a_backend_that_is_stopped_by_a_signal(
    featurestore_url: str, featurestore_postgres: PostgresServer
):
    limits = fs.Limits(wait_seconds=0.5, answer_seconds=1.0)
    async with serving(featurestore_url, limits) as store:
        async with store.engine.connect() as one:
            pid = (await one.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
            await one.rollback()
        os.kill(pid, signal.SIGSTOP)
        try:
            ended = Counter(
                await asyncio.gather(*(tried(read(store, number), 5) for number in range(40)))
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        assert ended["answered"] + ended.total() > 0
        await goes_on(store)
    await becomes_idle(featurestore_postgres, featurestore_url)


@postgresql
async def test_slow_statements_among_fast_ones(
    featurestore_url: str, featurestore_postgres: PostgresServer
):
    """Somebody holds a table: reads of it end with an error in time, others are not delayed."""
    other = fs.FeatureView(
        "other",
        entities=VIEW.entities,
        fields=[fs.Field("n", fs.Int64)],
        timestamp_field="at",
    )
    limits = fs.Limits(wait_seconds=1.0, answer_seconds=1.0)
    async with serving(featurestore_url, limits) as store:
        await store.apply([other])
        held = f"{store.project}__other__online"
        preparer = store.engine.dialect.identifier_preparer
        async with store.engine.connect() as holder:
            await holder.exec_driver_sql(
                f"LOCK TABLE {preparer.quote(held)} IN ACCESS EXCLUSIVE MODE"
            )
            blocked = [
                asyncio.create_task(
                    tried(store.get_online_features(["other:n"], [{"driver_id": number}]), 5)
                )
                for number in range(30)
            ]
            await asyncio.sleep(0.1)
            began = time.monotonic()
            for number in range(100):
                await read(store, number)
            assert not any(task.done() for task in blocked)
            assert time.monotonic() - began < 1.0, "they were blocked too"
            ended = Counter(await asyncio.gather(*blocked))
            assert ended["answered"] == 0
            await holder.rollback()
        answer = await store.get_online_features(["other:n"], [{"driver_id": 1}])
        assert answer.to_dicts() == [{"driver_id": 1, "n": None}]
    await becomes_idle(featurestore_postgres, featurestore_url)


@postgresql
async def test_a_store_that_is_closed_while_a_backend_does_not_answer(featurestore_url: str):
    limits = fs.Limits(wait_seconds=0.5, answer_seconds=1.0)
    async with serving(featurestore_url, limits) as store:
        async with store.engine.connect() as one:
            pid = (await one.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
            await one.rollback()
        os.kill(pid, signal.SIGSTOP)
        try:
            reading = asyncio.create_task(tried(read(store, 1), 6))
            await asyncio.sleep(0.1)
            await store.close()
            assert await reading in ("StoreUnavailableError", "answered")
        finally:
            os.kill(pid, signal.SIGCONT)


@postgresql
async def test_a_push_that_hangs_is_given_up(
    featurestore_url: str, monkeypatch: pytest.MonkeyPatch
):
    """Also where its caller is cancelled: neither waits for ever."""
    monkeypatch.setattr("featurestore.storage.push.PUSH_SECONDS", 0.5)
    monkeypatch.setattr("featurestore.storage.postgresql_push.ANSWER_SECONDS", 0.5)
    async with Proxy(featurestore_url) as proxy, serving(proxy.url) as store:
        await store.push(VIEW, [row(1, 1)])
        for cancels in (False, True):
            proxy.on_message = lambda m: Do.STALL if m.kind == "Bind" else Do.FORWARD
            async with asyncio.timeout(15):
                pushing = asyncio.create_task(store.push(VIEW, [row(2, 2)]))
                if cancels:
                    await asyncio.sleep(0.2)
                    pushing.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await pushing
                else:
                    with pytest.raises(fs.StoreUnavailableError, match="ledger"):
                        await pushing
            proxy.forward()
            await goes_on(store)
            await store.push(VIEW, [row(3, 3)])
            assert store.stats.pushes.in_flight == store.stats.pool_in_use == 0


async def test_a_key_that_the_database_cannot_take_fails_its_caller_alone(
    featurestore_postgres: PostgresServer,
):
    """The characters of a LATIN1 database are few: a statement with others fails as a whole, and
    its callers are then asked for one by one. Some are cancelled meanwhile."""
    name = f"latin_{new_project()}"
    admin = create_async_engine(
        featurestore_postgres.url("postgres").replace("://", "+asyncpg://"),
        isolation_level="AUTOCOMMIT",
    )
    async with admin.connect() as connection:
        options = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        await connection.exec_driver_sql(f"CREATE DATABASE {name} {options}")
    await admin.dispose()
    view = fs.FeatureView(
        "words",
        entities=[fs.Entity("word", join_keys={"word": fs.String})],
        fields=[fs.Field("n", fs.Int64)],
        timestamp_field="at",
    )
    async with fs.FeatureStore(featurestore_postgres.url(name)) as store:
        await store.apply([view])
        await store.push(view, [{"word": f"w{n}", "at": NOW, "n": n} for n in range(60)])

        async def one(number: int) -> int:
            word = "\N{GRINNING FACE}" if number % 20 == 7 else f"w{number}"
            answer = await store.get_online_features(["words:n"], [{"word": word}])
            return answer.to_dicts()[0]["n"]

        chance = random.Random(2)
        for _ in range(12):
            tasks = [asyncio.create_task(one(number)) for number in range(60)]
            cancelled = set()
            for _ in range(10):
                await asyncio.sleep(0.001)
                number = chance.randrange(60)
                if tasks[number].cancel():
                    cancelled.add(number)
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for number, answer in enumerate(answers):
                if isinstance(answer, asyncio.CancelledError):
                    assert number in cancelled, "it was cancelled for another one"
                elif number % 20 == 7:
                    assert isinstance(answer, fs.FeatureStoreError)
                else:
                    assert answer == number
        assert store.stats.reads.waiting == store.stats.reads.in_flight == 0
    await asyncio.to_thread(featurestore_postgres.drop_database, name)
