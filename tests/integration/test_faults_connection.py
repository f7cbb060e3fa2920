"""Connections that drop, stall, or lose an answer, and servers that go away, in the middle of a
load: all of it is kept or nothing, the error says so, and loading again ends in one state."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from cancelling import How, by_scope, by_task, by_timeout
from faults import (
    NAME,
    VIEW,
    Complaints,
    State,
    becomes_idle,
    checked_out,
    new_project,
    opened,
    rows_table,
    state,
    write_file,
)
from proxy import Do, Message, Proxy
from server import RestartableServer

import featurestore as fs
from featurestore.testing import PostgresServer

postgresql = pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)

OPTIONS = {"on_invalid": "quarantine"}
ROWS = 4_000


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("files") / "rows.parquet", rows_table(ROWS), groups=8)


@pytest.fixture(scope="module")
def large(file: Path) -> Path:
    """More than what lies between the two ends of a connection."""
    return write_file(file.with_name("large.parquet"), rows_table(150_000, bad_every=10**9))


async def undisturbed(url: str, path: Path) -> State:
    """What one load of a file comes to."""
    async with opened(url) as store:
        await store.ingest(NAME, path, **OPTIONS)
        return await state(store)


def at_copy(number: int, do: Do) -> Callable[[Message], Do]:
    """A hook that does something at the ``number``-th piece of a COPY, and disturbs no more."""
    seen = 0

    def hook(message: Message) -> Do:
        nonlocal seen
        seen += message.kind == "CopyData" and message.to_server
        return do if seen == number and message.kind == "CopyData" else Do.FORWARD

    return hook


def is_unavailable(error: BaseException) -> None:
    """Check that an error is ours, says that trying again may help, and tells no secret."""
    assert isinstance(error, fs.StoreUnavailableError), repr(error)
    assert "127.0.0.1" in str(error)
    assert "secret" not in str(error)
    assert error.__cause__ is not None


async def settle_down(store: fs.FeatureStore, wanted: State, path: Path, story: str) -> None:
    """Check that a disturbed load left all or nothing, and that another one ends well."""
    found = await state(store)
    assert found.empty or found == wanted, story
    report = await store.ingest(NAME, path, **OPTIONS)
    assert report.loads[0].skipped == (not found.empty), story
    assert (await state(store)).difference(wanted) == "", story


# --- cut --------------------------------------------------------------------------------------


@pytest.mark.slow
@postgresql
async def test_a_connection_that_is_cut_at_any_message(
    featurestore_url: str, featurestore_postgres: PostgresServer, file: Path
):
    wanted = await undisturbed(featurestore_url, file)
    with Complaints():
        async with Proxy(featurestore_url) as proxy, opened(proxy.url) as probe:
            before = proxy.seen
            await probe.ingest(NAME, file, **OPTIONS)
            messages = proxy.seen - before
            for at in range(1, messages, max(1, messages // 13)):
                project = new_project()
                async with opened(proxy.url, project) as store:
                    await store.apply([VIEW])
                    end = proxy.seen + at
                    proxy.on_message = lambda m, end=end: Do.CUT if m.number == end else Do.FORWARD
                    try:
                        async with asyncio.timeout(10):
                            await store.ingest(NAME, file, **OPTIONS)
                    except fs.FeatureStoreError as error:
                        is_unavailable(error)
                    proxy.forward()
                    story = f"cut at message {at} of {messages}"
                    assert checked_out(store) == 0, story
                    await becomes_idle(featurestore_postgres, featurestore_url)
                    await settle_down(store, wanted, file, story)


@postgresql
async def test_a_connection_that_breaks_while_a_copy_waits_for_room(
    featurestore_url: str, featurestore_postgres: PostgresServer, file: Path, large: Path
):
    """The server takes nothing for a while, so that the load cannot send, and is gone then."""
    wanted = await undisturbed(featurestore_url, file)
    with Complaints():
        async with Proxy(featurestore_url) as proxy, opened(proxy.url) as store:
            proxy.on_message = at_copy(3, Do.STALL)
            loading = asyncio.create_task(store.ingest(NAME, large, **OPTIONS))
            await asyncio.sleep(1)
            assert not loading.done()
            proxy.cut()
            with pytest.raises(fs.StoreUnavailableError) as caught:
                async with asyncio.timeout(10):
                    await loading
            is_unavailable(caught.value)
            proxy.forward()
            await becomes_idle(featurestore_postgres, featurestore_url)
            await settle_down(store, wanted, file, "cut while full")


@postgresql
async def test_a_backend_that_an_administrator_ends(
    featurestore_url: str, featurestore_postgres: PostgresServer, file: Path
):
    wanted = await undisturbed(featurestore_url, file)
    ends = ["Parse", "CopyDone", "CopyData"]
    with Complaints():
        async with opened(featurestore_url) as admin, Proxy(featurestore_url) as proxy:
            for kind in ends:
                async with opened(proxy.url) as store:
                    seen = 0

                    async def hook(message: Message, kind=kind) -> Do:
                        nonlocal seen
                        if message.to_server and message.kind == kind:
                            seen += 1
                            if seen == (1 if kind == "CopyDone" else 4):
                                await end_others(admin)
                        return Do.FORWARD

                    proxy.on_message = hook
                    with pytest.raises(fs.StoreUnavailableError) as caught:
                        await store.ingest(NAME, file, **OPTIONS)
                    is_unavailable(caught.value)
                    proxy.forward()
                    await settle_down(store, wanted, file, f"ended at a {kind}")


async def end_others(admin: fs.FeatureStore) -> None:
    async with admin.engine.connect() as connection:
        ended = await connection.execute(
            sa.text(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
        assert ended.scalar_one() >= 1


# --- the answer to a COMMIT -------------------------------------------------------------------


@postgresql
@pytest.mark.parametrize("reaches", [True, False])
async def test_a_commit_whose_answer_is_lost_says_that_its_outcome_is_not_known(
    featurestore_url: str, featurestore_postgres: PostgresServer, file: Path, reaches: bool
):
    wanted = await undisturbed(featurestore_url, file)
    with Complaints():
        async with Proxy(featurestore_url) as proxy, opened(proxy.url) as store:
            # The first COMMIT of this call that ends a transaction that wrote something.
            wrote = False

            def hook(message: Message) -> Do:
                nonlocal wrote
                wrote = wrote or message.kind == "CopyData"
                if reaches and wrote and message.is_commit_answer:
                    return Do.CUT
                if not reaches and wrote and message.is_commit:
                    return Do.CUT
                return Do.FORWARD

            proxy.on_message = hook
            with pytest.raises(fs.StoreUnavailableError, match="not known") as caught:
                await store.ingest(NAME, file, **OPTIONS)
            is_unavailable(caught.value)
            proxy.forward()
            assert (await state(store)).empty != reaches
            await settle_down(store, wanted, file, "COMMIT")


@postgresql
async def test_a_cancelled_call_waits_for_the_answer_to_its_commit(
    featurestore_url: str, file: Path
):
    """The answer is late; the cancellation comes before it."""
    with Complaints():
        async with Proxy(featurestore_url) as proxy, opened(proxy.url) as store:
            answer = asyncio.Event()
            waiting = asyncio.Event()
            wrote = False

            async def hook(message: Message) -> Do:
                nonlocal wrote
                wrote = wrote or message.kind == "CopyData"
                if wrote and message.is_commit_answer:
                    waiting.set()
                    await answer.wait()
                return Do.FORWARD

            proxy.on_message = hook
            loading = asyncio.create_task(store.ingest(NAME, file, **OPTIONS))
            await waiting.wait()
            for _ in range(3):
                loading.cancel()
                await asyncio.sleep(0.02)
                assert not loading.done()
            answer.set()
            await asyncio.wait([loading])
            assert loading.cancelled()
            assert (await store.ingest(NAME, file)).loads[0].skipped


# --- stalled ----------------------------------------------------------------------------------


class StallAt:
    """A hook that stalls everything from one of these on: the tenth Parse, the fourth piece of a
    COPY, its end, the COMMIT after it. Requests to cancel stall as well."""

    def __init__(self, kind: str) -> None:
        self.stalled = asyncio.Event()
        self._kind = kind
        self._left = {"Parse": 10, "CopyData": 4, "CopyDone": 1, "COMMIT": 1}[kind]
        self._copied = False

    def __call__(self, message: Message) -> Do:
        self._copied = self._copied or message.kind == "CopyDone"
        if self._kind == "COMMIT":
            self._left -= self._copied and message.is_commit
        else:
            self._left -= message.to_server and message.kind == self._kind
        if self._left <= 0:
            self.stalled.set()
        return Do.STALL if self.stalled.is_set() else Do.FORWARD


@pytest.mark.slow
@postgresql
@pytest.mark.parametrize("how", [by_task, by_timeout, by_scope])
async def test_calls_on_connections_that_stall_can_be_cancelled(
    featurestore_url: str, file: Path, how: How
):
    """Nothing answers any more. They end within seconds all the same, without an answer."""
    wanted = await undisturbed(featurestore_url, file)

    async def one(kind: str) -> None:
        async with Proxy(featurestore_url) as proxy, opened(proxy.url) as store:
            proxy.on_message = hook = StallAt(kind)

            async def when() -> None:
                await hook.stalled.wait()
                await asyncio.sleep(0.1)
                if kind == "COMMIT":  # its answer is waited for until the connection is lost
                    asyncio.get_running_loop().call_later(0.5, proxy.cut)

            async with asyncio.timeout(30):
                await how(store.ingest(NAME, file, **OPTIONS), when)
            assert checked_out(store) == 0
            proxy.forward()
            proxy.cut()
            await settle_down(store, wanted, file, f"stalled at {kind}")

    with Complaints():
        await asyncio.gather(*map(one, ("Parse", "CopyData", "CopyDone", "COMMIT")))


# --- the server -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server() -> RestartableServer:
    with RestartableServer() as server:
        server.create_database("faults")
        yield server


async def restart(server: RestartableServer, url: str) -> None:
    await asyncio.to_thread(server.restart)


async def crash(server: RestartableServer, url: str) -> None:
    """A backend dies by a signal: the server ends all others and recovers."""
    await asyncio.to_thread(server.kill_backend, "faults")


@pytest.mark.parametrize("how", [restart, crash])
async def test_a_server_that_restarts_in_the_middle_of_a_load(
    own_server: RestartableServer,
    file: Path,
    large: Path,
    how: Callable[[RestartableServer, str], Awaitable[None]],
):
    url = own_server.url("faults")
    wanted = await undisturbed(url, file)
    with Complaints():
        async with Proxy(url) as proxy, opened(proxy.url) as store:
            going: list[asyncio.Task[None]] = []

            def hook(message: Message) -> Do:
                if message.kind == "CopyData" and not going:
                    going.append(asyncio.create_task(how(own_server, url)))
                return Do.FORWARD

            proxy.on_message = hook
            with pytest.raises(fs.StoreUnavailableError) as caught:
                await store.ingest(NAME, large, **OPTIONS)
            is_unavailable(caught.value)
            await going[0]
            proxy.forward()
            # Each pooled connection is found to be dead once, at most.
            for _ in range(3):
                try:
                    await store.loads()
                except fs.StoreUnavailableError:
                    await asyncio.sleep(0.1)
            await settle_down(store, wanted, file, "restarted")


@postgresql
async def test_a_server_that_refuses_new_connections(featurestore_url: str, file: Path):
    with Complaints():
        async with Proxy(featurestore_url) as proxy:
            proxy.refuses = True
            async with fs.FeatureStore(proxy.url) as store:
                with pytest.raises(fs.StoreUnavailableError) as caught:
                    await store.ingest(NAME, file)
                is_unavailable(caught.value)


# --- the command line -------------------------------------------------------------------------


@postgresql
@pytest.mark.parametrize("at", ["CopyData", "COMMIT"])
async def test_the_command_line_says_it_in_one_line(
    featurestore_url: str, file: Path, tmp_path: Path, at: str
):
    async with opened(featurestore_url, "default") as store:
        await store.apply([VIEW])
    async with Proxy(featurestore_url) as proxy:
        copied = False

        def hook(message: Message) -> Do:
            nonlocal copied
            copied = copied or message.kind == "CopyData"
            cut = message.is_commit_answer if at == "COMMIT" else message.kind == at
            return Do.CUT if copied and cut else Do.FORWARD

        proxy.on_message = hook
        url = proxy.url

        def run() -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "featurestore.cli", "ingest", NAME, str(file)]
            return subprocess.run(
                [*command, "--on-invalid", "quarantine"],
                env=os.environ | {"FEATURESTORE_URL": url},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
            )

        done = await asyncio.to_thread(run)
    assert done.returncode == 1, done
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if "rows" not in line]
    assert "127.0.0.1" in line
    assert "secret" not in line
    assert ("not known" if at == "COMMIT" else "again may help") in line
