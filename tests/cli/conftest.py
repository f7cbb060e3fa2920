"""Running the command line: in this process where that is enough, as a program where not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_helpers import Done, Run, command, driver_table

from featurestore.cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, empty; nothing of the developer's own environment shows through."""
    monkeypatch.chdir(tmp_path)
    for name in ("FEATURESTORE_URL", "FORCE_COLOR", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; `status` is what it must end with."""

    def run(*args: str | Path, status: int = 0) -> Done:
        capsys.readouterr()
        found = main([str(arg) for arg in args])
        done = Done(found, *capsys.readouterr())
        assert found == status, done
        return done

    return run


@pytest.fixture
def program(folder: Path) -> Run:
    """Run a command as a program of its own; `stdin` is text."""

    def program(*args: str | Path, status: int = 0, stdin: str = "", **env: str) -> Done:
        process = subprocess.run(
            command(*args),
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
            env=os.environ | env,
            cwd=folder,
        )
        done = Done(process.returncode, process.stdout, process.stderr)
        assert done.status == status, done
        return done

    return program


@pytest.fixture
def driver_stats(folder: Path) -> Path:
    """A Parquet file of drivers, `driver_stats.parquet`."""
    path = folder / "driver_stats.parquet"
    pq.write_table(driver_table(), path)
    return path


@pytest.fixture(scope="session")
def loaded_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it is after init, apply and ingest."""
    folder = tmp_path_factory.mktemp("loaded")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("FEATURESTORE_URL", raising=False)
        pq.write_table(driver_table(), "driver_stats.parquet")
        assert main(["init", "--from", "driver_stats.parquet"]) == 0
        assert main(["apply"]) == 0
        assert main(["ingest", "driver_stats"]) == 0
    return folder


@pytest.fixture
def loaded(folder: Path, loaded_once: Path) -> Path:
    """The working folder with `driver_stats` applied and its file ingested; the file."""
    shutil.copytree(loaded_once, folder, dirs_exist_ok=True)
    return folder / "driver_stats.parquet"
