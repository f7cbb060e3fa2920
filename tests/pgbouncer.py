"""PgBouncer between tests and PostgreSQL: a server of its own, in transaction mode.

It has fewer connections to PostgreSQL than a store's pool has to it, and takes them in turn: what
a store runs in two transactions, or outside of one, is run by two servers sooner or later.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import pytest

from featurestore import testing
from featurestore.testing import PostgresServer
from featurestore.testing._programs import environment, private_folder, server_account

SERVERS = 3
"""Connections to PostgreSQL for each database; a store's pool has ten."""

NO_STATEMENTS = "prepared_statement_cache_size=0"
"""What the URL of a store behind it says."""

WHERE_TO_GET_IT = (
    "PgBouncer is not on this machine, so nothing was tested behind it: "
    "as root, `apt-get install pgbouncer` (bash .ci/run does that by itself)"
)

_SECONDS = 20.0
_PORT_ATTEMPTS = 5
_SUPERVISOR = Path(testing.__file__).with_name("_supervisor.py")


def program() -> str | None:
    """Where PgBouncer is, if anywhere: Debian puts it where a user's path does not lead."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which("pgbouncer", path=path)


def program_or_skip(config: pytest.Config) -> str:
    """PgBouncer's program; a test that lacks it is skipped, or fails with ``--pgbouncer``."""
    found = program()
    if found is None:
        stop = pytest.fail if config.getoption("--pgbouncer") else pytest.skip
        stop(WHERE_TO_GET_IT)
    return found


class PgBouncer:
    """PgBouncer in front of a PostgreSQL server, as long as a ``with`` block lasts."""

    def __init__(self, program: str, server: PostgresServer, **settings: str) -> None:
        self._program = program
        self._server = server
        self._settings = settings
        self._account = server_account()
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def url(self, database: str, query: str = NO_STATEMENTS) -> str:
        """The URL of one of the server's databases, through PgBouncer."""
        user = urlsplit(self._server.url(database)).username
        return f"postgresql://{user}@127.0.0.1:{self._port}/{database}?{query}".rstrip("?")

    def __enter__(self) -> Self:
        self._folder = private_folder(self._account)
        try:
            for _ in range(_PORT_ATTEMPTS):
                if self._starts():
                    return self
            raise AssertionError(f"PgBouncer did not start:\n{self.log()}")
        except BaseException:
            self._close()
            raise

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def log(self) -> str:
        """What it has said so far."""
        return (self._folder / "pgbouncer.log").read_text(errors="replace")

    def _starts(self) -> bool:
        self._port = _free_port()
        settings = self._folder / "pgbouncer.ini"
        settings.touch(mode=0o600)
        settings.write_text(self._configuration())
        if self._account is not None:
            os.chown(settings, self._account.uid, self._account.gid)
        with (self._folder / "pgbouncer.log").open("wb") as log:
            self._process = process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SUPERVISOR), json.dumps(self._plan(settings))],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,
            )
        deadline = time.monotonic() + _SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                return "process up" in self.log()
            time.sleep(0.02)
        self._stop()
        return False

    def _plan(self, settings: Path) -> dict[str, Any]:
        account = self._account
        return {
            "folder": str(self._folder),
            "account": [account.uid, account.gid] if account else None,
            "commands": [[self._program, str(settings)]],
            "stop_seconds": 1.0,  # asked nicely, it waits for its clients
        }

    def _configuration(self) -> str:
        parts = urlsplit(self._server.url())
        password = f" password={unquote(parts.password)}" if parts.password else ""
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self._port),
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": str(SERVERS),
            "server_round_robin": "1",
            "max_client_conn": "500",
            "query_wait_timeout": "60",
            **self._settings,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        target = f"* = host={parts.hostname} port={parts.port or 5432} user={parts.username}"
        return "\n".join(["[databases]", target + password, "[pgbouncer]", *lines, ""])

    def _close(self) -> None:
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()  # the supervisor waits for just that
            process.wait(_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
