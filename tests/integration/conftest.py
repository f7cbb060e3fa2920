"""What several of these files share."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from faults import SmallDisk
from loading import Loader, loader


def pytest_configure(config: pytest.Config) -> None:
    faults.ALL_POINTS = config.getoption("--all-points")


@pytest.fixture(scope="session")
def child() -> Iterator[Loader]:
    """A process that has imported everything, and loads files in forks of itself."""
    with loader() as ready:
        yield ready


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    folder = Path("/tmp") / f"featurestore-small-disk-{os.getpid()}"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=777", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        folder.rmdir()
        pytest.skip("only root may mount a small file system; the tests of limits stand in for it")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()
