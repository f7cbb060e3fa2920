"""From a command to the store: opening it, running the loop, being interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

from featurestore.cli.options import Settings

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
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise Interrupted(kept if isinstance(kept, str) else kept()) from None
