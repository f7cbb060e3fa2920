"""Pushes to PostgreSQL, which are one statement without a lock of their own: beside all that reads
a history and changes what is online, and on connections that break."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import pyarrow as pa
import pytest
import sqlalchemy as sa
from faults import NAME, START, VIEW, Complaints, becomes_idle, new_project, opened, rows_table
from proxy import Do, Message, Proxy

import featurestore as fs
from featurestore.storage.notices import channel_of, understood
from featurestore.testing import PostgresServer

pytestmark = pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)

KEYS = range(10)
ROW = {"driver_id": 1, "event_timestamp": START, "conv_rate": 0.5, "trips": 1, "city": "Oslo"}


def row(driver: int, trips: int) -> dict[str, Any]:
    """A version of a driver; those of more trips are newer."""
    return {**ROW, "driver_id": driver, "trips": trips, "event_timestamp": later(trips)}


def later(seconds: int) -> Any:
    return rows_table(1, first=seconds)["event_timestamp"][0].as_py()


class Backends:
    """What waits at the server, seen from a connection of its own."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def rows(self, query: str, **values: Any) -> list[Any]:
        await self._connection.execute(sa.text("SELECT pg_stat_clear_snapshot()"))
        return list((await self._connection.execute(sa.text(query), values)).all())

    async def waiting(self, count: int = 1) -> list[int]:
        """The backends that wait for a lock, as soon as there are so many."""
        query = (
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND datname = current_database()"
        )
        async with asyncio.timeout(10):
            while len(found := await self.rows(query)) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return [pid for (pid,) in found]


@asynccontextmanager
async def held(store: fs.FeatureStore, statement: str) -> AsyncIterator[Backends]:
    """A transaction that has run ``statement``, and holds what that locks."""
    async with store.engine.begin() as connection:
        await connection.execute(sa.text(statement))
        yield Backends(connection)


async def warmed(store: fs.FeatureStore, view: fs.FeatureView = VIEW, times: int = 10) -> None:
    """A first load, and pushes after which the server keeps its plan of them."""
    await store.apply([view])
    for number in range(times):
        await store.push(view, [{**ROW, "driver_id": 100, "trips": number}])


async def is_by_the_rule(store: fs.FeatureStore) -> None:
    """Online is what history says, and history what the ledger says."""
    assert (await store.materialize()).keys_changed == {NAME: 0}
    kept = sum(load.rows_written for load in await store.loads() if load.undone_at is None)
    assert await store.repository(NAME).count() == kept


# --- beside operations that have a view to themselves -----------------------------------------


async def undo(store: fs.FeatureStore, number: int) -> None:
    live = [load for load in await store.loads(limit=30) if load.undone_at is None]
    await store.undo_load(live[number % len(live)].load_id)


async def materialize(store: fs.FeatureStore, number: int) -> None:
    await store.materialize()


async def ingest(store: fs.FeatureStore, number: int) -> None:
    await store.ingest(NAME, rows_table(1_500, first=number, bad_every=10**9))


async def retype(store: fs.FeatureStore, number: int) -> None:
    kind = fs.Int64 if number % 2 else fs.Int32
    fields = [replace(one, type=kind) if one.name == "trips" else one for one in VIEW.fields]
    await store.apply([replace(VIEW, fields=fields)], allow={"narrow"})


async def switch_online(store: fs.FeatureStore, number: int) -> None:
    await store.apply([replace(VIEW, online=number % 2 == 0)])
    await store.apply([VIEW])


async def write_in_a_transaction(store: fs.FeatureStore, number: int) -> None:
    async with store.transaction() as tx:
        await tx.push(NAME, [row(key, number) for key in KEYS])
        await tx.push(NAME, [row(100 + number, number)])


@pytest.mark.parametrize(
    "operation", [undo, materialize, ingest, retype, switch_online, write_in_a_transaction]
)
async def test_pushes_go_on_beside_other_work_and_end_in_the_rule(
    featurestore_url: str, operation: Callable[[fs.FeatureStore, int], Awaitable[None]]
):
    """From two stores, many rows each, the keys in any order: nobody deadlocks, nothing is lost."""
    project, dice, numbers = new_project(), random.Random(1), itertools.count(1)
    over = asyncio.Event()
    with Complaints():
        async with (
            opened(featurestore_url, project) as store,
            opened(featurestore_url, project) as other,
        ):
            await warmed(store, times=1)
            pushed = 0

            async def push(by: fs.FeatureStore) -> None:
                nonlocal pushed
                while not over.is_set():
                    keys = dice.sample(KEYS, k=dice.randrange(1, len(KEYS)))
                    await by.push(NAME, [row(key, next(numbers) % 5_000) for key in keys])
                    pushed += 1

            async def work() -> None:
                try:
                    for number in range(12):
                        await operation(other, number)
                        await asyncio.sleep(0.02)
                finally:
                    over.set()

            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                group.create_task(work())
                for by in (store, other) * 3:
                    group.create_task(push(by))
            assert pushed > 20, "they hardly pushed: the test proves little"
            await is_by_the_rule(store)


async def undo_newest(store: fs.FeatureStore) -> None:
    await store.undo_load((await store.loads())[-1].load_id)


async def erase(store: fs.FeatureStore) -> None:
    await store.repository(NAME).delete(driver_id=5)


async def fill_online(store: fs.FeatureStore) -> None:
    service = fs.FeatureService("service", [VIEW], description="new")
    await store.apply([VIEW, service])


@pytest.mark.parametrize(
    ("operation", "stops_at"),
    [
        (lambda store: store.materialize(), "{online} WHERE driver_id = 0"),
        (undo_newest, "{online} WHERE driver_id = 0"),
        (erase, "{history} WHERE driver_id = 5"),
        (fill_online, "featurestore_service WHERE project = '{project}'"),
    ],
    ids=["materialize", "undo", "erase", "fill_online"],
)
async def test_a_push_that_comes_in_the_middle_of_an_operation_comes_after_it(
    featurestore_url: str,
    operation: Callable[[fs.FeatureStore], Awaitable[Any]],
    stops_at: str,
):
    """It has read history and has yet to write what it makes of that: a row in between would be
    lost online."""
    project = new_project()
    names = {name: f"{project}__{NAME}__{name}" for name in ("history", "online")}
    async with (
        opened(featurestore_url, project) as store,
        opened(featurestore_url, project) as other,
        opened(featurestore_url) as holder,
    ):
        off = replace(VIEW, online=operation is not fill_online)
        await store.apply([off, fs.FeatureService("service", [VIEW])])
        for number in range(1, 4):
            await store.push(NAME, [row(key, number) for key in KEYS])
        stop = f"SELECT 1 FROM {stops_at} FOR UPDATE".format(project=project, **names)  # noqa: S608
        async with held(holder, stop) as backends:
            working = asyncio.create_task(operation(other))
            await backends.waiting()
            push = asyncio.create_task(store.push(NAME, [row(5, 9)]))
            done, _ = await asyncio.wait([push], timeout=0.5)
            assert not done
            assert not working.done()
        await working
        assert (await push).rows_written == 1
        answer = await store.get_online_features([f"{NAME}:trips"], [{"driver_id": 5}])
        assert answer.to_dicts() == [{"driver_id": 5, "trips": 9}]
        assert (await store.materialize()).keys_changed == {NAME: 0}


async def test_first_pushes_and_first_loads_of_a_view_at_the_same_time(featurestore_url: str):
    project = new_project()
    async with (
        opened(featurestore_url, project) as store,
        opened(featurestore_url, project) as other,
    ):
        for number in range(6):
            view = replace(VIEW, name=f"fresh_{number}")
            await store.apply([view])
            table = rows_table(1_500, bad_every=10**9)
            async with asyncio.timeout(60):
                await asyncio.gather(
                    *(
                        by.push(view, [row(key, n) for key in KEYS])
                        for n, by in enumerate((store, other) * 4)
                    ),
                    store.ingest(view, table),
                    other.ingest(view, table, force=True),
                )
            assert (await store.materialize([view])).keys_changed == {view.name: 0}
            assert await store.repository(view).count() == 8 * len(KEYS) + 2 * 1_500


# --- locks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("due", [False, True])
async def test_a_push_that_waits_for_history_holds_nothing_that_others_lock_after_it(
    featurestore_url: str, due: bool
):
    """An apply locks history, then online: pushes that held online already would deadlock."""
    project = new_project()
    history = f"{project}__{NAME}__history"
    async with opened(featurestore_url, project) as store, opened(featurestore_url) as holder:
        await warmed(store)
        if due:
            await store.push(NAME, [{**row(7, 1), "event_timestamp": later(10**9)}])
            for number in range(10):
                await store.push(NAME, [row(7, number)])
        lock = f"LOCK TABLE {history} IN SHARE ROW EXCLUSIVE MODE"
        async with held(holder, lock) as backends:
            push = asyncio.create_task(store.push(NAME, [row(1, 1)]))
            (pid,) = await backends.waiting()
            locks = await backends.rows(
                "SELECT relation::regclass::text FROM pg_locks "
                "WHERE pid = :pid AND granted AND locktype = 'relation'",
                pid=pid,
            )
            names = {name for (name,) in locks}
            assert not any("__online" in name or name == history for name in names), names
            assert not push.done()
        assert (await push).rows_written == 1


async def set_default(url: str, setting: str) -> None:
    """What new connections begin with."""
    database = url.rpartition("/")[2]
    async with fs.FeatureStore(url) as store, store.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(sa.text(f'ALTER DATABASE "{database}" SET {setting}'))


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_what_a_push_has_waited_for_it_sees(featurestore_url: str, isolation: str):
    """Whatever a database is set to: in most isolations a statement would not."""
    project = new_project()
    await set_default(featurestore_url, f"default_transaction_isolation TO '{isolation}'")
    async with opened(featurestore_url, project) as store, opened(featurestore_url) as holder:
        await warmed(store)
        reports = await asyncio.gather(
            *(store.push(NAME, [row(key, n) for key in KEYS]) for n in range(30))
        )
        assert [report.rows_written for report in reports] == [len(KEYS)] * 30
        lock = f"LOCK TABLE {project}__{NAME}__history IN SHARE ROW EXCLUSIVE MODE"
        before = store.stats.pushes.batches
        async with held(holder, lock) as backends:
            push = asyncio.create_task(store.push(NAME, [row(1, 2)]))
            await backends.waiting()
            await backends.rows(
                "UPDATE featurestore_project SET revision = revision + 1 WHERE name = :name "
                "RETURNING revision",
                name=project,
            )
        assert (await push).rows_written == 1
        assert store.stats.pushes.batches - before == 2, "it did not notice"
        await is_by_the_rule(store)


async def test_a_push_gives_way_where_it_has_deadlocked_and_is_written_after_all(
    featurestore_url: str,
):
    """Somebody locks the keys in another order than pushes do."""
    project = new_project()
    await set_default(featurestore_url, "deadlock_timeout TO '2s'")
    async with opened(featurestore_url, project) as store, opened(featurestore_url) as holder:
        await warmed(store)
        await store.push(NAME, [row(1, 1), row(2, 1)])
        lock = f"SELECT 1 FROM {project}__{NAME}__online WHERE driver_id = %d FOR UPDATE"  # noqa: S608
        async with opened(featurestore_url) as watcher, held(watcher, "SELECT 1") as backends:
            # Whoever looks first is the one to go: that is to be the push.
            async with held(holder, "SET LOCAL deadlock_timeout TO '1min'") as other:
                await other.rows(lock % 2)
                push = asyncio.create_task(store.push(NAME, [row(1, 3), row(2, 3)]))
                await backends.waiting()
                await other.rows(lock % 1)
                assert not push.done()
                await backends.waiting()
            assert (await push).rows_written == 2
        await is_by_the_rule(store)


async def test_pushes_to_other_keys_pass_one_that_waits_for_a_row(featurestore_url: str):
    project = new_project()
    async with (
        opened(featurestore_url, project) as store,
        opened(featurestore_url, project) as other,
    ):
        await warmed(store)
        async with other.transaction() as tx:
            await tx.push(NAME, [row(1, 1)])
            waiting = asyncio.create_task(store.push(NAME, [row(1, 2)]))
            async with asyncio.timeout(4):
                await asyncio.gather(*(store.push(NAME, [row(key, 2)]) for key in range(2, 9)))
            assert not waiting.done()
        assert (await waiting).rows_written == 1


# --- cancelled in a group ---------------------------------------------------------------------


@pytest.mark.parametrize("everyone", [False, True])
async def test_a_caller_that_is_cancelled_while_its_group_is_under_way(
    featurestore_url: str, featurestore_postgres: PostgresServer, everyone: bool
):
    """Its rows may commit with those of the others: it waits for that answer. Where nobody else
    is in the group, the statement is stopped."""
    project = new_project()
    with Complaints():
        async with (
            opened(featurestore_url, project) as store,
            opened(featurestore_url, project) as other,
            opened(featurestore_url) as watcher,
        ):
            await warmed(store)
            async with held(watcher, "SELECT 1") as backends, other.transaction() as tx:
                await tx.push(NAME, [row(1, 1)])
                first = asyncio.create_task(store.push(NAME, [row(1, 2)]))
                await backends.waiting()
                group = [asyncio.create_task(store.push(NAME, [row(1, n)])) for n in range(10, 14)]
                await backends.waiting(2)  # the group passes the first one, and waits as well
                for push in group if everyone else group[:2]:
                    push.cancel()
                done, _ = await asyncio.wait(group, timeout=3 if everyone else 0.5)
                assert len(done) == (4 if everyone else 0)
                for push in group[:1]:
                    push.cancel()  # again, as a scope of anyio does
                await asyncio.sleep(0.01)
                assert not first.done()
            await asyncio.wait([first, *group])
            assert [push.cancelled() for push in group] == [True, True, everyone, everyone]
            await becomes_idle(featurestore_postgres, featurestore_url)
            history = await store.repository(NAME).history(driver_id=1)
            kept = [] if everyone else [10, 11, 12, 13]
            assert history["trips"].to_pylist() == [1, 2, *kept]
            await is_by_the_rule(store)


# --- connections that break -------------------------------------------------------------------


@pytest.mark.parametrize("reaches", [True, False])
async def test_a_push_whose_answer_is_lost_says_that_its_outcome_is_not_known(
    featurestore_url: str, reaches: bool
):
    with Complaints():
        async with Proxy(featurestore_url) as proxy, opened(proxy.url) as store:
            await warmed(store)
            there = await store.repository(NAME).count()
            armed = True

            def hook(message: Message) -> Do:
                nonlocal armed
                kind = message.kind
                if armed and kind == ("DataRow" if reaches else "Execute"):
                    armed = False
                    return Do.CUT
                return Do.FORWARD

            proxy.on_message = hook
            with pytest.raises(fs.StoreUnavailableError, match="not known"):
                await store.push(NAME, [row(1, 1)])
            proxy.forward()
            async with asyncio.timeout(5):
                # The server has yet to commit.
                while reaches and await store.repository(NAME).count() == there:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await store.push(NAME, [row(2, 1)])
            assert await store.repository(NAME).count() == there + 1 + reaches
            await is_by_the_rule(store)


async def test_a_caller_that_is_cancelled_waits_for_an_answer_that_is_late(featurestore_url: str):
    """The one statement is a COMMIT that was sent."""
    with Complaints():
        async with Proxy(featurestore_url) as proxy, opened(proxy.url) as store:
            await warmed(store)
            there = await store.repository(NAME).count()
            answer, sent = asyncio.Event(), asyncio.Event()

            async def hook(message: Message) -> Do:
                if message.kind in ("DataRow", "CommandComplete", "ErrorResponse"):
                    sent.set()
                    await answer.wait()
                return Do.FORWARD

            proxy.on_message = hook
            push = asyncio.create_task(store.push(NAME, [row(1, 1)]))
            await sent.wait()
            for _ in range(3):
                push.cancel()
                await asyncio.sleep(0.9)  # longer in all than a statement may take to stop
                assert not push.done()
            answer.set()
            await asyncio.wait([push])
            assert push.cancelled()
            proxy.forward()
            assert await store.repository(NAME).count() == there + 1
            await is_by_the_rule(store)


async def test_many_callers_while_backends_are_ended(featurestore_url: str):
    """Each gets its report or one clear error, and what was reported is there."""
    async with opened(featurestore_url) as store, opened(featurestore_url) as admin:
        await warmed(store)
        outcomes: dict[int, Any] = {}

        async def push(number: int) -> None:
            try:
                outcomes[number] = await store.push(NAME, [row(1_000 + number, 1)])
            except fs.FeatureStoreError as error:
                outcomes[number] = error

        async def end_backends() -> None:
            ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> "
            ended += "pg_backend_pid() AND datname = current_database()"
            async with admin.engine.connect() as connection:
                for _ in range(5):
                    await asyncio.sleep(0.03)
                    await connection.execute(sa.text(ended))

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(end_backends())
            for number in range(600):
                group.create_task(push(number))
                if number % 5 == 0:
                    await asyncio.sleep(0.002)
        failed = {n for n, one in outcomes.items() if isinstance(one, Exception)}
        assert all(isinstance(outcomes[n], fs.StoreUnavailableError) for n in failed)
        assert failed, "no call was hit: the test proves nothing"
        found = await store.repository(NAME).get_many([{"driver_id": 1_000 + n} for n in outcomes])
        missing = {n for n, one in zip(outcomes, found, strict=True) if one is None}
        assert missing <= failed
        assert isinstance(await store.push(NAME, [row(1, 1)]), fs.PushReport)
        await is_by_the_rule(store)


async def test_a_table_of_many_rows_beside_pushes_keeps_its_own_way(featurestore_url: str):
    async with opened(featurestore_url) as store:
        await warmed(store)
        before = store.stats.pushes.requests
        table = pa.concat_tables([rows_table(500, bad_every=10**9)] * 3)
        reports = await asyncio.gather(
            store.push(NAME, table), store.push(NAME, table.to_pylist()), store.push(NAME, [ROW])
        )
        assert [report.rows_written for report in reports] == [1_500, 1_500, 1]
        assert store.stats.pushes.requests - before == 1
        await is_by_the_rule(store)


# --- what other processes are told ------------------------------------------------------------


async def test_a_group_tells_once_of_all_its_keys(featurestore_url: str):
    project = new_project()
    view = replace(VIEW, notify=True)
    async with opened(featurestore_url, project) as store:
        await warmed(store, view)
        heard: list[tuple[str | None, Any]] = []
        connection = await asyncpg.connect(featurestore_url)
        try:
            await connection.add_listener(
                channel_of(project), lambda *said: heard.append(understood(said[-1]))
            )
            # The first goes alone, the others as one.
            await asyncio.gather(*(store.push(NAME, [row(key, 1)]) for key in (1, 2, 3, 2)))
            await connection.fetchval("SELECT 1")
            assert [view for view, _ in heard] == [NAME] * 2
            assert [sorted(keys) for _, keys in heard] == [[(1,)], [(2,), (3,)]]
            await store.push(NAME, [row(key, 2) for key in range(50)])
            await connection.fetchval("SELECT 1")
            assert heard[2:] == [(NAME, None)]
        finally:
            await connection.close()
