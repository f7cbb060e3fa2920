"""The async repository over one view: entities read online, versions written, history read."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import pyarrow as pa
import sqlalchemy as sa

from featurestore.context import Context
from featurestore.errors import (
    DefinitionError,
    InvalidRow,
    InvalidRowsError,
    NotFoundError,
    SchemaMismatchError,
)
from featurestore.ingest.writer import entity_text
from featurestore.online.vectors import OnlineFeatures, Status
from featurestore.reports import PushReport
from featurestore.storage.extracting import arrow_batches
from featurestore.storage.registry import RegisteredView
from featurestore.storage.session import Session
from featurestore.storage.tables import ARRIVAL, CREATED, EVENT, oldest_first, revision_mark
from featurestore.storage.upkeep import erase
from featurestore.types import (
    FeatureType,
    Timestamp,
    TypeMismatch,
    ValueMismatch,
)

SCAN_ROWS = 16_384

INLINE_ROWS = 200
"""Online rows up to this many are made into dicts on the loop, in about a millisecond."""


class Calls(Protocol):
    """What a repository asks of its store or transaction."""

    async def push(self, view: str, rows: Any) -> PushReport: ...

    async def get_online_features(
        self, features: str, entity_rows: Sequence[Mapping[str, Any]]
    ) -> OnlineFeatures: ...


class FeatureRepository:
    """One view as an async repository. Made by ``store.repository(view)``.

    Example::

        drivers = store.repository("driver_stats")
        await drivers.upsert([{"driver_id": 7, "event_timestamp": now, "conv_rate": 0.4}])
        await drivers.get(driver_id=7)      # {"driver_id": 7, "conv_rate": 0.4}
    """

    def __init__(self, calls: Calls, context: Context, name: str) -> None:
        self._calls = calls
        self._context = context
        self.view = name

    async def get(self, **keys: Any) -> dict[str, Any] | None:
        """The entity's features as of now, after its join keys; None where there is nothing, or
        nothing within the ttl."""
        found = (await self.get_many([keys]))[0]
        checked_keys((await self._context.known_catalog()).view(self.view), keys)
        return found

    async def get_many(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
        """:meth:`get` for several entities at once, in order."""
        answer = await self._calls.get_online_features(f"{self.view}:*", rows)
        if len(answer) > INLINE_ROWS:
            return await asyncio.to_thread(_there, answer)
        return _there(answer)

    async def upsert(self, rows: Any) -> PushReport:
        """Add a version of each row's entity; the newest event time is what is read online."""
        return await self._calls.push(self.view, rows)

    async def history(
        self, start: dt.datetime | None = None, end: dt.datetime | None = None, **keys: Any
    ) -> pa.Table:
        """Stored rows with an event time in [start, end] of the entities with these keys, oldest
        first: join keys, event time, created time where the view has one, features."""
        async with self._context.reading([self.view]) as (session, catalog):
            view = catalog.view(self.view)
            wanted = checked_keys(view, keys)
            query = _select(session, view, wanted, start, end)
            query = query.prefix_with(revision_mark(catalog.revision))
            query = query.order_by(*oldest_first(view.history))
            batches = [
                batch async for batch in arrow_batches(session, query, _types(view), SCAN_ROWS)
            ]
        return pa.Table.from_batches(batches, _schema(view))

    async def scan(
        self,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
        batch_size: int = SCAN_ROWS,
    ) -> AsyncIterator[pa.RecordBatch]:
        """All stored rows with an event time in [start, end] in order of arrival, in batches of
        at most ``batch_size``; memory stays bounded."""
        if batch_size < 1:
            raise DefinitionError(f"batch_size={batch_size}: it must be at least 1.")
        async with self._context.reading([self.view]) as (session, catalog):
            view = catalog.view(self.view)
            query = _select(session, view, {}, start, end).order_by(view.history.c[ARRIVAL])
            query = query.prefix_with(revision_mark(catalog.revision))
            rows = arrow_batches(session, query, _types(view), batch_size)
            async with aclosing(rows) as batches:
                async for batch in batches:
                    yield batch

    async def count(self) -> int:
        """How many rows history holds."""
        async with self._context.reading([self.view]) as (session, catalog):
            view = catalog.view(self.view)
            rows = await session.rows(sa.select(sa.func.count()).select_from(view.history))
            return int(rows[0][0])

    async def delete(self, **keys: Any) -> int:
        """Erase an entity from history, online and quarantine; how many rows history had of it.

        All join keys must be given: raises :class:`DefinitionError` otherwise.
        """
        async with self._context.exclusive(self.view) as (session, view):
            wanted = checked_keys(view, keys)
            missing = [key for key in view.view.join_keys if key not in wanted]
            if missing or not wanted:
                named = ", ".join(map(repr, missing)) or "a global view has none"
                raise DefinitionError(
                    f"view {self.view!r}: delete erases one entity and needs all of its join keys; "
                    f"missing: {named}."
                )
            ordered = {key: wanted[key] for key in view.view.join_keys}
            return await erase(session, view, ordered, entity_text(list(ordered.values())))


def _there(answer: OnlineFeatures) -> list[dict[str, Any] | None]:
    there = (Status.PRESENT, Status.NULL_VALUE)
    return [
        values if all(status in there for status in statuses.values()) else None
        for values, statuses in zip(answer.to_dicts(), answer.statuses, strict=True)
    ]


def checked_keys(view: RegisteredView, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Values of join keys, some of them perhaps, as their types keep them."""
    checked = {}
    for name, value in keys.items():
        kind = view.view.join_keys.get(name)
        if kind is None:
            missing = NotFoundError.of("join key", name, view.view.join_keys)
            raise SchemaMismatchError(f"view {view.name!r}: {missing}")
        try:
            checked[name] = kind.python(value)
        except TypeMismatch as error:
            raise SchemaMismatchError(f"join key {name!r}: {error}; it must be {kind}.") from None
        except ValueMismatch as error:
            raise InvalidRowsError("the join keys", [InvalidRow(0, f"{name}: {error}")]) from None
    return checked


def entity_keys(view: RegisteredView, keys: Any) -> dict[str, Any]:
    """The keys of one entity, all of them, in the view's order; :class:`SchemaMismatchError` where
    one is missing or of a wrong type."""
    if not isinstance(keys, Mapping):
        raise SchemaMismatchError(
            f"keys is a mapping from join keys to values, such as {{'driver_id': 1}}, not "
            f"{type(keys).__name__}."
        )
    checked = checked_keys(view, keys)
    for name, kind in view.view.join_keys.items():
        if name not in checked:
            raise SchemaMismatchError(
                f"view {view.name!r}: the join key {name!r} ({kind}) is missing."
            )
    return {name: checked[name] for name in view.view.join_keys}


def _columns(view: RegisteredView) -> dict[str, tuple[str, FeatureType]]:
    """Output column → its column in history, and its type."""
    columns = {key: (key, kind) for key, kind in view.view.join_keys.items()}
    columns[view.view.timestamp_field] = (EVENT, Timestamp)
    if view.view.created_timestamp_field is not None:
        columns[view.view.created_timestamp_field] = (CREATED, Timestamp)
    return columns | {name: (name, kind) for name, kind in view.view.types.items()}


def _types(view: RegisteredView) -> dict[str, FeatureType]:
    return {name: kind for name, (_, kind) in _columns(view).items()}


def _schema(view: RegisteredView) -> pa.Schema:
    return pa.schema([(name, kind.arrow) for name, kind in _types(view).items()])


def _select(
    session: Session,
    view: RegisteredView,
    keys: Mapping[str, Any],
    start: dt.datetime | None,
    end: dt.datetime | None,
) -> sa.Select[Any]:
    history, bind = view.history, session.dialect.bind
    read = session.dialect.read
    columns = [read(kind, history.c[stored]) for stored, kind in _columns(view).values()]
    labelled = [column.label(f"c{index}") for index, column in enumerate(columns)]
    query = sa.select(*labelled).where(
        *(history.c[key] == bind(view.view.join_keys[key], value) for key, value in keys.items())
    )
    if start is not None:
        query = query.where(history.c[EVENT] >= bind(Timestamp, moment(start, "start")))
    if end is not None:
        query = query.where(history.c[EVENT] <= bind(Timestamp, moment(end, "end")))
    return query


def moment(value: Any, name: str) -> dt.datetime:
    """A bound of time as an aware datetime; a naive one is UTC."""
    try:
        result: dt.datetime = Timestamp.python(value)
    except (TypeMismatch, ValueMismatch) as error:
        raise DefinitionError(f"{name}: {error}; it must be a datetime.") from None
    return result
