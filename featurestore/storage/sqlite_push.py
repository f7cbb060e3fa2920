"""A push to SQLite: one hop to the connection's thread, a transaction of its own there."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from featurestore.storage.dialect import BLOCK
from featurestore.storage.push import Pushed, PushPlan, Rows
from featurestore.storage.rule import settle_conflict
from featurestore.storage.sqlite_values import encode
from featurestore.storage.sqlite_wire import patiently, run
from featurestore.storage.tables import (
    ARRIVAL,
    CREATED,
    EVENT,
    SINGLE,
    counter,
    key_index,
    load,
    newest_first,
    project,
)
from featurestore.types import (
    ArrayType,
    Bool,
    Date,
    DecimalType,
    FeatureType,
    Timestamp,
    from_micros,
    micros,
)

Values = Mapping[str, Any]


class _Statement:
    """A statement of named values, some of which may be bound already."""

    def __init__(self, compiler: sa.Dialect, statement: sa.sql.ClauseElement) -> None:
        result: Any = statement.compile(dialect=compiler)
        self.sql = str(result)
        self._order: Sequence[str] = result.positiontup or ()
        self._bound = {name: bind.value for name, bind in result.binds.items()}

    def values(self, given: Values) -> list[Any]:
        """The values by position, those bound with it among them."""
        return [given[name] if name in given else self._bound[name] for name in self._order]


class _Statements:
    """All that pushes to a view run, compiled once."""

    def __init__(self, compiler: sa.Dialect, plan: PushPlan) -> None:
        def made(statement: Any) -> _Statement:
            return _Statement(compiler, statement)

        pending = sa.exists().where(
            load.c.view_id == plan.view_id,
            load.c.future_until.is_not(None),
            load.c.undone_at.is_(None),
        )
        master = sa.table("sqlite_master", sa.column("type"), sa.column("name"))
        index = sa.exists().where(
            master.c.type == "index", master.c.name == str(key_index(plan.history).name)
        )
        revision = sa.select(project.c.revision).where(project.c.name == plan.project)
        self.gate = made(sa.select(sa.func.coalesce(revision.scalar_subquery(), 0), index, pending))
        self.allocate = made(
            counter.update()
            .where(counter.c.name == "arrival")
            .values(value=counter.c.value + sa.bindparam("blocks"))
            .returning(counter.c.value)
        )
        self.history = made(_insert(plan.history.insert(), plan.history))
        self.online = self.refresh = None
        if plan.online is not None:
            insert = _insert(sqlite.insert(plan.online), plan.online)
            self.online = made(settle_conflict(insert, plan.online, plan.keys, replace=False))
            self.refresh = made(_refresh(plan, plan.online))
        self.ledger = made(load.insert().values({name: sa.bindparam(name) for name in _ENTRY}))
        kind = load.c.started_at.type.dialect_impl(compiler)
        self.moment: Callable[[dt.datetime], Any] = kind.bind_processor(compiler) or (lambda at: at)
        self.encoders = [_encoder(one) for one in plan.columns.values()]


_ENTRY = (
    "id", "view_id", "kind", "source", "first_arrival", "last_arrival", "rows_read",
    "rows_written", "rows_rejected", "rows_future", "future_until", "started_at", "finished_at",
)  # fmt: skip


def _insert(statement: Any, table: sa.Table) -> Any:
    return statement.values({column.name: sa.bindparam(column.name) for column in table.c})


def _refresh(plan: PushPlan, online: sa.Table) -> sa.Executable:
    """Bring the newest row of history up to ``until`` online, for one key."""
    history = plan.history
    identity = list(plan.keys) or [SINGLE]
    features = [c.name for c in online.c if c.name in history.c and c.name not in plan.keys]
    given: list[sa.ColumnElement[Any]] = [history.c[key] for key in plan.keys]
    query = (
        sa.select(*(given or [sa.literal(0)]), *(history.c[name] for name in features))
        .where(*(history.c[key] == sa.bindparam(key) for key in plan.keys))
        .where(history.c[EVENT] <= sa.bindparam("until"))
        .order_by(*newest_first(history))
        .limit(1)
    )
    statement = sqlite.insert(online).from_select([*identity, *features], query)
    return settle_conflict(statement, online, plan.keys, replace=False)


def _encoder(kind: FeatureType) -> Callable[[Any], Any] | None:
    """How a value of ``kind`` becomes SQLite's; None where it is kept as it is."""
    changed = kind in (Timestamp, Date, Bool) or isinstance(kind, DecimalType | ArrayType)
    return partial(encode, kind) if changed else None


async def push(
    compiler: sa.Dialect,
    driver: Any,
    plan: PushPlan,
    callers: Sequence[Rows],
    *,
    begun: bool,
) -> Pushed:
    """Write the rows; see :meth:`featurestore.storage.dialect.Dialect.push`."""

    def work(raw: sqlite3.Connection) -> Pushed:
        statements = plan.cache.get("statements")
        if statements is None:
            statements = plan.cache["statements"] = _Statements(compiler, plan)
        if begun:
            return _write(raw, statements, plan, callers)
        with _transaction(raw):
            return _write(raw, statements, plan, callers)

    return await patiently(lambda: run(driver, work))


@contextmanager
def _transaction(raw: sqlite3.Connection) -> Iterator[None]:
    raw.execute("BEGIN IMMEDIATE")
    try:
        yield
        raw.execute("COMMIT")
    except BaseException:
        if raw.in_transaction:  # an error of the disk, or an interrupt, may have ended it
            raw.execute("ROLLBACK")
        raise


def _write(
    raw: sqlite3.Connection, statements: _Statements, plan: PushPlan, callers: Sequence[Rows]
) -> Pushed:
    revision, indexed, pending = _one(raw, statements.gate, {})
    if revision != plan.revision or not indexed:
        return Pushed(revision, bool(indexed), False, True, ())
    blocks = {"blocks": len(callers)}
    first = _one(raw, statements.allocate, blocks)[0] - len(callers)
    now = dt.datetime.now(dt.UTC)
    until = micros(now + plan.skew)
    stored, entries = [], []
    for number, rows in enumerate(callers, first):
        own = _stamped(statements, plan, rows, number * BLOCK, micros(now))
        stored += own
        entries.append(_entry(plan, number, [row[EVENT] for row in own], until))
    _many(raw, statements.history, stored)
    if statements.online is not None and statements.refresh is not None:
        if pending:
            keys = {tuple(row[key] for key in plan.keys) for row in stored}
            wanted = [dict(zip(plan.keys, key, strict=True), until=until) for key in keys]
            _many(raw, statements.refresh, wanted)
        else:
            _many(raw, statements.online, [row for row in stored if row[EVENT] <= until])
    times = {"started_at": statements.moment(now)}
    times["finished_at"] = statements.moment(dt.datetime.now(dt.UTC))
    for entry in entries:
        latest = entry["future_until"]
        kept = None if latest is None else statements.moment(from_micros(latest))
        entry |= times | {"future_until": kept}
    _many(raw, statements.ledger, entries)
    loads = [(entry["id"], entry["rows_future"]) for entry in entries]
    return Pushed(revision, True, bool(pending), True, loads)


def _one(raw: sqlite3.Connection, statement: _Statement, given: Values) -> Any:
    (row,) = raw.execute(statement.sql, statement.values(given)).fetchall()
    return row


def _many(raw: sqlite3.Connection, statement: _Statement, rows: Sequence[Values]) -> None:
    raw.executemany(statement.sql, [statement.values(row) for row in rows])


def _stamped(
    statements: _Statements, plan: PushPlan, rows: Rows, first: int, now: int
) -> list[dict[str, Any]]:
    """Rows as history's columns, and the one by which a global view's online row goes."""
    stamped = []
    for arrival, row in enumerate(rows, first):
        values = [
            value if encoder is None or value is None else encoder(value)
            for encoder, value in zip(statements.encoders, row, strict=True)
        ]
        stored = dict(zip(plan.columns, values, strict=True))
        stored |= {ARRIVAL: arrival, SINGLE: 0}
        if stored.get(CREATED) is None:
            stored[CREATED] = now
        stamped.append(stored)
    return stamped


def _entry(plan: PushPlan, number: int, times: Sequence[int], until: int) -> dict[str, Any]:
    """A load as the ledger has it, but for the moments."""
    ahead = [time for time in times if time > until]
    return {
        "id": number,
        "view_id": plan.view_id,
        "kind": "push",
        "source": "rows",
        "first_arrival": number * BLOCK if times else None,
        "last_arrival": number * BLOCK + len(times) - 1 if times else None,
        "rows_read": len(times),
        "rows_written": len(times),
        "rows_rejected": 0,
        "rows_future": len(ahead),
        "future_until": max(ahead, default=None),
    }
