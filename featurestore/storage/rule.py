"""Online follows the point-in-time rule at t = now: the statements that keep it so.

Every statement here computes, for some keys, the newest row of history whose event time is not
ahead of ``until`` (the database's clock plus the allowed skew), and takes it online. Writes only
ever raise a key to a newer row, so they need no lock against each other; undo, erasure and
materialize may lower one, and hold the view's lock alone.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from featurestore.storage.dialect import Dialect
from featurestore.storage.tables import ARRIVAL, CREATED, EVENT, SINGLE
from featurestore.types import FeatureType, Timestamp


def keys_written(
    history: sa.Table, keys: Sequence[str], first: int, last: int
) -> sa.Select[tuple[Any, ...]]:
    """The distinct keys of the rows that arrived as ``first`` to ``last``."""
    arrived = history.c[ARRIVAL].between(first, last)
    return _distinct_keys(history, keys).where(arrived)


def keys_with_events(
    dialect: Dialect,
    history: sa.Table,
    keys: Sequence[str],
    start: dt.datetime | None,
    end: dt.datetime | None,
) -> sa.Select[tuple[Any, ...]]:
    """The distinct keys with an event in [start, end]; an open end is None."""
    query = _distinct_keys(history, keys)
    if start is not None:
        query = query.where(history.c[EVENT] >= dialect.bind(Timestamp, start))
    if end is not None:
        query = query.where(history.c[EVENT] <= dialect.bind(Timestamp, end))
    return query


def keys_online_from(
    online: sa.Table, keys: Sequence[str], first: int, last: int
) -> sa.Select[tuple[Any, ...]]:
    """The keys whose online row arrived as one of ``first`` to ``last``."""
    return _distinct_keys(online, keys).where(online.c[ARRIVAL].between(first, last))


def _distinct_keys(table: sa.Table, keys: Sequence[str]) -> sa.Select[tuple[Any, ...]]:
    if not keys:
        columns: list[sa.ColumnElement[Any]] = [sa.literal(0, sa.Integer).label(SINGLE)]
        return sa.select(*columns).select_from(table).distinct()
    return sa.select(*(table.c[key] for key in keys)).distinct()


def take_online(
    dialect: Dialect,
    history: sa.Table,
    online: sa.Table,
    keys: Mapping[str, FeatureType],
    of: sa.Select[tuple[Any, ...]],
    until: dt.datetime,
    *,
    without: tuple[int, int] | None = None,
    replace: bool = False,
) -> sa.Executable:
    """Bring the keys ``of`` online: by default only where the rule's row is newer.

    With ``replace`` an online row becomes the rule's whatever it was; ``without`` leaves a range
    of arrivals out of account, as if it had been undone.
    """
    wanted = of.subquery("wanted")
    limit = dialect.bind(Timestamp, until)

    def match(rows: sa.FromClause) -> list[sa.ColumnElement[bool]]:
        found = [rows.c[key] == wanted.c[key] for key in keys]
        found.append(rows.c[EVENT] <= limit)
        if without is not None:
            found.append(sa.not_(rows.c[ARRIVAL].between(*without)))
        return found

    joined, best = dialect.join_latest(wanted, history, match)
    features = [c.name for c in online.c if c.name in history.c and c.name not in keys]
    identity = list(keys) or [SINGLE]
    columns = [wanted.c[name] for name in identity] + [best.c[name] for name in features]
    query = sa.select(*columns).select_from(joined).where(best.c[ARRIVAL].is_not(None))
    # Keys in order: two writers of the same keys in different orders would deadlock.
    query = query.order_by(*(wanted.c[name] for name in identity))
    statement = dialect.upsert(online).from_select([*identity, *features], query)
    return settle_conflict(statement, online, keys, replace=replace)


def settle_conflict(
    statement: Any, online: sa.Table, keys: Mapping[str, FeatureType], *, replace: bool
) -> sa.Executable:
    """What an insert into an online table does where the key is there already."""
    identity = list(keys) or [SINGLE]
    new = statement.excluded
    changed = [c for c in online.c if c.name not in identity]
    if replace:
        guard = sa.or_(*(c.is_distinct_from(new[c.name]) for c in changed))
    else:
        order = (EVENT, CREATED, ARRIVAL)
        guard = sa.tuple_(*(new[n] for n in order)) > sa.tuple_(*(online.c[n] for n in order))
    result: sa.Executable = statement.on_conflict_do_update(
        index_elements=[online.c[name] for name in identity],
        set_={c.name: new[c.name] for c in changed},
        where=guard,
    )
    return result


def drop_unfounded(
    dialect: Dialect,
    history: sa.Table,
    online: sa.Table,
    keys: Mapping[str, FeatureType],
    until: dt.datetime,
) -> sa.Delete:
    """Delete online rows for which history has nothing up to ``until``."""
    rows = history.alias()
    founded = sa.select(sa.literal(1)).where(
        *(rows.c[key] == online.c[key] for key in keys),
        rows.c[EVENT] <= dialect.bind(Timestamp, until),
    )
    return sa.delete(online).where(~founded.correlate(online).exists())
