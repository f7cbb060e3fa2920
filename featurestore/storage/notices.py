"""What writers tell the caches of other processes, by PostgreSQL's NOTIFY, and who hears it.

A message goes out with the commit of the write that it tells of. It names a view, and the keys
where they are few; without a view it means all of a project.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from featurestore.errors import FeatureStoreError
from featurestore.storage import tables
from featurestore.storage.engine import Database
from featurestore.storage.faults import translated
from featurestore.storage.session import Session
from featurestore.storage.waiting import opened, uninterrupted
from featurestore.types import Bool, FeatureType, Int32, Int64, String

MOST_KEYS = 8
"""A message names so many keys at the most; of more it says that the view has changed."""

MOST_BYTES = 7_000
"""PostgreSQL takes less than 8,000."""

CHECK_SECONDS = 30.0
"""How often a listener on a connection without news asks whether its server is still there."""

ANSWER_SECONDS = 10.0
CLOSE_SECONDS = 2.0
FIRST_PAUSE = 0.1
LAST_PAUSE = 30.0

_PLAIN = (Bool, Int32, Int64, String)
"""Types of keys that are the same in JSON."""


@dataclass(frozen=True)
class Notice:
    """What writers to one view tell: the ``channel`` of its project, and its name."""

    channel: str
    view: str
    types: tuple[FeatureType, ...]

    def text(self, keys: Iterable[Sequence[Any]] | None = None) -> str:
        """The message that rows of these keys have changed; None: any may have."""
        if keys is not None and all(kind in _PLAIN for kind in self.types):
            few = _few(keys)
            if few is not None:
                text = json.dumps({"view": self.view, "keys": few}, ensure_ascii=False)
                if len(text.encode()) <= MOST_BYTES:
                    return text
        return json.dumps({"view": self.view})


def notice(project: str, view: str, keys: Mapping[str, FeatureType]) -> Notice:
    """What writers to a view of these join keys tell."""
    return Notice(channel_of(project), view, tuple(keys.values()))


def channel_of(project: str) -> str:
    """The channel of a project; its name is too short to be cut."""
    return f"featurestore_{project}"


def _few(keys: Iterable[Sequence[Any]]) -> list[Sequence[Any]] | None:
    different: dict[Sequence[Any], None] = {}
    for key in keys:
        different[key] = None
        if len(different) > MOST_KEYS:
            return None
    return list(different)


def understood(text: str) -> tuple[str | None, list[tuple[Any, ...]] | None]:
    """The view and the keys of a message, as :data:`Heard` takes them.

    Anybody may send what is none: it counts for all of the project, or of the view that it names.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None, None
    view = said.get("view") if isinstance(said, dict) else None
    if not isinstance(view, str):
        return None, None
    keys = said.get("keys")
    if not isinstance(keys, list) or not all(map(_is_key, keys)):
        return view, None
    return view, [tuple(key) for key in keys]


def _is_key(said: Any) -> bool:
    return isinstance(said, list) and all(isinstance(value, str | int) for value in said)


# --- telling ------------------------------------------------------------------------------


async def tell(session: Session, said: Notice) -> None:
    """Tell with the commit of the session that any row of the view may have changed."""
    if session.dialect.notifies:
        await session.execute(sa.select(sending(said.channel, said.text())))


async def tell_of_apply(session: Session, project: str) -> None:
    """Tell with the commit that all of a project may have changed, where a view of it tells."""
    if session.dialect.notifies:
        one = sa.exists().where(tables.view.c.project == project, tables.view.c.notify)
        await session.execute(sa.select(sending(channel_of(project), "{}")).where(one))


def sending(channel: str, text: Any) -> sa.ColumnElement[Any]:
    """Sends a message with the commit, as an expression; it is null or empty."""
    return sa.cast(sa.func.pg_notify(channel, text), sa.Text)


# --- hearing ------------------------------------------------------------------------------

Heard = Callable[[str | None, Sequence[tuple[Any, ...]] | None], None]
"""Called with the view of a write and its keys; None where it may be any."""


class Listener:
    """Hears what is said on a channel, on a connection that is none of the pool's.

    It is opened by :meth:`start`, and again where it is lost. ``missed`` is called whenever there
    may have been something that was not heard.
    """

    def __init__(
        self, database: Database, channel: str, heard: Heard, missed: Callable[[], None]
    ) -> None:
        self._database = database
        self._channel = channel
        self._heard = heard
        self._missed = missed
        self._task: asyncio.Task[None] | None = None
        self._closed = not database.dialect.notifies

    def start(self) -> None:
        """Listen from now on, if it does not yet. Nobody waits for it: until then nothing is
        heard."""
        if not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(
                self._listen(), name="featurestore notices"
            )

    async def close(self) -> None:
        """Close the connection."""
        self._closed = True
        if self._task is not None and self._task.get_loop() is asyncio.get_running_loop():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _listen(self) -> None:
        pause = FIRST_PAUSE
        loop = asyncio.get_running_loop()
        while not self._closed:
            began = loop.time()
            with suppress(FeatureStoreError):
                async with self._connected() as (driver, lost):
                    self._missed()
                    await self._until(driver, lost)
            self._missed()
            pause = FIRST_PAUSE if loop.time() - began > LAST_PAUSE else min(2 * pause, LAST_PAUSE)
            # Not all processes at once.
            await asyncio.sleep(random.uniform(pause / 2, pause))

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[Any, asyncio.Event]]:
        lost = asyncio.Event()
        with translated(self._database.label):
            async with _apart(self._database) as driver:
                driver.add_termination_listener(lambda _: lost.set())
                async with asyncio.timeout(ANSWER_SECONDS):
                    await driver.add_listener(self._channel, self._hear)
                yield driver, lost

    def _hear(self, connection: Any, process: int, channel: str, text: str) -> None:
        self._heard(*understood(text))

    async def _until(self, driver: Any, lost: asyncio.Event) -> None:
        """Wait until the connection is lost, or its server without a word."""
        while not driver.is_closed():
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    await lost.wait()
            except TimeoutError:
                if not await self._database.dialect.is_alive(driver):
                    return


@asynccontextmanager
async def _apart(database: Database) -> AsyncIterator[Any]:
    """A driver's connection, opened as the pool opens its own and taken out of it."""
    connection = await opened(_started(database.engine), AsyncConnection.close)
    driver: Any = None
    try:
        driver = (await connection.get_raw_connection()).driver_connection
        await connection.run_sync(sa.Connection.detach)
        yield driver
    finally:
        await uninterrupted(_closed(connection, driver))


async def _started(engine: AsyncEngine) -> AsyncConnection:
    return await engine.connect()


async def _closed(connection: AsyncConnection, driver: Any) -> None:
    # Whatever comes of it must not stand in the way of a cancellation.
    with suppress(Exception):
        async with asyncio.timeout(CLOSE_SECONDS):
            await connection.close()
    if driver is not None:
        driver.terminate()
