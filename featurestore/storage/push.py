"""A push: rows of one caller or many, written to history, online and the ledger as one.

Pushes are many and small, and a conversation of a dozen statements would cost each of them more
than its rows do. So a push is one round trip, which says what it depends on: where that is no
longer so, nothing is written, and the answer tells. It takes no lock that others would wait for;
what lowers online rows or changes tables locks history against pushes (``Dialect.lock_history``).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from featurestore.errors import StoreUnavailableError
from featurestore.storage.faults import commit_unanswered, is_undone
from featurestore.types import FeatureType

if TYPE_CHECKING:
    from featurestore.storage.engine import Database
    from featurestore.storage.notices import Notice

PUSH_SECONDS = 60.0
"""How long a push may take: it may wait for an undo, or an apply that makes tables anew. After that
its statement is stopped, and a connection that does not even answer to that is given up."""

Rows = Sequence[tuple[Any, ...]]
"""Rows that fit, in the order of a plan's columns; Json as its text."""


@dataclass(frozen=True)
class PushPlan:
    """Where the rows of a view go, as of one ``revision`` of the registry.

    ``columns`` are those of history that the rows bring, in the order of their values: the join
    keys come first. ``notice`` is what caches of other processes are told, if they are to be.
    ``cache`` is for the statements that a dialect makes of it.
    """

    project: str
    revision: int
    view_id: int
    history: sa.Table
    online: sa.Table | None
    keys: Mapping[str, FeatureType]
    columns: Mapping[str, FeatureType]
    skew: dt.timedelta
    notice: Notice | None = None
    cache: dict[Any, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of a push.

    ``loads`` has the load's number and the count of rows ahead of the clock for each caller. It
    is empty where nothing was written: the registry is at another ``revision``; the index on keys
    is not made yet (``indexed``); rows of the view have yet to come online (``pending``) and were
    not asked for; or the statement would not see what it waited for (``isolated``).
    """

    revision: int
    indexed: bool
    pending: bool
    isolated: bool
    loads: Sequence[tuple[int, int]]


async def push(database: Database, plan: PushPlan, callers: Sequence[Rows], *, due: bool) -> Pushed:
    """Write the rows of each caller as a load of its own, all of them as one transaction.

    ``due`` also brings older rows of the keys online whose time has come since. A caller that is
    cancelled ends it first, by itself or by its answer.
    """
    sent = False

    async def work(driver: Any) -> Pushed:
        nonlocal sent
        sent = True
        database.watchdog.begin(driver, PUSH_SECONDS)
        try:
            return await database.dialect.push(driver, plan, callers, due=due, begun=False)
        finally:
            database.watchdog.end(driver)

    try:
        async with database.turn_to_write():
            return await database.on_driver(work)
    except StoreUnavailableError as error:
        if sent and not is_undone(error):
            raise commit_unanswered(database.label) from error.__cause__
        raise
