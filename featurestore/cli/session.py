"""From a command to the store: opening it, running the loop, being interrupted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

from featurestore.cli.options import Settings
from featurestore.errors import StoreUnavailableError

if TYPE_CHECKING:
    from featurestore.store import FeatureStore

T = TypeVar("T")


class Interrupted(click.ClickException):
    """Ctrl-C; the message says what was kept. 130 is what shells expect of it."""

    exit_code = 130


def open_store(settings: Settings) -> FeatureStore:
    """The store that the options name; it connects when it is entered."""
    # Here and not above: SQLAlchemy takes most of a second to import, and --help needs none.
    from featurestore.store import FeatureStore

    return FeatureStore(settings.url, project=settings.project)


def run(work: Coroutine[Any, Any, T], kept: Callable[[], str] | str) -> T:
    """Run ``work`` to its end; on Ctrl-C it is cancelled, cleans up, and ``kept`` is told."""
    try:
        return asyncio.run(_settled(work))
    except KeyboardInterrupt:
        raise Interrupted(kept if isinstance(kept, str) else kept()) from None


async def _settled(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except StoreUnavailableError:
        # aiosqlite does not wait for the thread of a connection that could not be opened: it
        # answers once more, and if the loop is closed by then that prints a traceback.
        for thread in threading.enumerate():
            if "_connection_worker_thread" in thread.name:
                await asyncio.to_thread(thread.join, 1.0)
        raise
