"""The store: a facade whose methods say what there is to do, in a few lines each."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from featurestore.calls import Calls
from featurestore.context import StoreContext, TransactionContext
from featurestore.definitions import (
    Definition,
    Entity,
    FeatureService,
    FeatureView,
    check_name,
)
from featurestore.errors import DefinitionError
from featurestore.export.run import export_history
from featurestore.historical import ViewName, view_name
from featurestore.online.cache import LIVE, Cache, CachedRows
from featurestore.online.gather import Reads
from featurestore.online.keys import Key
from featurestore.online.plan import OnlinePlan
from featurestore.online.shape import FoundRow
from featurestore.reports import (
    ExportReport,
    Load,
    MaterializeReport,
    OnExport,
    QuarantinedRow,
    StoreStats,
    UndoReport,
)
from featurestore.repository import moment
from featurestore.storage import forks, ledger, migrations, schema, upkeep
from featurestore.storage.dialect import Found
from featurestore.storage.engine import Database
from featurestore.storage.limits import DEFAULT_LIMITS, Limits
from featurestore.storage.marks import Mark, take_mark
from featurestore.storage.notices import Listener, channel_of, tell_of_apply
from featurestore.storage.planning import Plan
from featurestore.storage.registry import Catalog
from featurestore.storage.waiting import uninterrupted


class FeatureStore(Calls):
    """A project of features in a database; an async context manager.

    ``url`` is a SQLAlchemy URL (``postgresql://…``, ``sqlite:///file.db``), by default
    ``FEATURESTORE_URL``, else SQLite in ``featurestore.db`` of the working folder. An ``engine``
    given instead is borrowed: it is used and never disposed. Projects share a database and
    nothing else. A row whose event time is at most ``clock_skew`` ahead of the database's clock
    counts as now. ``limits`` bound how long callers wait, and how many. With a ``cache`` online
    reads may be answered by what was read before, as far as it allows. Making a store does no
    I/O.

    Example::

        async with FeatureStore("postgresql://localhost/features") as store:
            await store.apply([driver_stats])
            await store.ingest(driver_stats)
            vectors = await store.get_online_features(["driver_stats:*"], [{"driver_id": 7}])
    """

    def __init__(
        self,
        url: str | sa.URL | None = None,
        *,
        engine: AsyncEngine | None = None,
        project: str = "default",
        clock_skew: dt.timedelta = dt.timedelta(seconds=60),
        limits: Limits = DEFAULT_LIMITS,
        cache: Cache | None = None,
    ) -> None:
        if not isinstance(clock_skew, dt.timedelta) or clock_skew < dt.timedelta(0):
            raise DefinitionError("clock_skew must be a timedelta of zero or more.")
        self.project = check_name("project", project)
        self._database = Database(url, engine, limits)
        self._reads = Reads(self._database)
        super().__init__(StoreContext(self._database, project, clock_skew))
        self._domain = (self._database.engine.dialect.name, project)
        self._context.on_written = partial(LIVE.changed, self._domain)
        self._cache_of = cache
        self._cache: CachedRows | None = None
        if cache is not None:
            self._use(cache)
        forks.renew_after_fork(self, FeatureStore._begin_anew)

    def _begin_anew(self) -> None:
        """In a forked process, by itself: the store goes on there with connections of its own."""
        forks.keep(vars(self).copy())
        self._database.begin_anew()
        super()._begin_anew()
        closed = self._reads.closed
        self._reads = Reads(self._database)
        self._reads.closed = closed
        if self._cache is not None and self._cache_of is not None:
            LIVE.remove(self._domain, self._cache)
            if not closed:
                self._use(self._cache_of)

    def _use(self, cache: Cache) -> None:
        if not isinstance(cache, Cache):
            raise DefinitionError(f"cache={cache!r}: it is a featurestore.Cache, or None.")
        self._cache = rows = CachedRows(cache)
        self._listener = Listener(
            self._database, channel_of(self.project), rows.changed, rows.forget_notifying
        )
        LIVE.add(self._domain, rows)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections of an engine that the store has made, once the reads that wait
        have their answers, and pushes that were sent theirs; those that wait still are told."""
        if self._cache is not None:
            LIVE.remove(self._domain, self._cache)
            self._cache.close()
            await uninterrupted(self._listener.close())
        await uninterrupted(self._pushes.close(), seconds=None)
        await uninterrupted(self._reads.close())
        await self._database.close()

    @property
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's engine beneath, for queries of one's own."""
        return self._database.engine

    @property
    def stats(self) -> StoreStats:
        """What the store does at this moment, and has done since it was made."""
        pool = (self._database.pool_size, self._database.pool_in_use)
        cache = None if self._cache is None else self._cache.stats()
        return StoreStats(self._reads.stats(), self._pushes.stats(), *pool, cache=cache)

    def _cached(self, plan: OnlinePlan, keys: Sequence[Key]) -> Sequence[FoundRow] | None:
        return None if self._cache is None else self._cache.look(plan.shelf, keys)

    def _find(self, plan: OnlinePlan, keys: Sequence[Key]) -> Awaitable[Found]:
        if self._cache is None:
            return self._reads.find(plan.lane, plan.lookups, keys)
        if plan.shelf.notifies:
            self._listener.start()
        read = partial(self._reads.find, plan.lane, plan.lookups)
        return self._cache.find(plan.shelf, keys, read)

    def __repr__(self) -> str:
        return f"<FeatureStore {self._database.label} project={self.project!r}>"

    # --- definitions ----------------------------------------------------------------------

    async def migrate(self) -> tuple[str | None, str]:
        """Bring the registry's schema to this code's revision; the revisions before and after."""
        return await migrations.migrate_database(self._database)

    async def plan(self, definitions: Definition | Iterable[Definition]) -> Plan:
        """The changes that :meth:`apply` would make. Nothing is changed, and a database that was
        never migrated counts as empty."""
        async with self._context.snapshot() as session:
            if await migrations.database_revision(session) is None:
                catalog = Catalog(self.project)
            else:
                catalog = await self._context.catalog(session)
            return await schema.plan_changes(session, catalog, definitions)

    async def apply(
        self, definitions: Definition | Iterable[Definition], *, allow: Iterable[str] = ()
    ) -> Plan:
        """Bring the registry and its tables to the definitions, in one transaction.

        An empty database is migrated first. What is not given stays as it is. Dropping fields
        and narrowing types lose data: they need ``allow={"drop"}`` and ``allow={"narrow"}``.
        """
        definitions = _listed(definitions)
        try:
            async with self._context.transaction() as session:
                if await migrations.database_revision(session) is None:
                    await migrations.migrate_session(session)
                plan = await schema.apply_changes(
                    session, self.project, definitions, allow, self._context.skew
                )
                if plan.changes:
                    await tell_of_apply(session, self.project)
        finally:
            LIVE.changed(self._domain, None)
        self._context.forget()
        return plan

    async def list_entities(self) -> list[Entity]:
        """The registered entities, by name."""
        return list((await self._catalog()).entities.values())

    async def list_views(self) -> list[FeatureView]:
        """The registered feature views, by name."""
        return [registered.view for registered in (await self._catalog()).views.values()]

    async def list_services(self) -> list[FeatureService]:
        """The registered feature services, by name."""
        return list((await self._catalog()).services.values())

    async def get_view(self, name: str) -> FeatureView:
        """The registered view; :class:`NotFoundError` with the closest names."""
        return (await self._catalog()).view(name).view

    async def get_service(self, name: str) -> FeatureService:
        """The registered service; :class:`NotFoundError` with the closest names."""
        return (await self._catalog()).service(name)

    async def get_entity(self, name: str) -> Entity:
        """The registered entity; :class:`NotFoundError` with the closest names."""
        return (await self._catalog()).entity(name)

    async def _catalog(self) -> Catalog:
        async with self._context.snapshot() as session:
            return await self._context.catalog(session)

    async def mark(self) -> Mark:
        """What the store knows at this moment, to be asked for later by ``as_of``."""
        async with self._context.snapshot() as session:
            await self._context.catalog(session)
            return await take_mark(session)

    # --- upkeep ---------------------------------------------------------------------------

    async def materialize(
        self,
        views: ViewName | Iterable[ViewName] | None = None,
        *,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
    ) -> MaterializeReport:
        """Set online to the point-in-time rule at this moment, a transaction per view.

        For all keys, or for those with an event in [start, end]. It brings rows online whose
        time was ahead when they came; everything else a write has brought online already.
        """
        began = time.perf_counter()
        bounds = [None if at is None else moment(at, "start and end") for at in (start, end)]
        catalog = await self._catalog()
        if views is None:
            names = [name for name, view in catalog.views.items() if view.view.online]
        else:
            listed = [views] if isinstance(views, str | FeatureView) else views
            names = [view_name(view) for view in listed]
        for name in names:
            catalog.view(name).online_or_error()
        changed = {}
        for name in names:
            async with self._context.exclusive(name) as (session, view):
                changed[name] = await upkeep.materialize(
                    session, view, self._context.skew, bounds[0], bounds[1]
                )
        return MaterializeReport(changed, time.perf_counter() - began)

    async def loads(
        self,
        view: ViewName | None = None,
        *,
        load_id: int | None = None,
        limit: int | None = None,
    ) -> list[Load]:
        """The ledger: every load of the view, or of the project, oldest first; only the one
        numbered ``load_id``, or the latest ``limit``."""
        name = None if view is None else view_name(view)
        _check_whole(limit=limit)
        async with self._context.snapshot() as session:
            catalog = await self._context.catalog(session)
            return await ledger.list_loads(session, catalog, name, load_id, limit)

    async def rejected(
        self,
        load_id: int | None = None,
        view: ViewName | None = None,
        *,
        limit: int | None = None,
        after_row: int | None = None,
    ) -> list[QuarantinedRow]:
        """Rows that loads with ``on_invalid="quarantine"`` have set aside, in file order; the
        latest ``limit`` of them. Without a limit it takes as much memory as they need.

        ``after_row`` goes through a load's page by page: with it they are the first ``limit``
        behind that row of the file, from -1 on.
        """
        name = None if view is None else view_name(view)
        _check_whole(limit=limit)
        _check_whole(after_row=after_row, least=-1)
        async with self._context.snapshot() as session:
            catalog = await self._context.catalog(session)
            return await ledger.list_rejected(session, catalog, load_id, name, limit, after_row)

    async def undo_load(self, load_id: int) -> UndoReport:
        """Take one load's rows back out, online included; its file can be loaded again."""
        async with self._context.snapshot() as session:
            catalog = await self._context.catalog(session)
            name = (await ledger.find_load(session, catalog, load_id))[0].name
        return await self._undo(name, load_id)

    async def export_history(
        self,
        view: ViewName,
        path: str | os.PathLike[str],
        *,
        buckets: int | None = None,
        progress: OnExport | None = None,
    ) -> ExportReport:
        """Write a Parquet copy of a view's history into a folder, or bring the one that is there
        up to date: rows that came since are added, those undone or erased are taken out.

        Each row is in it once. The rows of a key are in one of ``buckets`` parts of the copy, 16
        where nothing is said, which stays as the first export has it. An export that fails or is
        killed leaves the copy as it was. :class:`SourceError` where the folder has anything else,
        cannot be written, or another export into it is under way. ``progress`` is called with an
        :class:`ExportProgress` now and then.
        """
        return await export_history(self._context, view_name(view), path, buckets, progress)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """``async with store.transaction() as tx``: pushes, loads and reads that see them, which
        all commit at the end or, on any error, fail as one."""
        written: set[str] = set()
        try:
            async with self._context.transaction() as session:
                inner = TransactionContext(session, self.project, self._context.skew, written.add)
                try:
                    yield Transaction(inner, self)
                finally:
                    await uninterrupted(inner.close())
        finally:
            for view in written:
                self._context.on_written(view, None)


class Transaction(Calls):
    """The calls of a store inside one transaction. Made by :meth:`FeatureStore.transaction`."""


def _check_whole(*, least: int = 0, **given: object) -> None:
    for name, value in given.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and least <= value < 2**63):  # type: ignore[operator]
            raise DefinitionError(
                f"{name}={value!r}: it is a whole number of {least} or more, or None."
            )


def _listed(definitions: Definition | Iterable[Definition]) -> list[Definition]:
    if isinstance(definitions, Entity | FeatureView | FeatureService):
        return [definitions]
    return list(definitions)
