"""Every test of this folder runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

import featurestore as fs

DATABASES = ("sqlite", "postgresql")

OpenStore = Callable[..., Awaitable["fs.FeatureStore"]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "featurestore_url" in metafunc.fixturenames:
        metafunc.parametrize("featurestore_url", DATABASES, indirect=True)


@pytest.fixture
def store(feature_store: fs.FeatureStore) -> fs.FeatureStore:
    """An entered store on a fresh database."""
    return feature_store


@pytest.fixture
async def open_store(store: fs.FeatureStore, featurestore_url: str) -> AsyncIterator[OpenStore]:
    """Opens further stores on the database of ``store``: ``await open_store(project="b")``."""
    async with AsyncExitStack() as stack:

        async def opened(**options: Any) -> fs.FeatureStore:
            return await stack.enter_async_context(fs.FeatureStore(featurestore_url, **options))

        yield opened
