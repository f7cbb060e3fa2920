"""What is installed from the wheel works by itself, far from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import featurestore as fs
from featurestore.storage.tables import SCHEMA_REVISION

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = "Scripts" if os.name == "nt" else "bin"

# Of the developer's own environment, nothing that would lead back to it.
LEFT_OUT = ("FEATURESTORE_URL", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")

pytestmark = pytest.mark.slow


def uv() -> str:
    """The program uv: `uv run` names itself in UV."""
    found = os.environ.get("UV") or shutil.which("uv")
    if found is None:
        pytest.fail("uv is neither on PATH nor named by UV: run the tests by `uv run pytest`.")
    return found


def run(command: Sequence[str | Path], folder: Path, **more: str) -> str:
    """Run a program and return its standard output; its failure is the test's."""
    environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    done = subprocess.run(
        list(command),
        cwd=folder,
        env=environment | more,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel and what it needs, and an empty folder to work in."""

    environment: Path
    folder: Path

    def python(self, code: str, *arguments: str) -> str:
        program = self.environment / SCRIPTS / "python"
        return run([program, "-W", "error", "-c", code, *arguments], self.folder)

    def featurestore(self, *arguments: str) -> str:
        return run([self.environment / SCRIPTS / "featurestore", *arguments], self.folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    run([uv(), "build", "--wheel", "--out-dir", target, ROOT], target)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    base = tmp_path_factory.mktemp("installed")
    environment, folder = base / "environment", base / "folder"
    folder.mkdir()
    run([uv(), "venv", "--python", sys.executable, environment], base)
    run([uv(), "pip", "install", "--python", environment, wheel], base)
    return Installed(environment, folder)


@pytest.fixture
def postgresql_url(featurestore_postgres: Any) -> Iterator[str]:
    """An empty database."""
    name = f"wheel_{uuid4().hex[:16]}"
    featurestore_postgres.create_database(name)
    yield featurestore_postgres.url(name)
    featurestore_postgres.drop_database(name)


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def sources(folder: Path) -> list[Path]:
    """Files as they are in a checkout, without what running them leaves."""
    kinds = {".py", ".typed", ".mako", ".md"}
    return [path for path in folder.rglob("*") if path.suffix in kinds]


def test_the_wheel_holds_the_package_the_revisions_and_the_example(wheel: Path):
    names = names_in(wheel)
    for source, target in (
        ("featurestore", "featurestore"),
        ("alembic", "featurestore/_alembic"),
        ("examples/flights", "featurestore/_examples/flights"),
    ):
        for path in sources(ROOT / source):
            assert f"{target}/{path.relative_to(ROOT / source).as_posix()}" in names
    assert "featurestore/py.typed" in names
    assert "featurestore/_alembic/alembic.ini" in names


def test_the_wheel_holds_nothing_else(wheel: Path):
    assert {name.split("/")[0] for name in names_in(wheel)} == {
        "featurestore",
        "featurestore_program.py",
        f"featurestore-{fs.__version__}.dist-info",
    }
    left = [name for name in names_in(wheel) if name.endswith((".pyc", ".db", ".so"))]
    assert left == []


def test_the_licence_and_the_readme_come_along(wheel: Path):
    about = f"featurestore-{fs.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"{about}/METADATA").decode()
        licence = archive.read(f"{about}/licenses/LICENSE").decode()
    assert (ROOT / "README.md").read_text(encoding="utf-8").strip() in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "Apache License" in licence


def test_the_command_says_its_version(installed: Installed):
    assert installed.featurestore("--version").split() == ["featurestore", fs.__version__]


def test_it_is_the_installed_package_and_alembic_is_alembic(installed: Installed):
    for module in ("featurestore", "alembic", "alembic.command"):
        out = installed.python(f"import {module} as module; print(module.__file__)")
        assert Path(out.strip()).resolve().is_relative_to(installed.environment.resolve())


MIGRATE = """
import asyncio, sys
import featurestore as fs

async def main():
    async with fs.FeatureStore(sys.argv[1]) as store:
        print(*await store.migrate())
        print(*await store.migrate())

asyncio.run(main())
"""


def test_it_migrates_an_empty_sqlite_database(installed: Installed, tmp_path: Path):
    out = installed.python(MIGRATE, f"sqlite:///{tmp_path / 'new.db'}")
    assert out.split() == ["None", SCHEMA_REVISION, SCHEMA_REVISION, SCHEMA_REVISION]


def test_it_migrates_an_empty_postgresql_database(installed: Installed, postgresql_url: str):
    out = installed.python(MIGRATE, postgresql_url)
    assert out.split() == ["None", SCHEMA_REVISION, SCHEMA_REVISION, SCHEMA_REVISION]


def test_from_nothing_to_features_online_by_the_command(installed: Installed, tmp_path: Path):
    """No test library, no pandas: what a plain `pip install featurestore` brings is enough."""
    installed.featurestore("init")
    database = ("--url", f"sqlite:///{tmp_path / 'new.db'}")
    installed.featurestore("apply", *database)
    assert installed.featurestore("status", *database)
    assert not (installed.folder / "featurestore.db").exists()
