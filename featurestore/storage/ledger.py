"""The ledger: every load with its rows' arrivals, so that each can be told apart and undone."""

from __future__ import annotations

import datetime as dt
import operator
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from featurestore.errors import DefinitionError, NotFoundError
from featurestore.reports import Load, QuarantinedRow
from featurestore.storage.registry import Catalog, RegisteredView
from featurestore.storage.session import Session
from featurestore.storage.tables import load, quarantine


async def loads_of_footer(session: Session, view_id: int, footer: str) -> Sequence[Any]:
    """Loads of files with this footer: candidates for being the same content."""
    query = sa.select(load).where(
        load.c.view_id == view_id, load.c.footer_hash == footer, load.c.undone_at.is_(None)
    )
    rows: Sequence[Any] = (await session.execute(query.order_by(load.c.id))).all()
    return rows


async def find_row(session: Session, load_id: int) -> Any:
    """A load's row of the ledger; None where there is none."""
    return (await session.execute(sa.select(load).where(load.c.id == load_id))).one_or_none()


def is_complete(row: Any) -> bool:
    """Whether a load (a row of the ledger) has all of its file."""
    return row.rows_total is None or bool(row.rows_read == row.rows_total)


async def has_pending(session: Session, view_id: int) -> bool:
    """Whether a load brought rows that were too far ahead and may be due by now."""
    query = sa.select(load.c.id).where(
        load.c.view_id == view_id, load.c.future_until.is_not(None), load.c.undone_at.is_(None)
    )
    return (await session.execute(query.limit(1))).first() is not None


async def clear_pending(session: Session, view_id: int, until: dt.datetime) -> None:
    """Forget pending rows that a materialize up to ``until`` has taken online."""
    statement = load.update().where(load.c.view_id == view_id, load.c.future_until <= until)
    await session.execute(statement.values(future_until=None))


def load_number(load_id: object) -> int:
    """A load's number as the database takes it; :class:`DefinitionError` where it is none."""
    if isinstance(load_id, bool) or not hasattr(load_id, "__index__"):
        raise DefinitionError(
            f"load_id={load_id!r}: loads have whole numbers; `featurestore loads` (store.loads()) "
            f"lists them."
        )
    number = operator.index(load_id)
    # None has a number that the database could not even look for.
    return number if 0 <= number < 2**63 else -1


async def list_loads(
    session: Session,
    catalog: Catalog,
    view: str | None,
    load_id: int | None = None,
    limit: int | None = None,
) -> list[Load]:
    """The loads of a view, or of the project's views, oldest first: the one of this number, or
    the latest ``limit``."""
    chosen = [catalog.view(view)] if view is not None else list(catalog.views.values())
    names = {one.id: one.name for one in chosen}
    query = sa.select(load).where(load.c.view_id.in_(names))
    if load_id is not None:
        query = query.where(load.c.id == load_number(load_id))
    found = await session.execute(query.order_by(load.c.id.desc()).limit(limit))
    return [
        Load(
            row.id,
            names[row.view_id],
            row.kind,
            row.source,
            row.rows_read,
            row.rows_written,
            row.rows_rejected,
            row.rows_future,
            row.first_arrival,
            row.last_arrival,
            row.started_at,
            row.finished_at,
            row.undone_at,
            row.rows_total,
        )
        for row in reversed(found.all())
    ]


async def list_rejected(
    session: Session,
    catalog: Catalog,
    load_id: int | None,
    view: str | None,
    limit: int | None = None,
    after_row: int | None = None,
) -> list[QuarantinedRow]:
    """Rows set aside by loads with ``on_invalid="quarantine"``, in file order: the latest
    ``limit`` of them, or with ``after_row`` the first behind that row of their file."""
    chosen = [catalog.view(view)] if view is not None else list(catalog.views.values())
    names = {one.id: one.name for one in chosen}
    query = (
        sa.select(quarantine, load.c.source)
        .join(load, load.c.id == quarantine.c.load_id)
        .where(quarantine.c.view_id.in_(names))
    )
    if load_id is not None:
        query = query.where(quarantine.c.load_id == load_number(load_id))
    place = (quarantine.c.load_id, quarantine.c.row)
    if after_row is None:
        query = query.order_by(*(column.desc() for column in place))
    else:
        query = query.where(quarantine.c.row > after_row).order_by(*place)
    rows = (await session.execute(query.limit(limit))).all()
    return [
        QuarantinedRow(
            row.load_id, names[row.view_id], row.source, row.row, row.reason, row.row_values
        )
        for row in (reversed(rows) if after_row is None else rows)
    ]


async def find_load(session: Session, catalog: Catalog, load_id: int) -> tuple[RegisteredView, Any]:
    """A load that is not undone, with its view; :class:`NotFoundError` otherwise."""
    row = await find_row(session, load_number(load_id))
    views = {view.id: view for view in catalog.views.values()}
    if row is None or row.view_id not in views:
        raise NotFoundError(
            f"There is no load {load_id} in project {catalog.project!r}; `featurestore loads` "
            f"(store.loads()) lists them.",
            name=str(load_id),
        )
    if row.undone_at is not None:
        raise NotFoundError(
            f"Load {load_id} was undone already, at {row.undone_at:%Y-%m-%d %H:%M:%S} UTC.",
            name=str(load_id),
        )
    return views[row.view_id], row
