"""What may lower an online row: materialize, erasure, undo. Their callers hold the view's lock
alone, and have read the view after they got it."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from featurestore.reports import UndoReport
from featurestore.storage.ledger import clear_pending
from featurestore.storage.marks import as_ranges, note_removal
from featurestore.storage.registry import RegisteredView
from featurestore.storage.rule import (
    drop_unfounded,
    keys_online_from,
    keys_with_events,
    take_online,
)
from featurestore.storage.session import Session
from featurestore.storage.tables import ARRIVAL, load, quarantine


async def materialize(
    session: Session,
    view: RegisteredView,
    skew: dt.timedelta,
    start: dt.datetime | None,
    end: dt.datetime | None,
) -> int:
    """Set online to the rule for the keys with an event in [start, end], for all where both are
    None; how many online rows changed."""
    online = view.online_or_error()
    dialect, keys = session.dialect, view.view.join_keys
    until = await dialect.now(session) + skew
    of = keys_with_events(dialect, view.history, list(keys), start, end)
    statement = take_online(dialect, view.history, online, keys, of, until, replace=True)
    changed = int((await session.execute(statement)).rowcount)
    if start is None and end is None:
        gone = await session.execute(drop_unfounded(dialect, view.history, online, keys, until))
        await clear_pending(session, view.id, until)
        changed += int(gone.rowcount)
    return changed


async def erase(
    session: Session, view: RegisteredView, keys: Mapping[str, Any], entity: str
) -> int:
    """Delete an entity from history, online and quarantine; how many rows history had of it.

    ``keys`` has a value for each join key, ``entity`` is the key as the quarantine keeps it.
    """
    dialect = session.dialect

    def of_entity(table: sa.Table) -> list[sa.ColumnElement[bool]]:
        types = view.view.join_keys
        return [table.c[key] == dialect.bind(types[key], value) for key, value in keys.items()]

    delete = view.history.delete().where(*of_entity(view.history))
    deleted = (await session.execute(delete.returning(view.history.c[ARRIVAL]))).scalars().all()
    if view.online is not None:
        await session.execute(view.online.delete().where(*of_entity(view.online)))
    where = (quarantine.c.view_id == view.id, quarantine.c.entity == entity)
    await session.execute(quarantine.delete().where(*where))
    await note_removal(
        session, view.id, None, await asyncio.to_thread(as_ranges, deleted), len(deleted)
    )
    return len(deleted)


async def undo(session: Session, view: RegisteredView, row: Any, skew: dt.timedelta) -> UndoReport:
    """Take a load's rows out of history, online and quarantine.

    Online rows that came from it become what the rest of history says, or go: both are counted.
    """
    dialect = session.dialect
    now = await dialect.now(session)
    affected = gone = removed = 0
    if row.first_arrival is not None:
        span = (row.first_arrival, row.last_arrival)
        if view.online is not None:
            keys = view.view.join_keys
            of = keys_online_from(view.online, list(keys), *span)
            brought = view.online.c[ARRIVAL].between(*span)
            count = sa.select(sa.func.count()).select_from(view.online).where(brought)
            affected = (await session.execute(count)).scalar_one()
            await session.execute(
                take_online(
                    dialect,
                    view.history,
                    view.online,
                    keys,
                    of,
                    now + skew,
                    without=span,
                    replace=True,
                )
            )
            gone = (await session.execute(view.online.delete().where(brought))).rowcount
        deleted = view.history.delete().where(view.history.c[ARRIVAL].between(*span))
        removed = (await session.execute(deleted)).rowcount
        await note_removal(session, view.id, row.id, [list(span)], removed)
    await session.execute(quarantine.delete().where(quarantine.c.load_id == row.id))
    await session.execute(load.update().where(load.c.id == row.id).values(undone_at=now))
    return UndoReport(row.id, view.name, removed, affected - gone, gone)
