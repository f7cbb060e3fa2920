"""What asyncpg's connections need beyond asyncpg: an end to cancelled calls, and to lost peers.

SQLAlchemy gives up a connection whose call was cancelled, and where the cancellation comes again
while it does so, the statement runs on at the server. So a cancelled call is stopped there first,
and its connection stays of use.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import asyncpg
import sqlalchemy as sa

from featurestore.errors import DefinitionError
from featurestore.storage.forks import opened_socket
from featurestore.storage.waiting import (
    STOP_SECONDS,
    bring_to_end,
    opened,
    stoppable,
    uninterrupted,
)

T = TypeVar("T")

COMMIT_SECONDS = 300.0
"""How long an answer to a COMMIT is waited for: one that waits for a replica takes its time."""

_CANCEL_SECONDS = 1.0
"""How long one request to cancel may take to reach the server."""

# A peer that is gone without a word is noticed within about a minute: after 30 quiet seconds it
# is asked three times, 10 seconds apart, and what was sent must be acknowledged in 60. However
# long a statement takes, a peer that is there answers that.
_KEEPALIVE = {
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPALIVE": 30,  # macOS has this name for it
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 60_000,
}


_KEPT_STATEMENTS = ("statement_cache_size", "prepared_statement_cache_size")
"""How many prepared statements a connection keeps, in asyncpg's words and in SQLAlchemy's."""


def statement_options(url: sa.URL) -> dict[str, int]:
    """What a URL says of prepared statements, as options to connect with.

    Zero for either of the two caches is zero for both: no statement is kept at the server then,
    and each is sent whole, as poolers need it that switch servers between transactions.
    """
    sizes = {name: _size(name, url) for name in _KEPT_STATEMENTS if name in url.query}
    return dict.fromkeys(_KEPT_STATEMENTS, 0) if 0 in sizes.values() else sizes


def _size(name: str, url: sa.URL) -> int:
    value = url.query[name]
    if not isinstance(value, str) or not value.isascii() or not value.isdecimal():
        raise DefinitionError(
            f"{name}={value} in the database URL is no number of statements; to work behind "
            f"PgBouncer in transaction mode it is {name}=0."
        )
    return int(value)


async def open_connection(*arguments: Any, **options: Any) -> asyncpg.Connection:
    """An asyncpg connection that notices when its server is gone."""
    # Cancelled in the middle, asyncpg leaves a future that nobody looks at: it may end first.
    opening = asyncpg.connect(*arguments, **options)
    connection = await opened(opening, _terminate, patience=_CANCEL_SECONDS)
    opened_socket(connection)
    transport = getattr(connection, "_transport", None)
    peer = transport and transport.get_extra_info("socket")
    if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):  # a system that does not know one of them
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):
                    peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


async def _terminate(connection: asyncpg.Connection) -> None:
    connection.terminate()


async def finish(driver: Any, work: Coroutine[Any, Any, T]) -> T:
    """Await a call of SQLAlchemy's; a caller that is cancelled stops its statement first.

    A connection whose server does not react is terminated.
    """
    return await stoppable(work, partial(cancel, driver), driver.terminate)


async def cancel(driver: Any) -> None:
    """Ask the server to cancel what the connection runs; it need not run anything."""
    # asyncpg has no public way to do that without cancelling its own waiting, which SQLAlchemy
    # would take for a broken connection.
    request = getattr(driver, "_cancel", None)
    if request is None or driver.is_closed():
        return
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(_CANCEL_SECONDS):
            await request(asyncio.get_running_loop().create_future())


@asynccontextmanager
async def calling(driver: Any, *, patience: float = STOP_SECONDS) -> AsyncIterator[None]:
    """Around a call of asyncpg's own, which asks the server to cancel it where its caller is
    cancelled: the server's answer is waited for, and a connection without one terminated after
    ``patience`` seconds."""
    try:
        yield
    except asyncio.CancelledError:
        await stop(driver, patience)
        raise


async def stop(driver: Any, patience: float = STOP_SECONDS) -> None:
    """Wait until a call that was cancelled has ended at the server, or the connection has."""
    # asyncpg asks once. Where that comes before the statement does, nothing is cancelled.
    answer = driver.execute("SELECT 1")
    stopped = bring_to_end(answer, partial(cancel, driver), driver.terminate, seconds=patience)
    await uninterrupted(stopped, seconds=None)


async def copy(
    driver: Any, table: str, columns: Sequence[str], source: AsyncGenerator[bytes, None]
) -> None:
    """COPY the chunks of ``source``, which are in the binary format, into a table."""
    protocol = driver._protocol

    def lost(_: Any) -> None:
        # Where a connection breaks while it is full, asyncpg waits for room for ever.
        protocol.resume_writing()

    driver.add_termination_listener(lost)
    try:
        async with calling(driver):
            await driver.copy_to_table(
                table, source=_while_open(driver, source), columns=columns, format="binary"
            )
    finally:
        driver.remove_termination_listener(lost)
        await source.aclose()


async def _while_open(driver: Any, source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """End with the connection: asyncpg tells what befell it when there is no more to send."""
    async for chunk in source:
        if driver.is_closed():
            return
        yield chunk
