"""A push to PostgreSQL: one statement, which commits by itself.

Its parts stand in the order in which they lock: history, online, the ledger. Whoever locks a
view's tables against pushes takes them in that order, and a push that comes meanwhile waits for
history before it has a snapshot, so it sees what the other has left.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from featurestore.storage.dialect import BLOCK
from featurestore.storage.postgresql_wire import calling
from featurestore.storage.push import Pushed, PushPlan, Rows
from featurestore.storage.rule import settle_conflict
from featurestore.storage.tables import (
    ARRIVAL,
    CREATED,
    EVENT,
    SINGLE,
    arrival_sequence,
    key_index,
    load,
    newest_first,
    project,
)
from featurestore.storage.waiting import STOP_SECONDS
from featurestore.types import (
    ArrayType,
    Bool,
    Bytes,
    Date,
    DecimalType,
    FeatureType,
    Json,
    String,
    Timestamp,
)

if TYPE_CHECKING:
    from featurestore.storage.postgresql import PostgreSQL

Select = sa.Select[Any]

ANSWER_SECONDS = 10.0
"""How long a push whose caller was cancelled may take to stop: a server that is there answers at
once, even where its COMMIT waits for a replica."""

_CALLER = "__caller"  # beside a view's own columns, whose names hold no "__"


@dataclass(frozen=True)
class _Statement:
    """Its text, the names of its values in their order, and those that are always the same."""

    sql: str
    order: tuple[str, ...]
    constants: dict[str, Any]
    encoders: tuple[Callable[[Any], Any] | None, ...]


async def push(
    dialect: PostgreSQL,
    compiler: sa.Dialect,
    driver: Any,
    plan: PushPlan,
    callers: Sequence[Rows],
    *,
    due: bool,
    begun: bool,
) -> Pushed:
    """Run the statement; see :meth:`featurestore.storage.dialect.Dialect.push`."""
    statement: _Statement | None = plan.cache.get(due)
    if statement is None:  # it takes some ten milliseconds to make, more for wide views
        statement = await asyncio.to_thread(_compiled, dialect, compiler, plan, due=due)
        plan.cache[due] = statement
    values = statement.constants | _arrays(statement, callers) | {"revision": plan.revision}
    if plan.notice is not None:
        keys = len(plan.keys)
        values["notice"] = plan.notice.text(row[:keys] for rows in callers for row in rows)
    # By itself it is a COMMIT that was sent: a caller that is cancelled asks for its end, and waits
    # for the answer that says whether it was.
    async with calling(driver, patience=STOP_SECONDS if begun else ANSWER_SECONDS):
        records = await driver.fetch(statement.sql, *[values[name] for name in statement.order])
    revision, indexed, pending, isolated, number, *_ = records[0]
    written = [] if number is None else [(record[4], record[5]) for record in records]
    return Pushed(revision, indexed, pending, isolated, written)


# --- values -------------------------------------------------------------------------------


def _arrays(statement: _Statement, callers: Sequence[Rows]) -> dict[str, Any]:
    """The rows as one array per column, with the number of the caller of each."""
    counts = [len(rows) for rows in callers]
    arrays: dict[str, Any] = {
        "counts": counts,
        "firsts": [0, *itertools.accumulate(counts)][:-1],
        "caller": [n for n, count in enumerate(counts, 1) for _ in range(count)],
    }
    columns: Sequence[Sequence[Any]] = list(
        zip(*itertools.chain.from_iterable(callers), strict=True)
    ) or [()] * len(statement.encoders)
    for index, (encode, column) in enumerate(zip(statement.encoders, columns, strict=True)):
        if encode is not None:
            column = [None if value is None else encode(value) for value in column]
        arrays[f"c{index}"] = column
    return arrays


def _encoder(kind: FeatureType) -> Callable[[Any], Any] | None:
    """How a value of ``kind`` is sent, None where it is as it is.

    Dates and timestamps go as text, see :meth:`PostgreSQL.bind`. Arrays go as PostgreSQL writes
    them, since an array of arrays would have to be of equal lengths.
    """
    if kind in (Date, Timestamp):
        return dt.date.isoformat if kind == Date else dt.datetime.isoformat
    if not isinstance(kind, ArrayType):
        return None
    element = _element(kind.item)

    def written(values: Sequence[Any]) -> str:
        return f"{{{','.join('NULL' if v is None else element(v) for v in values)}}}"

    return written


def _element(item: FeatureType) -> Callable[[Any], str]:
    if item == String:
        return _quoted
    if item == Bytes:
        return lambda value: f'"\\\\x{value.hex()}"'
    if item in (Date, Timestamp):
        return lambda value: f'"{value.isoformat()}"'
    if item == Bool:
        return lambda value: "t" if value else "f"
    # A float's repr is the shortest text that gives it back.
    return str if isinstance(item, DecimalType) else repr


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _passed(dialect: PostgreSQL, kind: FeatureType) -> sa.types.TypeEngine[Any]:
    """The type as which values of ``kind`` are sent."""
    as_text = kind in (Date, Timestamp, Json) or isinstance(kind, ArrayType)
    return sa.Text() if as_text else dialect.column_type(kind)


# --- the statement ------------------------------------------------------------------------


def _compiled(
    dialect: PostgreSQL, compiler: sa.Dialect, plan: PushPlan, *, due: bool
) -> _Statement:
    query = _statement(dialect, compiler, plan, due=due)
    result: Any = query.compile(dialect=compiler)
    constants = {name: bind.value for name, bind in result.binds.items()}
    return _Statement(
        str(result),
        tuple(result.positiontup),
        constants,
        tuple(_encoder(kind) for kind in plan.columns.values()),
    )


def _statement(dialect: PostgreSQL, compiler: sa.Dialect, plan: PushPlan, *, due: bool) -> Select:
    gate = _gate(compiler, plan, due=due)
    loads = _loads(gate)
    rows = _stamped(dialect, plan, gate, loads)
    stored = [ARRIVAL, EVENT, CREATED, *(c for c in plan.columns if c not in (EVENT, CREATED))]
    written: list[sa.CTE] = [
        plan.history.insert()
        .from_select(stored, sa.select(*(rows.c[name] for name in stored)))
        .cte("history")
    ]
    if plan.online is not None:
        written.append(_online(plan, plan.online, gate, rows, stored, due=due))
    ledger = _ledger(plan, gate, loads, rows)
    answer: list[sa.ColumnElement[Any]] = [
        gate.c.revision, gate.c.indexed, gate.c.pending, gate.c.isolated,
        ledger.c.id, ledger.c.rows_future,
    ]  # fmt: skip
    if plan.notice is not None:
        text = sa.bindparam("notice", type_=sa.Text)
        told = sa.cast(sa.func.pg_notify(plan.notice.channel, text), sa.Text)
        answer.append(sa.select(told).select_from(gate).where(gate.c.open).scalar_subquery())
    return (
        sa.select(*answer)
        .select_from(gate.outerjoin(ledger, sa.true()))
        .order_by(ledger.c.id)
        .add_cte(*written)
    )


def _gate(compiler: sa.Dialect, plan: PushPlan, *, due: bool) -> sa.CTE:
    """One row: whether all is as the plan has it (``open``), and the time."""
    revision = sa.func.coalesce(
        sa.select(project.c.revision).where(project.c.name == plan.project).scalar_subquery(), 0
    )
    name = compiler.identifier_preparer.quote(str(key_index(plan.history).name))
    indexed = sa.func.to_regclass(name).is_not(None)
    # What waited for a lock must see what was committed meanwhile. A database may be set to
    # transactions that do not.
    isolation = sa.func.current_setting("transaction_isolation")
    pending: sa.ColumnElement[bool] = sa.false()
    if plan.online is not None:
        pending = sa.exists().where(
            load.c.view_id == plan.view_id,
            load.c.future_until.is_not(None),
            load.c.undone_at.is_(None),
        )
    found = sa.select(
        revision.label("revision"),
        indexed.label("indexed"),
        pending.label("pending"),
        (isolation == "read committed").label("isolated"),
        sa.func.clock_timestamp().label("now"),
    ).cte("found")
    seconds = plan.skew // dt.timedelta(seconds=1)
    micros = (plan.skew % dt.timedelta(seconds=1)) // dt.timedelta(microseconds=1)
    # Not in days, which follow the session's zone through daylight saving.
    skew = sa.cast(sa.literal(f"{seconds}.{micros:06d} seconds", sa.Text), pg.INTERVAL())
    expected = sa.bindparam("revision", type_=sa.BigInteger)
    is_open = [found.c.revision == expected, found.c.indexed, found.c.isolated]
    if not due:
        is_open.append(sa.not_(found.c.pending))
    return sa.select(
        found, (found.c.now + skew).label("until"), sa.and_(*is_open).label("open")
    ).cte("gate")


def _loads(gate: sa.CTE) -> sa.CTE:
    """A load for each caller, in their order; none where the gate is closed."""
    counts = [sa.cast(sa.bindparam(name), pg.ARRAY(sa.Integer())) for name in ("firsts", "counts")]
    callers = (
        sa.func.unnest(*counts)
        .table_valued("first", "rows", with_ordinality="caller", name="callers")
        .render_derived()
    )
    return (
        sa.select(callers, arrival_sequence.next_value().label("id"))
        .join_from(callers, gate, gate.c.open)
        .order_by(callers.c.caller)
        .cte("loads")
    )


def _stamped(dialect: PostgreSQL, plan: PushPlan, gate: sa.CTE, loads: sa.CTE) -> sa.CTE:
    """The rows as history's columns, and whose they are."""
    types = [sa.Integer(), *(_passed(dialect, kind) for kind in plan.columns.values())]
    names = ["caller", *(f"c{index}" for index in range(len(plan.columns)))]
    arrays = [
        sa.cast(sa.bindparam(name), pg.ARRAY(kind)) for name, kind in zip(names, types, strict=True)
    ]
    sent = (
        sa.func.unnest(*arrays)
        .table_valued(*names, with_ordinality="position", name="sent")
        .render_derived()
    )
    columns: dict[str, sa.ColumnElement[Any]] = {}
    for index, (name, kind) in enumerate(plan.columns.items()):
        value, given, kept = sent.c[f"c{index}"], types[index + 1], dialect.column_type(kind)
        columns[name] = value if given is kept else sa.cast(value, kept)
    created = columns.get(CREATED)
    now = gate.c.now
    columns[CREATED] = now if created is None else sa.func.coalesce(created, now)
    columns[ARRIVAL] = loads.c.id * BLOCK + sent.c.position - 1 - loads.c.first
    labelled = [column.label(name) for name, column in columns.items()]
    return (
        sa.select(loads.c.caller.label(_CALLER), *labelled)
        .select_from(sent)
        .join(loads, loads.c.caller == sent.c.caller)
        .join(gate, sa.true())
        .cte("rows")
    )


def _online(
    plan: PushPlan, online: sa.Table, gate: sa.CTE, rows: sa.CTE, stored: list[str], *, due: bool
) -> sa.CTE:
    """Each key's newest row that is not ahead goes online where it is newer than what is there."""
    identity = list(plan.keys) or [SINGLE]
    features = [name for name in stored if name not in plan.keys]
    query: Select = sa.select(*(rows.c[name] for name in stored)).join_from(
        rows, gate, rows.c[EVENT] <= gate.c.until
    )
    if due:
        # The statement does not see its own rows in history.
        query = sa.select(
            sa.union_all(query, _come_due(plan, gate, rows, stored)).subquery("candidates")
        )
    candidates = query.subquery("newest")
    keys = [candidates.c[key] for key in plan.keys]
    given: list[sa.ColumnElement[Any]] = [*keys] or [sa.literal(0, sa.Integer)]
    # Keys in order: two writers of the same keys in different orders would deadlock.
    newest = sa.select(*given, *(candidates.c[name] for name in features)).order_by(
        *keys, *newest_first(candidates)
    )
    newest = newest.ext(pg.distinct_on(*keys)) if keys else newest.limit(1)
    statement = pg.insert(online).from_select([*identity, *features], newest)
    settled: Any = settle_conflict(statement, online, plan.keys, replace=False)
    cte: sa.CTE = settled.cte("online")
    return cte


def _come_due(plan: PushPlan, gate: sa.CTE, rows: sa.CTE, stored: list[str]) -> Select:
    """The newest row of history up to now for each key that is written."""
    wanted = sa.select(*(rows.c[key] for key in plan.keys)).distinct().subquery("wanted")
    history = plan.history.alias()
    best = (
        sa.select(*(history.c[name] for name in stored))
        .where(*(history.c[key] == wanted.c[key] for key in plan.keys))
        .where(history.c[EVENT] <= gate.c.until)
        .order_by(*newest_first(history))
        .limit(1)
    )
    if not plan.keys:
        found = best.correlate(gate).lateral("due")
        joined = gate.join(found, gate.c.open)
        return sa.select(*(found.c[name] for name in stored)).select_from(joined)
    found = best.correlate(gate, wanted).lateral("due")
    return sa.select(*(found.c[name] for name in stored)).select_from(
        wanted.join(gate, sa.true()).join(found, sa.true())
    )


def _ledger(plan: PushPlan, gate: sa.CTE, loads: sa.CTE, rows: sa.CTE) -> sa.CTE:
    """An entry for each caller's load."""
    first = sa.case((loads.c.rows > 0, loads.c.id * BLOCK))
    ahead = rows.c[EVENT] > gate.c.until
    entries = (
        sa.select(
            loads.c.id,
            sa.literal(plan.view_id, sa.Integer),
            sa.literal("push", sa.Text),
            sa.literal("rows", sa.Text),
            first,
            first + loads.c.rows - 1,
            loads.c.rows,
            loads.c.rows,
            sa.literal(0, sa.Integer),
            sa.func.count(rows.c[ARRIVAL]).filter(ahead),
            sa.func.max(rows.c[EVENT]).filter(ahead),
            gate.c.now,
            sa.func.clock_timestamp(),
        )
        .select_from(loads)
        .join(gate, sa.true())
        .outerjoin(rows, rows.c[_CALLER] == loads.c.caller)
        .group_by(loads.c.id, loads.c.rows, gate.c.now)
    )
    names = [
        "id", "view_id", "kind", "source", "first_arrival", "last_arrival", "rows_read",
        "rows_written", "rows_rejected", "rows_future", "future_until", "started_at", "finished_at",
    ]  # fmt: skip
    return (
        load.insert()
        .from_select(names, entries)
        .returning(load.c.id, load.c.rows_future)
        .cte("ledger")
    )
