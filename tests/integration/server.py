"""A PostgreSQL server that tests may restart and break: not the one that others use."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import asyncpg

from featurestore.testing import PostgresServer

_SECONDS = 30.0


class RestartableServer(PostgresServer):
    """As :class:`PostgresServer`, always a server of its own, and one that keeps what it said it
    had committed when its processes are killed."""

    def __init__(self, **settings: str) -> None:
        super().__init__(settings={"synchronous_commit": "on", **settings})
        self._outer_url = None

    def _supervise(self, binaries: Path, folder: Path, account: Any, port: int) -> Any:
        self._again = (binaries, folder, account, port)
        return super()._supervise(binaries, folder, account, port)

    @property
    def data(self) -> Path:
        """Where its files are."""
        return self._again[1] / "data"

    def restart(self) -> None:
        """What `pg_ctl restart -m immediate` does: all stops at once, and recovers."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """Stop it at once; nobody can connect until :meth:`start`."""
        postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGQUIT)
        assert self._process is not None
        # Its supervisor ends with it.
        self._process.wait(_SECONDS)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def start(self) -> None:
        """Start it on the files that are there, on its port."""
        binaries, folder, account, port = self._again
        self._process = super()._supervise(binaries, folder, account, port)
        deadline = time.monotonic() + _SECONDS
        assert self._ready(self._process, port, folder / "data", deadline)

    def kill_backend(self, database: str) -> None:
        """Kill a busy backend with signal 9; wait until the server has recovered."""
        lines = [line for line in self.activity(database) if " idle: " not in line]
        os.kill(int(lines[0].split()[0]), signal.SIGKILL)
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                asyncio.run(_ping(self.url(database)))
            except (OSError, asyncpg.PostgresError):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                return


async def _ping(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("SELECT 1")
    await connection.close()
