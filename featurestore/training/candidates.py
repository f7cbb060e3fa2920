"""The rows of one key about a moment, read from history with their loads, and explained."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from featurestore.storage.dialect import BLOCK, Dialect
from featurestore.storage.registry import RegisteredView
from featurestore.storage.session import Session
from featurestore.storage.tables import (
    ARRIVAL,
    CREATED,
    EVENT,
    load,
    newest_first,
    oldest_first,
    revision_mark,
)
from featurestore.training.explain import (
    Candidate,
    Explanation,
    OnlineAnswer,
    Rank,
    Verdict,
    choose,
    compare_online,
    judge,
    oldest_of,
    reason_of,
)
from featurestore.training.rule import KnownBy
from featurestore.types import Timestamp

_PART = "__part"
_HISTORY, _ONLINE = 0, 1
_BEFORE_FEATURES = 4  # part, event time, created time, arrival


async def explain(
    session: Session,
    view: RegisteredView,
    keys: Mapping[str, Any],
    at: dt.datetime | None,
    *,
    known_by: KnownBy | None,
    limit: int,
    revision: int,
) -> Explanation:
    """What the view gives for ``keys`` (checked, all of them) at ``at``, and why."""
    dialect = session.dialect
    moment = await dialect.now(session) if at is None else at
    oldest = oldest_of(moment, view.ttl)
    online = view.online if at is None else None
    query = candidates_query(dialect, view, keys, moment, known_by, limit, online)
    found = await session.rows(query.prefix_with(revision_mark(revision)))
    history = sorted(_ranked(dialect, found, _HISTORY), reverse=True, key=lambda one: one[0])
    kept = choose(judge([rank for rank, _ in history], moment, oldest, known_by), limit)
    chosen = [history[position] for position in kept]
    ledger = await _loads(session, {row[-2] for _, row in chosen})

    def explained() -> Explanation:
        candidates = _candidates(dialect, view, chosen, ledger, moment, oldest, known_by)
        told = Explanation(
            view.name,
            dict(keys),
            moment,
            view.view.ttl,
            oldest,
            known_by,
            dict.fromkeys(view.view.types),
            candidates,
            int(found[0][-1]) if found else 0,
        )
        if told.winner is not None:
            told = replace(told, values=told.winner.values)
        if online is None:
            return told
        return replace(told, online=_online_answer(dialect, view, found, told))

    # A value may be a long document, and there may be a thousand rows.
    return await asyncio.to_thread(explained)


def _online_answer(
    dialect: Dialect, view: RegisteredView, found: Sequence[Sequence[Any]], told: Explanation
) -> OnlineAnswer:
    rank, values = None, dict.fromkeys(view.view.types)
    if there := _ranked(dialect, found, _ONLINE):
        [(rank, row)] = there
        values = _values(dialect, view, row)
    return compare_online(
        rank, values, told.winner, at=told.at, oldest=told.oldest, known_by=told.known_by
    )


def candidates_query(
    dialect: Dialect,
    view: RegisteredView,
    keys: Mapping[str, Any],
    at: dt.datetime,
    known_by: KnownBy | None,
    limit: int,
    online: sa.Table | None,
) -> sa.Select[Any]:
    """The rows about ``at``, each with its part, load and the count of all rows of the key.

    One statement: in a transaction that others commit beside, each would see another state. Each
    part is one descent into the index on keys and event time.
    """
    history = view.history
    event, created = history.c[EVENT], history.c[CREATED]
    moment = dialect.bind(Timestamp, at)
    columns = [EVENT, CREATED, ARRIVAL, *view.view.types]

    def of_key(table: sa.Table) -> list[sa.ColumnElement[bool]]:
        kinds = view.view.join_keys.items()
        return [table.c[name] == dialect.bind(kind, keys[name]) for name, kind in kinds]

    def rows(
        table: sa.Table, part: int, where: Sequence[sa.ColumnElement[bool]], newest: bool = True
    ) -> sa.Select[Any]:
        chosen = [sa.literal(part, sa.Integer).label(_PART), *(table.c[name] for name in columns)]
        order = newest_first(table) if newest else oldest_first(table)
        query = sa.select(*chosen).where(*of_key(table), *where).order_by(*order)
        return sa.select(query.limit(limit).subquery())

    counts = [event <= moment] if known_by is None else [event <= moment, created <= moment]
    parts = [rows(history, _HISTORY, counts)]
    if known_by is not None:
        parts.append(rows(history, _HISTORY, [event <= moment, created > moment]))
    parts.append(rows(history, _HISTORY, [event > moment], newest=False))
    if online is not None:
        parts.append(rows(online, _ONLINE, []))
    found = sa.union_all(*parts).subquery("found")
    values = [dialect.read(kind, found.c[name]) for name, kind in view.view.types.items()]
    # A load has several blocks, and its number is that of the first.
    of_load = sa.select(sa.func.max(load.c.id)).where(load.c.id <= found.c[ARRIVAL] // BLOCK)
    count = sa.select(sa.func.count()).select_from(history).where(*of_key(history))
    selected = [
        *(found.c[name] for name in (_PART, EVENT, CREATED, ARRIVAL)),
        *values,
        of_load.scalar_subquery(),
        count.scalar_subquery(),
    ]
    return sa.select(*(one.label(f"c{index}") for index, one in enumerate(selected)))


def _ranked(
    dialect: Dialect, found: Sequence[Sequence[Any]], part: int
) -> list[tuple[Rank, Sequence[Any]]]:
    return [
        ((dialect.decode(Timestamp, row[1]), dialect.decode(Timestamp, row[2]), row[3]), row)
        for row in found
        if row[0] == part
    ]


async def _loads(session: Session, numbers: set[int]) -> dict[int, Any]:
    """The ledger's entries; undone ones stay in it, so those of rows just read are there."""
    query = sa.select(load).where(load.c.id.in_(sorted(numbers)))
    return {row.id: row for row in (await session.execute(query)).all()}


def _values(dialect: Dialect, view: RegisteredView, row: Sequence[Any]) -> dict[str, Any]:
    return {
        name: None if value is None else dialect.decode(kind, value)
        for (name, kind), value in zip(
            view.view.types.items(), row[_BEFORE_FEATURES:-2], strict=True
        )
    }


def _candidates(
    dialect: Dialect,
    view: RegisteredView,
    rows: Sequence[tuple[Rank, Sequence[Any]]],
    ledger: Mapping[int, Any],
    at: dt.datetime,
    oldest: dt.datetime | None,
    known_by: KnownBy | None,
) -> tuple[Candidate, ...]:
    ranks = [rank for rank, _ in rows]
    verdicts = judge(ranks, at, oldest, known_by)
    winner = ranks[verdicts.index(Verdict.WINNER)] if Verdict.WINNER in verdicts else None
    candidates = []
    for (rank, row), verdict in zip(rows, verdicts, strict=True):
        event, created, arrival = rank
        entry = ledger[row[-2]]
        candidates.append(
            Candidate(
                event,
                created,
                arrival,
                entry.id,
                entry.kind,
                entry.source,
                arrival - entry.first_arrival,
                entry.finished_at,
                _values(dialect, view, row),
                verdict,
                reason_of(verdict, rank, winner, at, oldest),
            )
        )
    return tuple(candidates)
