"""The fixture `feature_store`; the plugin registers this module where pytest-asyncio is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from featurestore import FeatureStore

# What the test has just cancelled may need a moment to return its connection.
_GRACE_SECONDS = 2.0
_POLL_SECONDS = 0.01


# Decorated by pytest-asyncio, so that its strict mode runs it as well as its auto mode.
@pytest_asyncio.fixture
async def feature_store(featurestore_url: str) -> AsyncIterator[FeatureStore]:
    """An entered FeatureStore on a fresh database; fails if a connection stays checked out."""
    from featurestore import FeatureStore

    async with FeatureStore(featurestore_url) as store:
        yield store
        left = await _left_checked_out(store.engine.pool)
    if left:
        pytest.fail(
            f"{left} connections of the store were still checked out at the end of the test",
            pytrace=False,
        )


async def _left_checked_out(pool: Any) -> int:
    checked_out = getattr(pool, "checkedout", None)
    if checked_out is None:  # NullPool and StaticPool don't count
        return 0
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _GRACE_SECONDS
    while (left := int(checked_out())) and loop.time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_SECONDS)
    return left
