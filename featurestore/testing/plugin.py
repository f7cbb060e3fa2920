"""pytest fixtures for code that uses a feature store, and for asyncio code at large.

pytest loads this module by itself wherever featurestore is installed; whoever asks for none of
it notices nothing.

Fixtures:

- `feature_store`: an entered `featurestore.FeatureStore` on a fresh database. Fails the test if
  it leaves a connection checked out.
- `featurestore_url`: the URL of a fresh database, SQLite by default. Fails the test if it leaves
  a connection to a PostgreSQL database open.
- `featurestore_postgres`: the run's PostgreSQL server (see `PostgresServer`), started on demand.
- `featurestore_template`: the name of a database on it that holds the store's tables.
- `loop_guard`: the `LoopGuard` that is active during the test.

The same test over both databases::

    @pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)
    async def test_push(feature_store):
        await feature_store.apply([driver_stats])

Options in the ini-file:

- `featurestore_loop_guard = true` guards every test, so that it fails when code in it blocks an
  event loop; without it, tests that use the fixture or the marker `loop_guard` are guarded.
- `featurestore_loop_guard_max_stall = 0.1`: seconds of CPU that one callback may take.
- `featurestore_loop_guard_allow`, `featurestore_loop_guard_forbid`: see `LoopGuard`; one a line.

Markers: `@pytest.mark.loop_guard(max_stall=0.5)` sets the limit for a test,
`@pytest.mark.allow_blocking` leaves a test unguarded.
"""

# Every pytest run in the environment imports this module: nothing heavier than pytest here.
from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from featurestore.testing import LoopGuard, PostgresServer

# A server takes a moment to notice that a client is gone.
_GRACE_SECONDS = 2.0
_POLL_SECONDS = 0.02

_ASYNC_PLUGINS = ("asyncio", "pytest_asyncio.plugin", "pytest_asyncio")


class _Watched:
    """A test's guard and how many of its findings have been reported."""

    def __init__(self, guard: LoopGuard) -> None:
        self.guard = guard
        self._reported = 0

    def news(self) -> str:
        """What was found since the last time, in words; empty if nothing."""
        first, self._reported = self._reported, len(self.guard.findings)
        return self.guard.describe(first)


_watched = pytest.StashKey[_Watched]()


# Options


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "featurestore_loop_guard",
        "fail each test whose code blocks an event loop",
        type="bool",
        default=False,
    )
    # Older versions of pytest, of people who don't use this, know no floats.
    number: Literal["float", "string"] = "float" if pytest.version_tuple >= (8, 4) else "string"
    parser.addini(
        "featurestore_loop_guard_max_stall",
        "seconds of CPU that one callback of a guarded loop may take",
        type=number,
        default=0.1,
    )
    parser.addini(
        "featurestore_loop_guard_allow",
        "functions below which a guarded loop may be blocked: end/of/path.py:function",
        type="linelist",
    )
    parser.addini(
        "featurestore_loop_guard_forbid",
        "further functions that block a loop: module:function or module:Class.method",
        type="linelist",
    )


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "loop_guard(max_stall): guard the test's event loops, one callback of which may take "
        "max_stall seconds of CPU (featurestore)",
        "allow_blocking: let the test block its event loop (featurestore)",
    ):
        config.addinivalue_line("markers", line)
    manager = config.pluginmanager
    if config.getini("featurestore_loop_guard"):
        manager.register(_GuardEveryTest(), "featurestore-loop-guard")
    manager.register(_store_fixtures(manager), "featurestore-store")


def _store_fixtures(manager: pytest.PytestPluginManager) -> object:
    """The plugin that has the fixture `feature_store`: pytest-asyncio has to run it."""
    if not any(manager.has_plugin(name) for name in _ASYNC_PLUGINS):
        return _WithoutAsyncio()
    from featurestore.testing import _store_fixture

    return _store_fixture


class _WithoutAsyncio:
    @pytest.fixture
    def feature_store(self) -> None:
        """An entered FeatureStore on a fresh database (needs pytest-asyncio)."""
        pytest.fail(
            "the fixture feature_store needs pytest-asyncio: pip install 'featurestore[testing]'",
            pytrace=False,
        )


# The guard of the event loop


class _GuardEveryTest:
    """Registered where the ini-file asks for it, so that no other run has an autouse fixture."""

    @pytest.fixture(autouse=True)
    def _featurestore_guard_every_test(self, loop_guard: LoopGuard) -> None:
        pass


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests with the marker `loop_guard` the fixture of that name."""
    for item in items:
        names: list[str] | None = getattr(item, "fixturenames", None)
        if (
            names is not None
            and "loop_guard" not in names
            and item.get_closest_marker("loop_guard")
        ):
            names.append("loop_guard")


@pytest.fixture
def loop_guard(request: pytest.FixtureRequest) -> Iterator[LoopGuard]:
    """The guard that fails this test when its code blocks an event loop.

    `loop_guard.worst_stall` is the CPU time in seconds of the longest callback so far. With the
    marker `allow_blocking` the guard is there but sleeps.
    """
    guard = _guard(request.node, request.config)
    if request.node.get_closest_marker("allow_blocking"):
        yield guard
        return
    watched = request.node.stash[_watched] = _Watched(guard)
    with guard:
        yield guard
    # The test itself has been judged: this is what the teardown of its fixtures did.
    if news := watched.news():
        pytest.fail(news, pytrace=False)


def _guard(item: pytest.Item, config: pytest.Config) -> LoopGuard:
    from featurestore.testing import LoopGuard

    marker = item.get_closest_marker("loop_guard")
    options: dict[str, Any] = dict(marker.kwargs) if marker else {}
    if marker and (marker.args or set(options) - {"max_stall"}):
        pytest.fail("the marker loop_guard takes max_stall=seconds and nothing else", pytrace=False)
    max_stall = options.get("max_stall", config.getini("featurestore_loop_guard_max_stall"))
    return LoopGuard(
        max_stall=float(max_stall),
        allow=tuple(config.getini("featurestore_loop_guard_allow")),
        forbid=tuple(config.getini("featurestore_loop_guard_forbid")),
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test in which the loop was blocked; add what was found to one that failed anyhow."""
    watched = item.stash.get(_watched, None)
    try:
        result = yield
    except BaseException:
        if watched is not None and (news := watched.news()):
            item.add_report_section("call", "loop guard", news)
        raise
    if watched is not None and (news := watched.news()):
        pytest.fail(news, pytrace=False)
    return result


# Databases


@pytest.fixture(scope="session")
def featurestore_postgres() -> Iterator[PostgresServer]:
    """The run's PostgreSQL server: one of its own, or that of FEATURESTORE_TEST_URL."""
    from featurestore.testing.postgres import PostgresServer, PostgresServerError

    try:
        with PostgresServer() as server:
            yield server
    except PostgresServerError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def featurestore_template(featurestore_postgres: PostgresServer) -> Iterator[str]:
    """The name of a database that holds the store's tables, for `CREATE DATABASE … TEMPLATE`."""
    name = _new_name("template")
    featurestore_postgres.create_database(name)
    try:
        _migrate(featurestore_postgres.url(name))
        yield name
    finally:
        featurestore_postgres.drop_database(name)


@pytest.fixture
def featurestore_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a database of this test's own: "sqlite" unless parametrized as "postgresql".

    A SQLite database is a file that is not there yet; a PostgreSQL one is a copy of
    `featurestore_template` and holds the store's tables. It is dropped after the test, which
    fails if connections to it are still open then.
    """
    kind = getattr(request, "param", "sqlite")
    if kind == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('featurestore') / 'featurestore.db'}"
    elif kind == "postgresql":
        yield from _postgresql_database(
            request.getfixturevalue("featurestore_postgres"),
            request.getfixturevalue("featurestore_template"),
        )
    else:
        pytest.fail(f"featurestore_url is 'sqlite' or 'postgresql', not {kind!r}", pytrace=False)


def _postgresql_database(server: PostgresServer, template: str) -> Iterator[str]:
    name = _new_name("test")
    server.create_database(name, template)
    try:
        yield server.url(name)
    finally:
        left = _left_open(server, name)
        server.drop_database(name)
    if left:
        pytest.fail(
            f"{len(left)} connections to the test's database are still open: close what opened "
            "them (await store.close(), engine.dispose())\n" + "\n".join(left),
            pytrace=False,
        )


def _left_open(server: PostgresServer, database: str) -> list[str]:
    deadline = time.monotonic() + _GRACE_SECONDS
    while (left := server.activity(database)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return left


def _migrate(url: str) -> None:
    """Make the store's tables in an empty database, on a loop in a thread of its own."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from featurestore import FeatureStore
    from featurestore.testing import allow_blocking

    async def apply_nothing() -> None:
        async with FeatureStore(url) as store:
            await store.apply([])

    def run() -> None:
        # It is done once, for whichever test comes first: none is to answer for it.
        with allow_blocking():
            asyncio.run(apply_nothing())

    with ThreadPoolExecutor(1, thread_name_prefix="featurestore-template") as pool:
        pool.submit(run).result()


def _new_name(kind: str) -> str:
    return f"featurestore_{kind}_{uuid4().hex[:16]}"
