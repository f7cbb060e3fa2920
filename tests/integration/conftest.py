"""What several of these files share."""

from __future__ import annotations

from collections.abc import Iterator

import faults
import pytest
from loading import Loader, loader


def pytest_configure(config: pytest.Config) -> None:
    faults.ALL_POINTS = config.getoption("--all-points")


@pytest.fixture(scope="session")
def child() -> Iterator[Loader]:
    """A process that has imported everything, and loads files in forks of itself."""
    with loader() as ready:
        yield ready
