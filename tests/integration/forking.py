"""Programs that use a store before and after a fork: what the children of ``test_forks.py`` do.

``python forking.py CASE URL`` ends with status 0 where all went as the case says, and prints a
line for each child. A child ends by ``os._exit``: OpenSSL's own end may wait for a lock of a thread
that the fork left behind.
"""

from __future__ import annotations

import asyncio
import atexit
import datetime as dt
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

import featurestore as fs
from featurestore.portal import portal
from featurestore.storage.address import resolve_url

CHILD_SECONDS = 30
NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)

view = fs.FeatureView(
    "driver_stats",
    entities=[fs.Entity("driver", join_keys={"driver_id": fs.Int64})],
    fields=[fs.Field("trips", fs.Int32)],
    timestamp_field="event_timestamp",
)


def row(driver: int) -> dict[str, Any]:
    return {"driver_id": driver, "event_timestamp": NOON, "trips": driver}


def works(store: fs.sync.FeatureStore, driver: int) -> str:
    """Everything that a store does, with an entity of the caller's own."""
    store.push(view, [row(driver)])
    found = store.get_online_features(["driver_stats:*"], [{"driver_id": driver}])
    assert found.to_dicts() == [{"driver_id": driver, "trips": driver}]
    entities = [{"driver_id": driver, "event_timestamp": NOON}]
    assert store.get_historical_features(entities, ["driver_stats:*"]).match_rate == {
        "driver_stats": 1.0
    }
    with store.transaction() as tx:
        tx.push(view, [row(driver + 1000)])
    assert sum(batch.num_rows for batch in store.repository(view).scan()) >= 2
    return "works"


def backend(store: fs.sync.FeatureStore) -> int:
    """The number of the process that serves the store's connection, of which it has one."""

    async def ask() -> int:
        async with store.engine.connect() as connection:
            answer = await connection.execute(sa.text("SELECT pg_backend_pid()"))
            return int(answer.scalar_one())

    return portal.call(ask())


def child(work: Callable[[], str]) -> int:
    """Fork a process that does ``work`` and prints what it says, or the error of ours."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 1
    try:
        signal.alarm(CHILD_SECONDS)
        try:
            said = work()
        except fs.FeatureStoreError as error:
            said = f"{type(error).__name__}: {error}"
        print(said, flush=True)
        atexit._run_exitfuncs()
        status = 0
    except BaseException:  # noqa: BLE001 - a child never goes on with its parent's work
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"a child ended with {status} ({os.waitstatus_to_exitcode(status)})"


def used_before(url: str) -> None:
    with fs.sync.FeatureStore(url, limits=fs.Limits(connections=1)) as store:
        store.apply(view)
        works(store, 1)
        postgresql = url.startswith("postgresql")
        before = backend(store) if postgresql else 0
        for n in range(3):
            ended(child(lambda n=n: works(store, 10 + n)))
        assert not postgresql or backend(store) == before
        works(store, 2)


def unused_before(url: str) -> None:
    with fs.sync.FeatureStore(url) as first:
        first.apply(view)
    with fs.sync.FeatureStore(url) as store:
        children = [child(lambda n=n: works(store, 10 + n)) for n in range(3)]
        for pid in children:
            ended(pid)
        works(store, 1)
        assert store.repository(view).count() == 8


def closed_before(url: str) -> None:
    with fs.sync.FeatureStore(url) as store:
        store.apply(view)
        works(store, 1)

    def again() -> str:
        with fs.sync.FeatureStore(url) as new:
            return works(new, 10)

    ended(child(again))


def another_in_the_child(url: str) -> None:
    def again() -> str:
        with fs.sync.FeatureStore(url) as new:
            return works(new, 10)

    with fs.sync.FeatureStore(url) as store:
        store.apply(view)
        ended(child(again))
        works(store, 1)


def under_way(url: str) -> None:
    """A transaction and iterators belong to the process that opened them."""
    with fs.sync.FeatureStore(url) as store:
        store.apply(view)
        store.push(view, [row(n) for n in range(100)])
        batches = store.repository(view).scan(batch_size=10)
        assert next(batches).num_rows == 10
        with store.transaction() as tx:
            tx.push(view, [row(200)])
            repository = tx.repository(view)
            ended(child(lambda: str(tx.push(view, [row(201)]))))
            ended(child(lambda: str(repository.count())))
            ended(child(lambda: str(next(batches))))
        assert sum(batch.num_rows for batch in batches) == 90
        assert store.repository(view).count() == 101


def leaving_blocks(url: str) -> None:
    """A child that leaves its parent's blocks takes nothing back, and commits nothing."""
    with fs.sync.FeatureStore(url) as store:
        store.apply(view)
        parent = os.getpid()
        pids = []

        def fork_inside() -> None:
            with store.transaction() as tx:
                tx.push(view, [row(1)])
                pids.append(os.fork())
                if not pids[0]:
                    signal.alarm(CHILD_SECONDS)

        try:
            fork_inside()
        except fs.FeatureStoreError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            assert os.getpid() != parent
            store.close()
            os._exit(0)
        finally:
            if os.getpid() != parent:
                os._exit(1)
        ended(pids[0])
        assert store.repository(view).get(driver_id=1) == {"driver_id": 1, "trips": 1}


def streaming(url: str) -> None:
    with fs.sync.FeatureStore(url) as store:
        store.apply(view)
        parent = os.getpid()

        def rows() -> Any:
            yield row(1)
            if pid := os.fork():
                ended(pid)
            else:
                signal.alarm(CHILD_SECONDS)
            yield row(2)

        try:
            report = store.push_stream(view, rows())
        except fs.FeatureStoreError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(0 if os.getpid() != parent else 1)
        finally:
            if os.getpid() != parent:
                os._exit(1)
        assert report.rows_written == 2


def while_threads_work(url: str) -> None:
    """Whatever is locked and under way at the moment of the fork."""
    cache = fs.Cache(max_staleness=dt.timedelta(seconds=1))
    with fs.sync.FeatureStore(url, cache=cache) as store:
        store.apply(view)
        works(store, 1)
        stop = threading.Event()
        failed = []

        def work(driver: int) -> None:
            try:
                while not stop.is_set():
                    works(store, driver)
            except BaseException as error:
                failed.append(error)
                raise

        threads = [threading.Thread(target=work, args=(100 + n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        try:
            for n in range(12):
                time.sleep(0.02 + n * 0.003)
                ended(child(lambda n=n: works(store, 300 + n)))
        finally:
            stop.set()
            for thread in threads:
                thread.join(CHILD_SECONDS)
        assert not failed
        assert not any(thread.is_alive() for thread in threads)
        works(store, 2)


def borrowed(url: str) -> None:
    engine = create_async_engine(resolve_url(url), poolclass=AsyncAdaptedQueuePool, pool_size=2)
    store = fs.sync.FeatureStore(engine=engine)
    if url.startswith("postgresql"):  # nothing is open yet
        ended(child(lambda: f"{len(store.list_views())} views"))
    store.apply(view)
    works(store, 1)
    ended(child(lambda: works(store, 10)))

    def begun_anew() -> str:
        engine.sync_engine.dispose(close=False)
        return works(store, 20)

    if url.startswith("postgresql"):
        ended(child(begun_anew))
    works(store, 2)
    portal.call(engine.dispose())


def in_memory(url: str) -> None:
    with fs.sync.FeatureStore("sqlite://") as store:

        def first_use() -> str:
            store.apply(view)
            return works(store, 10)

        ended(child(first_use))
        store.apply(view)
        works(store, 1)
        ended(child(lambda: works(store, 10)))
        works(store, 2)


def with_await(url: str) -> None:
    async def use(store: fs.FeatureStore, driver: int) -> str:
        await store.push(view, [row(driver)])
        found = await store.get_online_features(["driver_stats:*"], [{"driver_id": driver}])
        assert found.to_dicts() == [{"driver_id": driver, "trips": driver}]
        return "works"

    async def main() -> None:
        async with fs.FeatureStore(url) as store:
            await store.apply(view)
            await asyncio.gather(*(use(store, n) for n in range(20)))
            reading = asyncio.create_task(use(store, 50))
            await asyncio.sleep(0)
            ended(child(lambda: asyncio.run(use(store, 100))))
            await reading
            async with store.transaction() as tx:
                await tx.push(view, [row(60)])
                ended(child(lambda: asyncio.run(in_parents(tx))))
            assert await store.repository(view).get(driver_id=60) is not None
            await asyncio.gather(*(use(store, n) for n in range(20)))

    async def in_parents(tx: fs.Transaction) -> str:
        return str(await tx.push(view, [row(61)]))

    asyncio.run(main())


def parent_dies(url: str) -> None:
    """The parent is gone in the middle of a transaction, and the child lives on."""
    store = fs.sync.FeatureStore(url)
    store.apply(view)
    with store.transaction() as tx:
        tx.push(view, [row(1)])
        child(sys.stdin.read)
        os._exit(0)


def _in_worker(store: fs.sync.FeatureStore, driver: int) -> str:
    return works(store, driver)


def multiprocessing_fork(url: str) -> None:
    """As the workers of torch's DataLoader are made: the store was made before, and not used."""
    with fs.sync.FeatureStore(url) as first:
        first.apply(view)
    context = multiprocessing.get_context("fork")
    with fs.sync.FeatureStore(url) as store:
        processes = [context.Process(target=_in_worker, args=(store, 10 * n)) for n in (1, 2, 3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(CHILD_SECONDS)
            assert process.exitcode == 0, process.exitcode
        assert store.repository(view).count() == 6


if __name__ == "__main__":
    case: Callable[[str], None] = globals()[sys.argv[1]]
    case(sys.argv[2])
