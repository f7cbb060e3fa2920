"""Marks: what a store knew at a moment, to be asked for again later.

A mark is a snapshot of the ledger: the highest arrival that was there, and the loads below it that
were still in flight. Rows that came later, or whose load was committed later, are told apart by
their arrivals alone; what undo and erasure took out since stands in a table of its own.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from featurestore.errors import DefinitionError
from featurestore.storage.dialect import BLOCK
from featurestore.storage.session import Session
from featurestore.storage.tables import ARRIVAL, load, project, removal

Ranges = Sequence[tuple[int, int]]
"""Ranges of arrivals, both ends inclusive."""


_OPTIONS = ("newest", "snapshot", "since", "in_flight", "partial")
_MOST = 2**63 - 1


@dataclass(frozen=True)
class Mark:
    """What a store held at ``at``: all up to ``arrival`` but what was in flight.

    On PostgreSQL ``snapshot`` says which transactions were, as ``pg_current_snapshot`` has it; it
    is no matter of loads before the number ``since``, which another server may have written.
    ``in_flight`` are the numbers of loads that are known to have been. Of each load in ``partial``
    the rows up to that arrival were there. ``newest`` is the last load and when it began, in
    microseconds since 1970: another database has another one. ``str(mark)`` and :meth:`parse` are
    its way through files and command lines.
    """

    arrival: int
    at: dt.datetime
    snapshot: str | None = None
    in_flight: tuple[int, ...] = ()
    partial: tuple[tuple[int, int], ...] = ()
    since: int = 0
    newest: tuple[int, int] | None = None

    def __str__(self) -> str:
        parts = [f"{self.arrival}@{self.at.isoformat()}"]
        if self.newest is not None:
            parts.append(f"newest={self.newest[0]}:{self.newest[1]}")
        if self.snapshot is not None:
            parts.append(f"snapshot={self.snapshot}")
        if self.since:
            parts.append(f"since={self.since}")
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
            if moment.tzinfo is None or given.keys() - set(_OPTIONS) or len(given) < len(options):
                raise ValueError
            snapshot = given.get("snapshot")
            if snapshot is not None:
                _Snapshot.parse(snapshot)
            in_flight = tuple(map(_number, _listed(given.get("in_flight"))))
            pairs = [one.partition(":") for one in _listed(given.get("partial"))]
            partial = tuple((_number(number), _last(last)) for number, _, last in pairs)
            since = _number(given.get("since", "0"))
            newest = None
            if "newest" in given:
                number, _, began = given["newest"].partition(":")
                newest = (_number(number), _number(began))
            return cls(_number(arrival), moment, snapshot, in_flight, partial, since, newest)
        except (ValueError, OverflowError):
            raise DefinitionError(
                f"{text!r} is no mark: give what store.mark() or a training set's manifest has."
            ) from None


def _listed(text: str | None) -> list[str]:
    return [one for one in (text or "").split(",") if one]


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > _MOST:
        raise ValueError(text)
    return int(text)


def _last(text: str) -> int:
    # One below the first arrival where a load had no rows yet.
    return -1 if text == "-1" else _number(text)


@dataclass(frozen=True)
class _Snapshot:
    """The transactions that had ended: those before ``until`` but the ``running`` ones."""

    until: int
    running: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> _Snapshot:
        """From PostgreSQL's text for it, ``xmin:xmax:xip,…``; ValueError where it is none."""
        first, until, running = text.split(":")
        if _number(first) > _number(until):
            raise ValueError(text)
        return cls(_number(until), tuple(map(_number, _listed(running))))

    def hides(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """Whether the transaction that wrote a row had not ended."""
        # Null, from before transactions were noted, is neither.
        number = table.c.transaction_id
        later: sa.ColumnElement[bool] = sa.func.coalesce(number >= self.until, sa.false())
        return sa.or_(later, sa.func.coalesce(number.in_(self.running), sa.false()))


@dataclass(frozen=True)
class Removal:
    """What was taken out of a view: rows, by undoing load ``load_id`` or an erasure (None), or the
    values of ``field``, which was dropped or narrowed. ``rows_removed`` counts rows of the mark."""

    view_id: int
    load_id: int | None
    field: str | None
    arrivals: tuple[tuple[int, int], ...]
    rows_removed: int
    removed_at: dt.datetime


# --- taking one -----------------------------------------------------------------------------


async def take_mark(session: Session) -> Mark:
    """The mark of what the session sees. It is in a snapshot, and has written nothing itself."""
    return (await revision_and_mark(session, ""))[1]


async def revision_and_mark(session: Session, name: str) -> tuple[int, Mark]:
    """A project's revision (0 where it is not there) and the mark of what the session sees, in
    one round trip: each training set asks for both."""
    statement = _statement(single_writer=session.dialect.single_writer)
    row = (await session.execute(statement, {"project": name})).one()
    snapshot, at = row[6:] or (None, await session.dialect.now(session))
    highest = _last_known(row.number, row.arrival, row.removed)
    partial = await _partial(session) if row.partial else ()
    newest = _witness(row.number, row.began)
    mark = Mark(highest, at, snapshot, (), partial, newest=newest)
    return row.revision or 0, await _settled(session, mark)


@cache
def _statement(*, single_writer: bool) -> sa.Select[Any]:
    last = _newest().subquery()
    named = project.c.name == sa.bindparam("project", type_=sa.Text)
    parts = sa.select(sa.func.count()).select_from(load).where(*_under_way())
    columns: list[sa.ColumnElement[Any]] = [
        sa.select(project.c.revision).where(named).scalar_subquery().label("revision"),
        sa.select(last.c.id).scalar_subquery().label("number"),
        sa.select(last.c.last_arrival).scalar_subquery().label("arrival"),
        sa.select(last.c.started_at).scalar_subquery().label("began"),
        sa.select(sa.func.max(removal.c.id)).scalar_subquery().label("removed"),
        parts.scalar_subquery().label("partial"),
    ]
    if not single_writer:
        columns.append(_current_snapshot())
        columns.append(sa.func.clock_timestamp())
    return sa.select(*columns)


def _newest() -> sa.Select[Any]:
    columns = (load.c.id, load.c.last_arrival, load.c.started_at)
    return sa.select(*columns).order_by(load.c.id.desc()).limit(1)


def _witness(number: int | None, began: dt.datetime | None) -> tuple[int, int] | None:
    if number is None or began is None:
        return None
    since = began - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return number, since // dt.timedelta(microseconds=1)


async def mark_at(session: Session, when: dt.datetime) -> Mark:
    """The mark of what was there at ``when``, by the ledger's clock: loads finished by then, and
    committed by now.

    A load in steps counts with its last step, since the ledger tells of no earlier ones.
    """
    highest, newest = await _highest(session, when)
    later = (load.c.id <= highest // BLOCK, load.c.finished_at > when)
    in_flight = await session.execute(sa.select(load.c.id).where(*later).order_by(load.c.id))
    partial = await _partial(session, load.c.finished_at <= when)
    snapshot = None
    if not session.dialect.single_writer:
        snapshot = (await session.execute(sa.select(_current_snapshot()))).scalar_one()
    numbers = tuple(row.id for row in in_flight)
    mark = Mark(highest, when, snapshot, numbers, partial, newest=newest)
    return await _settled(session, mark)


def _current_snapshot() -> sa.ColumnElement[str]:
    return sa.cast(sa.func.pg_current_snapshot(), sa.Text)


async def _highest(session: Session, when: dt.datetime) -> tuple[int, tuple[int, int] | None]:
    """The highest arrival of what was finished by then, loads and what took rows out; and the
    newest of these loads."""
    found = (await session.execute(_newest().where(load.c.finished_at <= when))).first()
    query = sa.select(sa.func.max(removal.c.id)).where(removal.c.removed_at <= when)
    removed = (await session.execute(query)).scalar_one()
    if found is None:
        return _last_known(None, None, removed), None
    arrival = _last_known(found.id, found.last_arrival, removed)
    return arrival, _witness(found.id, found.started_at)


def _last_known(number: int | None, last_arrival: int | None, removed: int | None) -> int:
    """The highest arrival of the newest load, ``number``, and of the newest removal."""
    # A load of many rows has several blocks, and its number is that of the first.
    return max((number or 0) * BLOCK, last_arrival or 0, (removed or 0) * BLOCK)


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


_ELSEWHERE: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""By a database's dialect, the first load that this server may have written itself."""


async def _settled(session: Session, mark: Mark) -> Mark:
    """The mark, with the loads told apart that a restored copy brought from another server.

    Their transactions have numbers that this server's snapshots know nothing of. They show in that
    the session sees a row whose transaction, by its own snapshot, has not ended. It takes a look
    at the whole ledger, so once; no more can come, since later loads are of this server.
    """
    if mark.snapshot is None:
        return mark
    if session.dialect not in _ELSEWHERE:
        hides = _Snapshot.parse(mark.snapshot).hides
        newest = [sa.select(sa.func.max(one.c.id)).where(hides(one)) for one in (load, removal)]
        numbers = [(await session.execute(query)).scalar_one() for query in newest]
        _ELSEWHERE[session.dialect] = max((n + 1 for n in numbers if n is not None), default=0)
    return replace(mark, since=_ELSEWHERE[session.dialect])


async def check_mark(session: Session, mark: Mark) -> None:
    """Raise :class:`DefinitionError` where a mark is of another database, as far as it shows."""
    if (mark.snapshot is None) != session.dialect.single_writer:
        kinds = ("PostgreSQL", "SQLite")
        mine, other = kinds if mark.snapshot is None else reversed(kinds)
        raise DefinitionError(f"The mark is of a {other} database, and this one is {mine}: {mark}")
    last = _newest().subquery()
    query = sa.select(
        sa.select(last.c.id).scalar_subquery(),
        sa.select(last.c.last_arrival).scalar_subquery(),
        sa.select(sa.func.max(removal.c.id)).scalar_subquery(),
    )
    if mark.arrival > _last_known(*(await session.execute(query)).one()):
        raise DefinitionError(
            f"The mark is ahead of this store: it is of another database, or of a later state than "
            f"this one has (a backup that was restored, a replica that lags): {mark}"
        )
    if mark.newest is None:
        return
    number, _ = mark.newest
    began = sa.select(load.c.started_at).where(load.c.id == number)
    if _witness(number, (await session.execute(began)).scalar_one_or_none()) != mark.newest:
        raise DefinitionError(
            f"The mark is of another database, or of a state that this one was set back from (by "
            f"restoring a backup): load {number} is another one here: {mark}"
        )


# --- reading by one -------------------------------------------------------------------------


async def unseen(session: Session, mark: Mark, view_id: int) -> Ranges:
    """The ranges of a view's arrivals, up to the mark's, that were not there at the mark."""
    ranges = []
    if mark.snapshot is not None:
        hidden = _uncommitted(load, mark, mark.snapshot)
        ranges += [span for _, span in await _spans(session, mark, view_id, hidden)]
    if mark.in_flight:
        hidden = load.c.id.in_(mark.in_flight)
        ranges += [span for _, span in await _spans(session, mark, view_id, hidden)]
    if mark.partial:
        parts = dict(mark.partial)
        grown = await _spans(session, mark, view_id, load.c.id.in_(parts))
        ranges += [(parts[number] + 1, last) for number, (_, last) in grown if last > parts[number]]
    return sorted(set(ranges))


async def _spans(
    session: Session, mark: Mark, view_id: int, which: sa.ColumnElement[bool]
) -> list[tuple[int, tuple[int, int]]]:
    """Loads of a view, undone ones too, with their first and last arrivals."""
    query = sa.select(load.c.id, load.c.first_arrival, load.c.last_arrival).where(
        load.c.view_id == view_id, load.c.first_arrival <= mark.arrival, which
    )
    return [(row.id, (row.first_arrival, row.last_arrival)) for row in await session.execute(query)]


def _uncommitted(table: sa.Table, mark: Mark, snapshot: str) -> sa.ColumnElement[bool]:
    """Whether a row was not committed when the snapshot was taken."""
    return sa.and_(table.c.id >= mark.since, _Snapshot.parse(snapshot).hides(table))


def known_at(history: sa.FromClause, mark: Mark, hidden: Ranges) -> list[sa.ColumnElement[bool]]:
    """The conditions on a row of history to have been there at the mark; ``hidden`` is what
    :func:`unseen` gave for its view."""
    arrival = history.c[ARRIVAL]
    return [arrival <= mark.arrival, *(sa.not_(arrival.between(*span)) for span in hidden)]


async def removed_since(session: Session, mark: Mark, view_ids: Iterable[int]) -> list[Removal]:
    """What was taken out of views after the mark, of what was there at it."""
    if mark.snapshot is None:
        later = removal.c.id > mark.arrival // BLOCK
    else:
        # A mark of an earlier time has a snapshot of when it was asked for.
        late = removal.c.removed_at > mark.at
        later = sa.or_(_uncommitted(removal, mark, mark.snapshot), late)
    query = sa.select(removal).where(removal.c.view_id.in_(list(view_ids)), later)
    rows = (await session.execute(query.order_by(removal.c.id))).all()
    hidden = {
        view_id: await unseen(session, mark, view_id) for view_id in {row.view_id for row in rows}
    }
    found = [_removal(row, mark, hidden[row.view_id]) for row in rows]
    return [one for one in found if one.rows_removed or one.field is not None]


def _removal(row: Any, mark: Mark, hidden: Ranges) -> Removal:
    arrivals = [(first, min(last, mark.arrival)) for first, last in row.arrivals]
    known = tuple(without(arrivals, hidden))
    # An undone load may have lost some of its rows before.
    rows = min(row.rows_removed, sum(last - first + 1 for first, last in known))
    return Removal(row.view_id, row.load_id, row.field, known, rows, row.removed_at)


def without(ranges: Ranges, hidden: Ranges) -> list[tuple[int, int]]:
    """Ranges of arrivals less others."""
    left = [(first, last) for first, last in ranges if first <= last]
    for start, end in hidden:
        parts = []
        for first, last in left:
            parts += [(first, min(last, start - 1)), (max(first, end + 1), last)]
        left = [(first, last) for first, last in parts if first <= last]
    return left


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
    if rows:
        await _note(session, view_id, arrivals, rows, load_id=load_id)


async def note_lost_field(session: Session, view_id: int, field: str) -> None:
    """Enter that a field's values were dropped or narrowed, in the transaction that does it."""
    await _note(session, view_id, [], 0, field=field)


async def _note(
    session: Session,
    view_id: int,
    arrivals: list[list[int]],
    rows: int,
    *,
    load_id: int | None = None,
    field: str | None = None,
) -> None:
    entry = {
        "id": await session.dialect.allocate(session, 1),
        "view_id": view_id,
        "load_id": load_id,
        "field": field,
        "arrivals": arrivals,
        "rows_removed": rows,
        "removed_at": await session.dialect.now(session),
    }
    await session.execute(removal.insert(), entry)
