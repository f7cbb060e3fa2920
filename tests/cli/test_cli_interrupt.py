"""Ctrl-C: one line says what was kept and how to go on, and that is how it is."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
import pyarrow.parquet as pq
import pytest
from cli_helpers import Run, command, many_rows
from cli_terminal import SECONDS, Terminal
from sqlalchemy import make_url

both = pytest.mark.parametrize("featurestore_url", ["sqlite", "postgresql"], indirect=True)
server_only = pytest.mark.parametrize("featurestore_url", ["postgresql"], indirect=True)

SMALL, LARGE = 20_000, 400_000
HISTORY, ONLINE = "default__drivers__history", "default__drivers__online"


@pytest.fixture
def data(run: Run, folder: Path, featurestore_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `data`, source of the view `drivers`, with one file in it."""
    monkeypatch.setenv("FEATURESTORE_URL", featurestore_url)
    (folder / "data").mkdir()
    pq.write_table(many_rows(SMALL), folder / "data" / "a.parquet")
    run("init", "--from", "data", "--view", "drivers")
    run("apply")
    return folder / "data"


@pytest.fixture
def large(data: Path) -> Path:
    """A file that takes seconds to load, of which a signal needs one."""
    pq.write_table(many_rows(LARGE, first=SMALL), data / "b.parquet", row_group_size=65_536)
    return data / "b.parquet"


@contextmanager
def locked(url: str, table: str, mode: str) -> Iterator[None]:
    """Somebody else has the table: who wants to write to it waits."""
    if url.startswith("sqlite"):
        database = sqlite3.connect(make_url(url).database or "", isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            database.close()
        return
    with asyncio.Runner() as runner:

        async def connect() -> Any:
            connection = await asyncpg.connect(url)
            await connection.execute(f"BEGIN; LOCK TABLE {table} IN {mode} MODE")
            return connection

        connection = runner.run(connect())
        try:
            yield
        finally:
            runner.run(connection.close())


def rows_loaded(run: Run) -> int:
    rows: int = run("status", "--json").json["views"][0]["rows"]
    return rows


@both
def test_of_several_files_it_says_how_many_were_kept(large: Path, run: Run) -> None:
    with subprocess.Popen(
        command("ingest", "drivers"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert f"a.parquet (1 of 2): {SMALL:,} rows" in first
    assert process.returncode == 130
    assert out == ""
    assert err == "Interrupted: 1 of 2 files kept; run it again to go on.\n"
    assert rows_loaded(run) == SMALL
    assert len(run("loads", "--json").json) == 1

    done = run("ingest", "drivers", "--json").json
    assert [load["skipped"] for load in done["loads"]] == [True, False]
    assert rows_loaded(run) == SMALL + LARGE


@both
def test_of_one_file_nothing_is_kept(large: Path, run: Run) -> None:
    with Terminal("ingest", "drivers", large) as terminal:
        terminal.until(r"[1-9]\d*%")
        terminal.press_ctrl_c()
        assert terminal.end() == (130, "")
    assert terminal.last_line == "Interrupted: nothing was kept; run it again to start over."
    assert terminal.drawn.endswith("\x1b[?25h\r\x1b[1A\x1b[2K" + terminal.last_line + "\r\n")
    assert rows_loaded(run) == 0
    assert run("loads", "--json").json == []


@both
def test_in_steps_the_rows_committed_are_kept(large: Path, run: Run) -> None:
    step = ("--commit-every", "50k")
    with subprocess.Popen(
        command("ingest", "drivers", large, *step), stderr=subprocess.PIPE, text=True
    ) as process:
        while not run("loads", "--json").json:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    (load,) = run("loads", "--json").json
    kept = load["rows_read"]
    assert (load["complete"], load["rows_total"], kept % 50_000) == (False, LARGE, 0)
    assert 0 < kept < LARGE
    assert err == f"Interrupted: {kept:,} of {LARGE:,} rows kept; run it again to go on.\n"
    assert rows_loaded(run) == kept

    shown = run("loads")
    assert shown.out.splitlines()[1].endswith(f"  part of {LARGE:,}")
    assert shown.err == (
        f"Load {load['load_id']} has {kept:,} of {LARGE:,} rows: ingest the file again to go on, "
        f"or featurestore undo {load['load_id']}.\n"
    )
    done = run("ingest", "drivers", large, *step)
    assert done.out.splitlines()[1].endswith(f"  from row {kept:,}")
    assert rows_loaded(run) == LARGE
    assert run("loads").err == ""


@both
def test_forced_steps_are_not_gone_on_with(large: Path, run: Run) -> None:
    """Once more with --force would begin anew and leave the part where it is."""
    with subprocess.Popen(
        command("ingest", "drivers", large, "--commit-every", "30k", "--force"),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not run("loads", "--json").json:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
    (load,) = run("loads", "--json").json
    rows = f"{load['rows_read']:,} of {LARGE:,} rows kept"
    assert err == f"Interrupted: {rows}; featurestore undo {load['load_id']} takes the part out.\n"
    run("undo", load["load_id"])
    assert rows_loaded(run) == 0


@both
def test_while_a_load_is_finishing(large: Path, run: Run, featurestore_url: str) -> None:
    """The database is busy on its own then: on PostgreSQL it waits for a lock."""
    with contextlib.ExitStack() as stack:
        if featurestore_url.startswith("postgresql"):
            stack.enter_context(locked(featurestore_url, ONLINE, "SHARE"))
        with Terminal("ingest", "drivers", large) as terminal:
            terminal.until("finishing")
            terminal.press_ctrl_c()
            assert terminal.end() == (130, "")
    assert terminal.last_line == "Interrupted: nothing was kept; run it again to start over."
    assert rows_loaded(run) == 0


@both
def test_before_a_load_has_begun(data: Path, run: Run, featurestore_url: str) -> None:
    held = locked(featurestore_url, HISTORY, "ACCESS EXCLUSIVE")
    with held, Terminal("ingest", "drivers") as terminal:
        terminal.until("a.parquet .* starting")
        terminal.press_ctrl_c()
        assert terminal.end() == (130, "")
    assert terminal.last_line == "Interrupted before anything was loaded; run it again."
    assert run("loads", "--json").json == []


@both
def test_ctrl_c_twice_at_once(large: Path, run: Run) -> None:
    with Terminal("ingest", "drivers", large) as terminal:
        terminal.until(r"[1-9]\d*%")
        terminal.press_ctrl_c()
        terminal.press_ctrl_c()
        status, out = terminal.end()
    assert (status, out) == (130, "")
    assert terminal.last_line.startswith("Interrupted")
    assert "\x1b[?25h" in terminal.drawn  # the cursor is back
    assert "Traceback" not in terminal.drawn
    run("ingest", "drivers", large)
    assert rows_loaded(run) == LARGE


class Relay:
    """Passes bytes on between clients and a server, until it stalls: then it only listens."""

    def __init__(self, host: str, port: int) -> None:
        self.passed = 0
        self._server = (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._stalled = threading.Event()
        self._sockets = [self._listening]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stall()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # threads may still read from it
            one.close()

    def stall(self) -> None:
        self._stalled.set()

    def _accept(self) -> None:
        while not self._stalled.is_set():
            try:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._server)
            except OSError:
                return
            self._sockets += [client, server]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if self._stalled.is_set():
                    return
                target.sendall(data)
                self.passed += len(data)
            target.shutdown(socket.SHUT_WR)


@server_only
def test_a_second_ctrl_c_does_not_wait(large: Path, run: Run, featurestore_url: str) -> None:
    """A network that is gone keeps the first one waiting; it says so after a moment."""
    url = make_url(featurestore_url)
    with Relay(url.host or "", url.port or 0) as relay:
        through = url.set(host="127.0.0.1", port=relay.port).render_as_string(hide_password=False)
        with subprocess.Popen(
            command("ingest", "drivers", large, "--url", through), stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            while relay.passed < 4_000_000:
                assert process.poll() is None
                time.sleep(0.01)
            relay.stall()
            process.send_signal(signal.SIGINT)
            assert process.stderr.readline() == "Stopping; Ctrl-C again ends it at once.\n"
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert err == "Interrupted again, ended at once: featurestore loads shows what was kept.\n"
    assert run("loads", "--json").json == []


def test_ctrl_c_before_anything_was_done() -> None:
    """While a program reads its standard input, no loop runs yet."""
    with subprocess.Popen(
        command("push", "drivers"), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while not _reads_stdin(process.pid):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        assert process.wait(timeout=30) == 130
    assert err.strip() == "Interrupted."


def _reads_stdin(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/syscall").read_text().startswith("0 0x0 ")
    except OSError:
        pytest.skip("this system does not say what a program waits for")


def test_ctrl_c_while_the_program_starts() -> None:
    """Most of a start is importing, and Ctrl-C within it no reason for a traceback."""
    program = Path(sys.executable).with_name("featurestore")
    with subprocess.Popen([program, "status"], stderr=subprocess.PIPE, text=True) as process:
        while not _has_loaded(process.pid, "site-packages"):
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 130
    assert err == "Interrupted.\n"


def _has_loaded(pid: int, library: str) -> bool:
    try:
        return library in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        pytest.skip("this system does not say what a program has loaded")
