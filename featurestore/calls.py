"""The calls that a store and a transaction share: write, read online, build training sets."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from featurestore.context import Context, TransactionContext
from featurestore.definitions import FeatureView, ParquetSource
from featurestore.errors import (
    DefinitionError,
    InvalidRowsError,
    NotFoundError,
    SchemaMismatchError,
    SourceError,
)
from featurestore.historical import HistoricalCalls, ViewName, view_name
from featurestore.ingest.budget import MAX_BYTES_IN_FLIGHT, MAX_DECODED_BYTES, Budget
from featurestore.ingest.files import load_files
from featurestore.ingest.job import FILES_AT_ONCE, Job
from featurestore.ingest.progress import OnProgress
from featurestore.ingest.push import Pushes
from featurestore.ingest.rows import is_arrow, load_arrow
from featurestore.ingest.sources import resolve_sources
from featurestore.ingest.stream import MAX_ROWS, MAX_SECONDS, OnStream, Stream, check_stream
from featurestore.ingest.writer import OnInvalid
from featurestore.online.keys import Key, listed_rows
from featurestore.online.plan import OnlinePlan, OnlinePlans
from featurestore.online.shape import FoundFeatures, FoundRow
from featurestore.online.vectors import OnlineFeatures
from featurestore.reports import (
    IngestReport,
    LoadReport,
    PushReport,
    StreamReport,
    UndoReport,
    write_warnings,
)
from featurestore.repository import FeatureRepository
from featurestore.selection import Features
from featurestore.storage import forks
from featurestore.storage.dialect import Found
from featurestore.storage.faults import LayoutChanged
from featurestore.storage.ledger import find_load
from featurestore.storage.upkeep import undo

T = TypeVar("T")


INLINE_ENTITIES = 1_000
"""Entity rows up to this many are checked on the loop: less than a millisecond, where a thread
would cost a lone caller a tenth of one."""

_OUT_OF_DATE = (
    NotFoundError, DefinitionError, SchemaMismatchError, InvalidRowsError, LayoutChanged,
)  # fmt: skip
"""What a read may end with where the registry is older here than the definitions it goes by."""

_READ_TRIES = 3
"""A read notices at most this many applies in a row by other processes."""


class Calls(HistoricalCalls):
    """What :class:`FeatureStore` and :class:`Transaction` have in common."""

    def __init__(self, context: Context, outside: Calls | None = None) -> None:
        super().__init__(context)
        self._plans = OnlinePlans()
        self._pushes: Pushes = Pushes(context, None if outside is None else outside._pushes)

    def _begin_anew(self) -> None:
        """In a forked process: read and write with nothing that the parent has under way."""
        forks.keep(self._plans, self._pushes)
        self._context.begin_anew()
        self._plans = OnlinePlans()
        self._pushes = Pushes(self._context)

    async def ingest(
        self,
        view: ViewName,
        source: Any = None,
        *,
        on_invalid: OnInvalid = "raise",
        force: bool = False,
        progress: OnProgress | None = None,
        commit_every: int | None = None,
        files_at_once: int = FILES_AT_ONCE,
        max_bytes_in_flight: int = MAX_BYTES_IN_FLIGHT,
        max_decoded_bytes: int = MAX_DECODED_BYTES,
    ) -> IngestReport:
        """Load Parquet or Arrow into a view: history, online and ledger, a transaction per file.

        ``source`` is a path, glob, folder, URL, a :class:`ParquetSource`, several of them, or any
        object with ``__arrow_c_stream__``; by default the view's own. Content that the view has
        already is skipped unless ``force``. Rows that do not fit raise
        :class:`InvalidRowsError` and nothing of their file is kept, or with
        ``on_invalid="quarantine"`` are set aside (:meth:`FeatureStore.rejected`).

        ``commit_every`` commits a file every so many rows instead of once: where that breaks off,
        the rows committed stay, and loading the file again goes on after them.
        ``files_at_once`` files are loaded side by side on PostgreSQL; they commit in their order.
        ``max_bytes_in_flight`` bounds what is held of files at any moment, in bytes, and
        ``max_decoded_bytes`` what a row group may decode to (:class:`SourceError` beyond it).
        """
        if on_invalid not in ("raise", "quarantine"):
            raise DefinitionError(f"on_invalid={on_invalid!r}: it is 'raise' or 'quarantine'.")
        _check_counts(
            commit_every=1 if commit_every is None else commit_every,
            files_at_once=files_at_once,
            max_bytes_in_flight=max_bytes_in_flight,
            max_decoded_bytes=max_decoded_bytes,
        )
        started, name = time.perf_counter(), view_name(view)
        async with self._context.snapshot() as session:
            registered = (await self._context.catalog(session)).view(name).view
            single_writer = session.dialect.single_writer
        inside = isinstance(self._context, TransactionContext)
        if inside and commit_every is not None:
            raise DefinitionError("commit_every: inside a transaction nothing is committed before.")
        if inside or single_writer or commit_every is not None:
            files_at_once = 1
        given = source if isinstance(source, ParquetSource) else registered.source
        job = replace(
            self._job(name, on_invalid, force),
            mapping={} if given is None else given.field_mapping,
            progress=progress,
            commit_every=commit_every,
            budget=Budget.of(max_bytes_in_flight, max_decoded_bytes),
        )
        if is_arrow(source):
            loads = [await load_arrow(job, source)]
        else:
            files = await resolve_sources(_paths(source, registered))
            at_once = min(files_at_once, max(len(files), 1))
            budget = Budget.of(max_bytes_in_flight // at_once, max_decoded_bytes)
            job = replace(job, files_at_once=at_once, budget=budget)
            loads = await load_files(job, files)
        return IngestReport(name, tuple(loads), time.perf_counter() - started, _warnings(loads))

    async def push(self, view: ViewName, rows: Any) -> PushReport:
        """Write rows (mappings, or any Arrow-compatible table): durable and readable online
        when this returns."""
        name = view_name(view)
        loaded = await self._pushes.push(partial(self._job, name, "raise", True), name, rows)
        return PushReport(name, loaded.load_id, loaded.rows_written, loaded.rows_future)

    async def push_stream(
        self,
        view: ViewName,
        source: AsyncIterable[Any],
        *,
        max_rows: int = MAX_ROWS,
        max_seconds: float = MAX_SECONDS,
        on_invalid: OnInvalid = "raise",
        progress: OnStream | None = None,
    ) -> StreamReport:
        """Write what an async iterator gives, until it ends: rows (mappings), lists of rows,
        Arrow batches or tables, mixed even.

        Rows are gathered into micro-batches of at most ``max_rows``, each written by a push of
        its own, in the order in which they came. A row waits ``max_seconds`` at most for others;
        with 0, what has come is written whenever the database is free. The source is asked for
        more only while fewer than ``max_rows`` rows wait, beside those being written.
        ``progress`` is called after each micro-batch with the report so far.

        An error of the source is raised once the rows before it are written, and a row that does
        not fit raises :class:`InvalidRowsError` with its number within the stream, once those
        before it are; a note on the error says how many they are. With
        ``on_invalid="quarantine"`` such a row is set aside (:meth:`FeatureStore.rejected`,
        counted within its micro-batch), one with an unknown or missing name too, and the stream
        goes on. Cancelled, the rows that wait are dropped, and of the micro-batch being written
        all or nothing is kept. The source is closed (``aclose``) in any case.
        """
        check_stream(source, max_rows, max_seconds, on_invalid)
        name = view_name(view)
        async with self._context.snapshot() as session:
            (await self._context.catalog(session)).view(name)  # before the source is asked
        inside = isinstance(self._context, TransactionContext)
        job = partial(self._job, name, on_invalid, True)
        return await Stream(
            partial(self._pushes.push, job, name),
            name,
            source,
            max_rows=max_rows,
            max_seconds=max_seconds,
            progress=progress,
            kept="they stay if the transaction around it commits" if inside else "they stay",
        ).run()

    def _job(self, name: str, on_invalid: OnInvalid, force: bool) -> Job:
        return Job(
            begin=lambda: self._context.writing(name),
            undo=lambda load_id: self._undo(name, load_id),
            skew=self._context.skew,
            on_invalid=on_invalid,
            force=force,
        )

    async def _undo(self, name: str, load_id: int) -> UndoReport:
        async with self._context.exclusive(name) as (session, view):
            catalog = await self._context.catalog(session)
            _, row = await find_load(session, catalog, load_id)
            return await undo(session, view, row, self._context.skew)

    def repository(self, view: ViewName) -> FeatureRepository:
        """The async repository over one view."""
        return FeatureRepository(self, self._context, view_name(view))

    async def get_online_features(
        self,
        features: Features,
        entity_rows: Sequence[Mapping[str, Any]],
        *,
        full_feature_names: bool = False,
    ) -> OnlineFeatures:
        """The feature vector of each entity row as of now, in one round trip.

        ``entity_rows`` are mappings with the views' join keys; other entries are ignored. A value
        that is not there, or older than its view's ttl, is None: ``statuses`` says which.
        """
        rows = entity_rows if type(entity_rows) is list else await _listed(entity_rows)
        if isinstance(features, Iterator):  # it may be gone through again
            features = list(features)
        catalog = self._context.known or await self._context.known_catalog()
        for _ in range(_READ_TRIES):
            try:
                plan = self._plans.get(features, catalog, full_feature_names=full_feature_names)
                if len(rows) <= INLINE_ENTITIES:
                    keys = plan.shape.keys(rows)
                else:
                    keys = await asyncio.to_thread(plan.shape.keys, rows)
                if not keys:
                    return FoundFeatures(plan.shape, [], [])
                kept = self._cached(plan, keys)
                if kept is not None:
                    return FoundFeatures(plan.shape, keys, kept)
                found = await self._find(plan, keys)
            except _OUT_OF_DATE:
                # Another process may have applied what is not known here.
                newer = await self._context.newer_catalog(catalog)
                if newer.revision == catalog.revision:
                    raise
                catalog = newer
                continue
            if found is not None:
                return FoundFeatures(plan.shape, keys, found)
            catalog = await self._context.newer_catalog(catalog)
        raise LayoutChanged("Definitions are being applied again and again; repeat the call.")

    def _cached(self, plan: OnlinePlan, keys: Sequence[Key]) -> Sequence[FoundRow] | None:
        """The rows of a request, where a cache has them all."""
        return None

    def _find(self, plan: OnlinePlan, keys: Sequence[Key]) -> Awaitable[Found]:
        """Look up the rows of a request."""
        return self._find_here(plan, keys)

    async def _find_here(self, plan: OnlinePlan, keys: Sequence[Key]) -> Found:
        async with self._context.connection() as session:
            return await session.find_online(plan.lookups, keys)


async def _listed(entity_rows: Any) -> Sequence[Any]:
    """Entity rows as a sequence; tables and iterators are gone through in a thread."""
    return await asyncio.to_thread(listed_rows, entity_rows)


def _check_counts(**counts: object) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise DefinitionError(f"{name}={count!r}: it is a whole number of 1 or more.")


def _paths(source: Any, view: FeatureView) -> list[str]:
    if source is None:
        if view.source is None:
            raise SourceError(
                f"view {view.name!r} has no source of its own: name the files to ingest."
            )
        return list(view.source.paths)
    if isinstance(source, ParquetSource):
        return list(source.paths)
    if isinstance(source, str | os.PathLike):
        return [os.fspath(source)]
    if isinstance(source, Iterable) and not isinstance(source, Mapping | bytes):
        return [path for one in source for path in _paths(one, view)]
    raise SourceError(
        f"{type(source).__name__} cannot be ingested: give a path, glob, folder, several of them, "
        f"or an object with __arrow_c_stream__ (Arrow, pandas, Polars …)."
    )


def _warnings(loads: Sequence[LoadReport]) -> tuple[str, ...]:
    return write_warnings(
        sum(load.rows_future for load in loads), sum(load.rows_rejected for load in loads)
    )
