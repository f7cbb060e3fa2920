"""Marks: what a store knew at a moment, to be asked for again later.

A mark is a snapshot of the ledger: the highest arrival that was there, and the loads below it that
were still in flight. Rows that came later, or whose load was committed later, are told apart by
their arrivals alone; what undo and erasure took out since stands in a table of its own.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa

from featurestore.errors import DefinitionError
from featurestore.storage.dialect import BLOCK
from featurestore.storage.session import Session
from featurestore.storage.tables import ARRIVAL, load, project, removal

Ranges = Sequence[tuple[int, int]]
"""Ranges of arrivals, both ends inclusive."""


@dataclass(frozen=True)
class Mark:
    """What a store held at ``at``: all up to ``arrival`` but what was in flight.

    On PostgreSQL ``snapshot`` says which transactions were, as ``pg_current_snapshot`` has it;
    ``in_flight`` are the numbers of loads that are known to have been. Of each load in ``partial``
    the rows up to that arrival were there. ``str(mark)`` and :meth:`parse` are its way through
    files and command lines.
    """

    arrival: int
    at: dt.datetime
    snapshot: str | None = None
    in_flight: tuple[int, ...] = ()
    partial: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.arrival}@{self.at.isoformat()}"]
        if self.snapshot is not None:
            parts.append(f"snapshot={self.snapshot}")
        if self.in_flight:
            parts.append(f"in_flight={','.join(map(str, self.in_flight))}")
        if self.partial:
            parts.append("partial=" + ",".join(f"{load}:{last}" for load, last in self.partial))
        return ";".join(parts)

    @classmethod
    def parse(cls, text: str) -> Mark:
        """The mark that ``str`` gave; :class:`DefinitionError` where it is none."""
        head, *options = text.strip().split(";")
        arrival, _, at = head.partition("@")
        given = dict(option.partition("=")[::2] for option in options)
        try:
            moment = dt.datetime.fromisoformat(at)
            if moment.tzinfo is None or given.keys() - {"snapshot", "in_flight", "partial"}:
                raise ValueError
            snapshot = given.get("snapshot")
            if snapshot is not None and not re.fullmatch(r"\d+:\d+:[\d,]*", snapshot):
                raise ValueError
            in_flight = tuple(int(one) for one in given.get("in_flight", "").split(",") if one)
            pairs = [one.partition(":") for one in given.get("partial", "").split(",") if one]
            partial = tuple((int(number), int(last)) for number, _, last in pairs)
            return cls(int(arrival), moment, snapshot, in_flight, partial)
        except ValueError:
            raise DefinitionError(
                f"{text!r} is no mark: give what store.mark() or a training set's manifest has."
            ) from None


@dataclass(frozen=True)
class Removal:
    """Rows that were taken out of a view: by undoing load ``load_id``, or an erasure (None)."""

    view_id: int
    load_id: int | None
    arrivals: tuple[tuple[int, int], ...]
    rows_removed: int
    removed_at: dt.datetime


async def take_mark(session: Session) -> Mark:
    """The mark of what the session sees. It is in a snapshot, and has written nothing itself."""
    return (await revision_and_mark(session, ""))[1]


async def revision_and_mark(session: Session, name: str) -> tuple[int, Mark]:
    """A project's revision (0 where it is not there) and the mark of what the session sees, in
    one round trip: each training set asks for both."""
    statement = _statement(single_writer=session.dialect.single_writer)
    row = (await session.execute(statement, {"project": name})).one()
    snapshot, at = row[5:] or (None, await session.dialect.now(session))
    highest = max((row.number or 0) * BLOCK, row.arrival or 0, (row.removed or 0) * BLOCK)
    partial = await _partial(session) if row.partial else ()
    return row.revision or 0, Mark(highest, at, snapshot, (), partial)


@cache
def _statement(*, single_writer: bool) -> sa.Select[Any]:
    newest = sa.select(load.c.id, load.c.last_arrival).order_by(load.c.id.desc()).limit(1)
    last = newest.subquery()
    named = project.c.name == sa.bindparam("project", type_=sa.Text)
    columns: list[sa.ColumnElement[Any]] = [
        sa.select(project.c.revision).where(named).scalar_subquery().label("revision"),
        sa.select(last.c.id).scalar_subquery().label("number"),
        sa.select(last.c.last_arrival).scalar_subquery().label("arrival"),
        sa.select(sa.func.max(removal.c.id)).scalar_subquery().label("removed"),
        sa.select(sa.func.count())
        .select_from(load)
        .where(*_under_way())
        .scalar_subquery()
        .label("partial"),
    ]
    if not single_writer:
        columns.append(sa.cast(sa.func.pg_current_snapshot(), sa.Text))
        columns.append(sa.func.clock_timestamp())
    return sa.select(*columns)


async def mark_at(session: Session, when: dt.datetime) -> Mark:
    """The mark of what was there at ``when``, by the ledger's clock: loads finished by then.

    A load in steps counts with its last step, since the ledger tells of no earlier ones.
    """
    highest = await _highest(session, when)
    later = (load.c.id <= highest // BLOCK, load.c.finished_at > when)
    in_flight = await session.execute(sa.select(load.c.id).where(*later).order_by(load.c.id))
    partial = await _partial(session, load.c.finished_at <= when)
    return Mark(highest, when, None, tuple(row.id for row in in_flight), partial)


async def _highest(session: Session, when: dt.datetime) -> int:
    """The highest arrival of the loads that were finished by then."""
    newest = sa.select(load.c.id, load.c.last_arrival).where(load.c.finished_at <= when)
    found = (await session.execute(newest.order_by(load.c.id.desc()).limit(1))).first()
    return 0 if found is None else max(found.id * BLOCK, found.last_arrival or 0)


def _under_way() -> tuple[sa.ColumnElement[bool], ...]:
    # In the words of the index that has just these.
    return (load.c.rows_read < load.c.rows_total, load.c.undone_at.is_(None))


async def _partial(session: Session, *where: sa.ColumnElement[bool]) -> tuple[tuple[int, int], ...]:
    query = sa.select(load.c.id, load.c.last_arrival).where(*_under_way(), *where)
    rows = (await session.execute(query.order_by(load.c.id))).all()
    return tuple(
        (row.id, row.id * BLOCK - 1 if row.last_arrival is None else row.last_arrival)
        for row in rows
    )


async def unseen(session: Session, mark: Mark, view_id: int) -> Ranges:
    """The ranges of a view's arrivals, up to the mark's, that were not there at the mark."""
    ranges = []
    if mark.snapshot is not None:
        hidden = sa.not_(_visible(load, mark.snapshot))
        ranges += await _spans(session, mark, view_id, hidden)
    if mark.in_flight:
        ranges += await _spans(session, mark, view_id, load.c.id.in_(mark.in_flight))
    if mark.partial:
        parts = dict(mark.partial)
        grown = await _spans(session, mark, view_id, load.c.id.in_(parts))
        ranges += [
            (parts[first // BLOCK] + 1, last)
            for first, last in grown
            if last > parts[first // BLOCK]
        ]
    return sorted(ranges)


async def _spans(
    session: Session, mark: Mark, view_id: int, which: sa.ColumnElement[bool]
) -> list[tuple[int, int]]:
    query = sa.select(load.c.first_arrival, load.c.last_arrival).where(
        load.c.view_id == view_id,
        load.c.first_arrival <= mark.arrival,
        load.c.undone_at.is_(None),
        which,
    )
    return [(row.first_arrival, row.last_arrival) for row in await session.execute(query)]


def _visible(table: sa.Table, snapshot: str) -> sa.ColumnElement[bool]:
    """Whether a row was committed when the snapshot was taken (PostgreSQL 13 and later)."""
    number = sa.cast(table.c.transaction_id, sa.Text).op("::")(sa.literal_column("xid8"))
    moment = sa.cast(sa.literal(snapshot), sa.Text).op("::")(sa.literal_column("pg_snapshot"))
    # Null: from before transactions were noted.
    return sa.func.coalesce(sa.func.pg_visible_in_snapshot(number, moment), sa.true())


def known_at(history: sa.FromClause, mark: Mark, hidden: Ranges) -> list[sa.ColumnElement[bool]]:
    """The conditions on a row of history to have been there at the mark; ``hidden`` is what
    :func:`unseen` gave for its view."""
    arrival = history.c[ARRIVAL]
    return [arrival <= mark.arrival, *(sa.not_(arrival.between(*span)) for span in hidden)]


async def removed_since(session: Session, mark: Mark, view_ids: Iterable[int]) -> list[Removal]:
    """What was taken out of views after the mark, of rows that were there at it."""
    later = removal.c.id > mark.arrival // BLOCK
    if mark.snapshot is not None:
        later = sa.or_(later, sa.not_(_visible(removal, mark.snapshot)))
    elif not session.dialect.single_writer:
        later = removal.c.removed_at > mark.at
    query = sa.select(removal).where(removal.c.view_id.in_(list(view_ids)), later)
    found = await session.execute(query.order_by(removal.c.id))
    return [_removal(row) for row in found if _concerns(row.arrivals, mark)]


def _concerns(arrivals: Sequence[Sequence[int]], mark: Mark) -> bool:
    return any(first <= mark.arrival for first, _ in arrivals)


def _removal(row: Any) -> Removal:
    arrivals = tuple((first, last) for first, last in row.arrivals)
    return Removal(row.view_id, row.load_id, arrivals, row.rows_removed, row.removed_at)


def as_ranges(arrivals: Iterable[int]) -> list[list[int]]:
    """Arrivals as the fewest ranges that hold them and no others."""
    ranges: list[list[int]] = []
    for arrival in sorted(arrivals):
        if ranges and arrival == ranges[-1][1] + 1:
            ranges[-1][1] = arrival
        else:
            ranges.append([arrival, arrival])
    return ranges


async def note_removal(
    session: Session, view_id: int, load_id: int | None, arrivals: list[list[int]], rows: int
) -> None:
    """Enter what was taken out, in the transaction that does it."""
    if not rows:
        return
    entry = {
        "id": await session.dialect.allocate(session, 1),
        "view_id": view_id,
        "load_id": load_id,
        "arrivals": arrivals,
        "rows_removed": rows,
        "removed_at": await session.dialect.now(session),
    }
    await session.execute(removal.insert(), entry)
