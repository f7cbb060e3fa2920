"""A server to ask: its application in this process, in uvicorn here, or as a program of its own."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import httpx
from sqlalchemy import make_url

import featurestore as fs
from featurestore.server import ServerLimits, create_app
from featurestore.server.running import Serving, bind, serve

SECONDS = 30.0
DAY = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
HISTORY = "default__drivers__history"

DRIVER = fs.Entity("driver", join_keys={"driver_id": fs.Int64})
DRIVERS = fs.FeatureView(
    "drivers",
    entities=[DRIVER],
    fields=[fs.Field("rate", fs.Float64), fs.Field("city", fs.String)],
    timestamp_field="at",
)
ONLINE = "/v1/online-features"
PUSH = "/v1/views/drivers/rows"
HISTORICAL = "/v1/historical-features"
ARROW = "application/vnd.apache.arrow.stream"


def row(driver_id: int, rate: float | None = 0.5, **more: Any) -> dict[str, Any]:
    """A row of `drivers` as JSON has it."""
    return {"driver_id": driver_id, "at": DAY.isoformat(), "rate": rate, "city": "Oslo"} | more


def asked(*drivers: int, features: Any = ("drivers:rate",)) -> dict[str, Any]:
    """A request for features of drivers."""
    return {
        "features": features if isinstance(features, str) else list(features),
        "entities": [{"driver_id": driver} for driver in drivers],
    }


@asynccontextmanager
async def client_of(
    store: fs.FeatureStore, *, auth: Any = "if-keys", limits: ServerLimits | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, without a network between them."""
    app = create_app(store, auth=auth, limits=limits or ServerLimits())
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        client.state = app.state.server  # type: ignore[attr-defined]
        yield client


@asynccontextmanager
async def listening(
    url: str, limits: ServerLimits | None = None, *, auth: Any = "if-keys"
) -> AsyncIterator[int]:
    """The server in uvicorn, on this loop; its port."""
    bound = bind(("127.0.0.1", 0), socket.AF_INET, shared=False)
    port: int = bound.getsockname()[1]
    started = asyncio.Event()
    made: list[Any] = []
    serving = Serving(url, "default", auth, limits or ServerLimits())
    task = asyncio.create_task(serve(serving, bound, started.set, on_made=made.append))
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    try:
        yield port
    finally:
        waiting.cancel()
        for server in made:
            server.end()
        await task


def path_of(url: str) -> str:
    """The file of a SQLite database."""
    return make_url(url).database or ""


@contextmanager
def held(url: str) -> Iterator[None]:
    """Somebody else writes to the SQLite database: other writers wait. Not for a loop."""
    database = sqlite3.connect(path_of(url), isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        database.close()


@asynccontextmanager
async def held_aside(url: str) -> AsyncIterator[None]:
    """:func:`held`, for a loop."""
    with contextlib.ExitStack() as stack:
        # One thread for both: sqlite3's connections stay in theirs.
        database = await asyncio.to_thread(
            sqlite3.connect, path_of(url), isolation_level=None, check_same_thread=False
        )
        stack.callback(database.close)
        await asyncio.to_thread(database.execute, "BEGIN IMMEDIATE")
        yield
        await asyncio.to_thread(database.execute, "ROLLBACK")


def rows_in(url: str, table: str = HISTORY) -> int:
    """How many rows a table of the SQLite database has."""
    with contextlib.closing(sqlite3.connect(path_of(url))) as database:
        (count,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
    return int(count)


class Program:
    """`featurestore serve` as a program. Ends with the block, killed where it must be."""

    def __init__(self, url: str, *args: str) -> None:
        self._command = [sys.executable, "-m", "featurestore.cli", "serve", "--port", "0"]
        self._command += ["--json", "--url", url, *args]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, self.process.communicate(timeout=SECONDS)[1]
            text += line
        self.url: str = json.loads(text)["url"]
        self.port = int(self.url.rpartition(":")[2])
        return self

    def __exit__(self, *raised: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate(timeout=SECONDS)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self) -> tuple[int, str]:
        """Its exit status and what it said."""
        _, said = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, said

    def children(self) -> list[int]:
        """The numbers of its workers' processes."""
        path = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        with open(path, encoding="ascii") as file:
            return [int(number) for number in file.read().split()]

    def refuses(self) -> bool:
        """Whether nobody listens on its port any more."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except ConnectionError:
            return True
        return False


def wait_until(condition: Any, seconds: float = SECONDS) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
