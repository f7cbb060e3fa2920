"""Pushes: checked in their callers' tasks, gathered, and written in one round trip.

What does not go that way is left to a load of its own (``rows.py``): many rows, Arrow, rows that
do not fit, or may not by now; and the first rows of a view, which make its index.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from featurestore.context import Context, StoreContext
from featurestore.errors import StoreUnavailableError
from featurestore.ingest.gather import (
    GROUP_BYTES,
    GROUP_VALUES,
    GROUPS_AT_ONCE,
    Gatherer,
    Refusal,
    Written,
)
from featurestore.ingest.job import Job
from featurestore.ingest.layout import Layout
from featurestore.ingest.read import RowReader
from featurestore.ingest.rows import is_arrow, listed, load_arrow, push_rows, write_rows
from featurestore.ingest.writer import INLINE_ROWS, SMALL
from featurestore.reports import GatherStats, LoadReport
from featurestore.storage.counts import Counts
from featurestore.storage.engine import Database
from featurestore.storage.faults import LayoutChanged, lost_to_others
from featurestore.storage.limits import DEFAULT_LIMITS
from featurestore.storage.notices import notice
from featurestore.storage.push import Pushed, PushPlan, Rows, push
from featurestore.storage.registry import Catalog, RegisteredView
from featurestore.storage.tables import key_index

_TRIES = 3
"""A push notices at most this many applies in a row; after that it waits for them."""

_SENDS = 6
"""How often a group is sent at most: it may have to bring due rows online as well, to ask for an
isolation of its own, and twice to give way to others."""


class Loaded(NamedTuple):
    """What became of a push's rows."""

    load_id: int
    rows_written: int
    rows_rejected: int
    rows_future: int


@dataclass(frozen=True)
class _Way:
    """How rows of a view are read and written, for as long as its definition says the same."""

    view: RegisteredView
    reader: RowReader
    plan: PushPlan


@dataclass
class _Lane:
    """The pushes of one view. ``due`` says that older rows of it have yet to come online."""

    catalog: Catalog
    reader: RowReader
    plan: PushPlan
    gatherer: Gatherer | None = None
    due: bool = False


class Pushes:
    """The pushes of a store, or those inside a transaction, which are not gathered; a transaction
    has what its store (``outside``) has made of the views."""

    def __init__(self, context: Context, outside: Pushes | None = None) -> None:
        self._context = context
        self._database: Database | None = None
        limits, label = DEFAULT_LIMITS, ""
        if isinstance(context, StoreContext):
            self._database = context.database
            limits, label = self._database.limits, self._database.label
        # Until a database turns out to have transactions that do not see what they waited for.
        self._by_itself = True
        self._counts = Counts(limits, label, "push", "not written")
        self._lanes: dict[str, _Lane] = {}
        self._ways: dict[str, _Way] = {} if outside is None else outside._ways

    async def push(self, job: Callable[[], Job], name: str, rows: Any) -> Loaded:
        """Write rows given as mappings, or as an Arrow-compatible table: one load.

        ``job`` makes what a load of its own needs, where it comes to that.
        """
        if is_arrow(rows):
            return _loaded(await load_arrow(job(), rows, kind="push"))
        rows = listed(rows)
        if len(rows) <= SMALL:
            if self._database is None:
                return await self._inside(job(), name, rows)
            written = await self._gathered(name, rows)
            if written is not None:
                return Loaded(written[0], len(rows), 0, written[1])
        return _loaded(await push_rows(job(), rows))

    def stats(self) -> GatherStats:
        """What the pushes have come to so far."""
        return self._counts.stats()

    async def close(self) -> None:
        """Those under way end; those that wait are told that nothing was written."""
        gatherers = [lane.gatherer for lane in self._lanes.values() if lane.gatherer]
        await asyncio.gather(*(gatherer.close() for gatherer in gatherers))

    # --- what is known of a view ----------------------------------------------------------

    def _lane(self, name: str, catalog: Catalog, view: RegisteredView) -> _Lane:
        lane = self._lanes.get(name)
        if lane is not None and lane.catalog is catalog:
            return lane
        way = self._ways.get(name)
        if way is None or not _write_alike(way.view, view):
            way = self._ways[name] = self._way(view)
        plan = replace(way.plan, revision=catalog.revision)
        if lane is None:
            lane = self._lanes[name] = _Lane(catalog, way.reader, plan)
            lane.gatherer = self._gatherer(name, lane)
        lane.catalog, lane.reader, lane.plan = catalog, way.reader, plan
        return lane

    def _way(self, view: RegisteredView) -> _Way:
        reader, keys = RowReader(Layout(view.view)), view.view.join_keys
        context = self._context
        plan = PushPlan(
            project=context.project,
            revision=0,
            view_id=view.id,
            history=view.history,
            online=view.online,
            keys=keys,
            columns=reader.columns,
            skew=context.skew,
            notice=notice(context.project, view.name, keys) if view.view.notify else None,
        )
        return _Way(view, reader, plan)

    def _gatherer(self, name: str, lane: _Lane) -> Gatherer | None:
        if self._database is None:
            return None

        async def send(plan: PushPlan, callers: Sequence[Rows]) -> Sequence[Written] | Refusal:
            try:
                return await self._sent(lane, plan, callers)
            finally:
                keys = len(plan.keys)
                self._context.on_written(name, [row[:keys] for rows in callers for row in rows])

        dialect, half = self._database.dialect, self._database.pool_size // 2
        return Gatherer(
            self._counts,
            send,
            at_once=1 if dialect.single_writer else max(1, min(GROUPS_AT_ONCE, half)),
            commit_seconds=dialect.commit_seconds,
        )

    # --- by itself ------------------------------------------------------------------------

    async def _gathered(self, name: str, rows: Sequence[Any]) -> Written | None:
        """The load of the rows; None where they have to go another way."""
        self._counts.request(len(rows))
        catalog = await self._context.known_catalog()
        for _ in range(_TRIES):
            view = catalog.views.get(name)
            if view is None:
                return None
            lane = self._lane(name, catalog, view)
            # An apply of this process may change the lane while a thread reads.
            plan, gatherer = lane.plan, lane.gatherer
            assert gatherer is not None
            few = len(rows) <= INLINE_ROWS
            read = _read(lane.reader, rows) if few else await _read_aside(lane.reader, rows)
            if read is None:
                return None
            answer = await gatherer.write(plan, *read)
            if not isinstance(answer, Refusal):
                return answer
            if answer is Refusal.UNINDEXED:
                return None
            catalog = await self._context.newer_catalog(catalog)
        return None

    async def _sent(
        self, lane: _Lane, plan: PushPlan, callers: Sequence[Rows]
    ) -> Sequence[Written] | Refusal:
        for left in reversed(range(_SENDS)):
            try:
                pushed = await self._pushed(plan, callers, due=lane.due)
            except LayoutChanged:
                return Refusal.MOVED
            except StoreUnavailableError as error:
                if not left or not lost_to_others(error):
                    raise
                continue
            if refusal := self._judged(lane, plan, pushed):
                return refusal
            if pushed.loads:
                return pushed.loads
        return Refusal.MOVED

    def _judged(self, lane: _Lane, plan: PushPlan, pushed: Pushed) -> Refusal | None:
        """What an answer teaches for the next one; why the rows cannot be written, if so."""
        # Rows ahead of the clock are pending for those that follow.
        lane.due = pushed.pending or any(ahead for _, ahead in pushed.loads)
        if pushed.loads:
            return None
        if pushed.revision != plan.revision:
            return Refusal.MOVED
        if not pushed.indexed:
            return Refusal.UNINDEXED
        if not pushed.isolated:
            self._by_itself = False
        return None

    async def _pushed(self, plan: PushPlan, callers: Sequence[Rows], *, due: bool) -> Pushed:
        assert self._database is not None
        if self._by_itself:
            return await push(self._database, plan, callers, due=due)
        async with self._context.transaction() as session:
            return await session.push(plan, callers, due=due)

    # --- inside a transaction -------------------------------------------------------------

    async def _inside(self, job: Job, name: str, rows: Sequence[Any]) -> Loaded:
        async with job.begin() as (session, view):
            # Asked before, since this locks what a push would lock less: two transactions that
            # both raise their locks would wait for each other.
            _, unindexed = await session.dialect.begin_load(session, key_index(view.history))
            catalog = await self._context.known_catalog()  # as it was just found to be
            for _ in range(0 if unindexed else _SENDS):
                lane = self._lane(name, catalog, catalog.view(name))
                few = len(rows) <= INLINE_ROWS
                read = _read(lane.reader, rows) if few else await _read_aside(lane.reader, rows)
                if read is None:
                    break
                pushed = await session.push(lane.plan, [read[0]], due=lane.due)
                self._judged(lane, lane.plan, pushed)
                if pushed.loads:
                    return Loaded(pushed.loads[0][0], len(rows), 0, pushed.loads[0][1])
                catalog = await self._context.catalog(session)
            return _loaded(await write_rows(job, session, view, rows))


def _write_alike(one: RegisteredView, other: RegisteredView) -> bool:
    """Whether rows are read and written in the same way by two definitions of a view."""
    same = one.id == other.id and one.view.notify == other.view.notify
    return same and Layout(one.view).writes_as(Layout(other.view))


def _read(reader: RowReader, rows: Sequence[Any]) -> tuple[Rows, int] | None:
    """The rows and about how many bytes they have; None where they are to go another way."""
    if len(rows) * len(reader.columns) > GROUP_VALUES:
        return None
    read = reader.read(rows)
    if read is None:
        return None
    size = reader.size(read)
    return None if size > GROUP_BYTES else (read, size)


async def _read_aside(reader: RowReader, rows: Sequence[Any]) -> tuple[Rows, int] | None:
    return await asyncio.to_thread(_read, reader, rows)


def _loaded(report: LoadReport) -> Loaded:
    return Loaded(report.load_id, report.rows_written, report.rows_rejected, report.rows_future)
