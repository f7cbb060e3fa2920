"""What aiosqlite's connections need beyond aiosqlite: an end to cancelled calls, and patience."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import aiosqlite
from sqlalchemy.exc import OperationalError

from featurestore.storage.waiting import bring_to_end, uninterrupted

T = TypeVar("T")

BUSY_MILLISECONDS = 1_000
"""How long SQLite itself waits for a lock: nothing can interrupt it meanwhile."""

WRITER_SECONDS = 30.0
"""How long a writer waits for another process to finish writing."""

THREAD_SECONDS = 1.0
"""How long the thread of a connection that failed to open is waited for: it has nothing to do."""


async def open_connection(*arguments: Any, **options: Any) -> aiosqlite.Connection:
    """An aiosqlite connection that leaves no thread behind where it cannot be opened.

    aiosqlite does not wait for that thread: it answers once more, and if the loop is closed by
    then prints a traceback.
    """
    connection = aiosqlite.connect(*arguments, **options)
    connection._thread.daemon = True  # as SQLAlchemy has it: a forgotten store ends no process
    try:
        return await connection
    except BaseException:
        await uninterrupted(asyncio.to_thread(connection._thread.join, THREAD_SECONDS))
        raise


async def patiently(attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Try again while another program holds the lock, up to ``WRITER_SECONDS``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WRITER_SECONDS
    while True:
        try:
            return await attempt()
        except (OperationalError, sqlite3.OperationalError) as error:
            if "locked" not in str(error) or loop.time() > deadline:
                raise


async def run(driver: Any, work: Callable[[sqlite3.Connection], T]) -> T:
    """Run ``work`` on the connection's own thread, in one hop however many statements it has.

    A caller that is cancelled interrupts what SQLite is doing, and waits for its end.
    """
    try:
        # aiosqlite's public calls are one statement a hop each; this is what they are made of.
        result: T = await driver._execute(work, driver._conn)
        return result
    except asyncio.CancelledError:
        # The thread takes one thing after the other: when it comes to this, it has ended that.
        last = driver._execute(_nothing)
        await uninterrupted(bring_to_end(last, partial(interrupt, driver)), seconds=None)
        raise


def _nothing() -> None:
    return None


async def interrupt(driver: Any) -> None:
    with suppress(ValueError, sqlite3.Error):  # closed meanwhile
        await driver.interrupt()
