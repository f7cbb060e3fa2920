"""Every test of this folder runs on SQLite and on PostgreSQL, or with ``--pgbouncer`` on PostgreSQL
behind PgBouncer.

Making a database takes longer than most of these tests, so the tests of a module share one, and
each has a project of its own in it: projects share a database and nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest

import featurestore as fs
from featurestore.testing import PostgresServer

DATABASES = ("sqlite", "postgresql")

OpenStore = Callable[..., Awaitable["fs.FeatureStore"]]

_PROJECTS = itertools.count(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database_url" in metafunc.fixturenames:
        pooled = metafunc.config.getoption("--pgbouncer")
        databases: Sequence[Any] = DATABASES
        if pooled:
            databases = [pytest.param("pgbouncer", marks=pytest.mark.pgbouncer)]
        metafunc.parametrize("database_url", databases, indirect=True, scope="module")


@pytest.fixture(scope="module")
def database_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a database that the tests of a module share."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('conformance') / 'shared.db'}"
        asyncio.run(_migrate(url))
        yield url
        return
    server: PostgresServer = request.getfixturevalue("featurestore_postgres")
    name = f"conformance_{uuid4().hex[:12]}"
    server.create_database(name, request.getfixturevalue("featurestore_template"))
    if request.param == "pgbouncer":
        yield request.getfixturevalue("pgbouncer").url(name)
        left = []  # its connections are PgBouncer's
    else:
        yield server.url(name)
        left = server.activity(name)
    server.drop_database(name)
    assert not left, "the module's tests left connections open"


async def _migrate(url: str) -> None:
    async with fs.FeatureStore(url) as store:
        await store.apply([])


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[fs.FeatureStore]:
    """An entered store on a project of the test's own."""
    async with fs.FeatureStore(database_url, project=f"test_{next(_PROJECTS)}") as store:
        yield store
        checked_out = getattr(store.engine.pool, "checkedout", int)()
    assert checked_out == 0, "the test left connections checked out"


@pytest.fixture
async def open_store(store: fs.FeatureStore, database_url: str) -> AsyncIterator[OpenStore]:
    """Opens further stores on the project of ``store``: ``await open_store(clock_skew=…)``."""
    async with AsyncExitStack() as stack:

        async def opened(**options: Any) -> fs.FeatureStore:
            options = {"project": store.project} | options
            return await stack.enter_async_context(fs.FeatureStore(database_url, **options))

        yield opened
