"""Which rows of history entity rows can have a use for, where these leave the database."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from featurestore.selection import Join
from featurestore.storage.registry import RegisteredView
from featurestore.storage.session import Session
from featurestore.storage.tables import EVENT
from featurestore.training.entities import Entities
from featurestore.training.rule import AT, Question
from featurestore.types import MIN_TIMESTAMP, Bytes, Timestamp

FEW_KEYS = 2_000
"""Up to so many different keys are sent along. The database looks each row up among them, which
costs less than to bring it here; many more would make a statement of some size."""

_SAMPLE_ROWS = 50_000


async def history_bounds(
    session: Session,
    view: RegisteredView,
    joins: Sequence[Join],
    entities: Entities,
    question: Question,
) -> list[sa.ColumnElement[bool]]:
    """Conditions on the rows of a view's history that the joins may need: seen at the mark,
    within the span of time, and of the entities' keys where these are few."""
    history, bind = view.history, session.dialect.bind
    times = await asyncio.to_thread(pc.min_max, entities.keys.column(AT))
    first, last = times["min"].as_py(), times["max"].as_py()
    conditions = question.seen(joins[0], history)
    if first is None:
        return [*conditions, sa.false()]
    conditions.append(history.c[EVENT] <= bind(Timestamp, last))
    if view.ttl is not None:
        conditions.append(history.c[EVENT] >= bind(Timestamp, _before(first, view.ttl)))
    if len(joins) == 1 and view.view.join_keys:
        keys = await asyncio.to_thread(few_keys, entities.keys, joins[0])
        if keys is not None:
            conditions.append(await asyncio.to_thread(_among, session, view, joins[0], keys))
    return conditions


def _before(moment: dt.datetime, ttl: dt.timedelta) -> dt.datetime:
    try:
        return moment - ttl
    except OverflowError:
        return MIN_TIMESTAMP


def few_keys(table: pa.Table, join: Join) -> pa.Table | None:
    """The different keys of a join in the entity rows; None where they are many."""
    columns = list(dict.fromkeys(column for _, column in join.columns))
    if Bytes in join.view.view.join_keys.values():
        return None  # no literal for them that both databases know
    for rows in (table.slice(0, _SAMPLE_ROWS), table):
        found = rows.select(columns).group_by(columns).aggregate([])
        if found.num_rows > FEW_KEYS:
            return None
    return found.drop_null()


def _among(
    session: Session, view: RegisteredView, join: Join, keys: pa.Table
) -> sa.ColumnElement[bool]:
    kinds, bind = view.view.join_keys, session.dialect.bind
    if not keys.num_rows:
        return sa.false()
    # Column by column: more rows than those of the keys' combinations, each of which PostgreSQL
    # would compare with every row, where it looks single values up in a hash table.
    conditions = []
    for key, column in join.columns:
        values = pc.unique(keys.column(column)).to_pylist()
        conditions.append(view.history.c[key].in_([bind(kinds[key], one) for one in values]))
    return sa.and_(*conditions)
