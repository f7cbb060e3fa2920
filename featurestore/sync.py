"""The same store without ``await``, for scripts and notebooks.

One thread runs an event loop for all stores of the process, and every call is handed to it: a
loop that runs already, as in a notebook, is not disturbed, and threads may share a store. After a
fork the child has a loop and connections of its own (:mod:`featurestore.storage.forks`). What a
call does stands in :mod:`featurestore.store` and is not written twice; nor is its documentation,
which :func:`documented_by` brings here.

Example::

    with fs.sync.FeatureStore() as store:
        training = store.get_historical_features(labels, "eta").to_pandas()
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from featurestore import calls, repository
from featurestore import store as store_module
from featurestore.definitions import Definition, Entity, FeatureService, FeatureView
from featurestore.historical import ViewName
from featurestore.ingest.budget import MAX_BYTES_IN_FLIGHT, MAX_DECODED_BYTES
from featurestore.ingest.job import FILES_AT_ONCE
from featurestore.ingest.progress import OnProgress
from featurestore.ingest.stream import MAX_ROWS, MAX_SECONDS, OnStream
from featurestore.ingest.writer import OnInvalid
from featurestore.online.cache import Cache
from featurestore.online.vectors import OnlineFeatures
from featurestore.portal import entered, feed, iterate, portal
from featurestore.reports import (
    ExportReport,
    IngestReport,
    Load,
    MaterializeReport,
    OnExport,
    PushReport,
    QuarantinedRow,
    StoreStats,
    StreamReport,
    UndoReport,
)
from featurestore.selection import Features
from featurestore.storage.limits import DEFAULT_LIMITS, Limits
from featurestore.storage.marks import Mark
from featurestore.storage.planning import Plan
from featurestore.training import read
from featurestore.training.asked import AsOf, Engine, ReadFrom
from featurestore.training.explain import Explanation
from featurestore.training.replay import Replayed
from featurestore.training.report import OnTraining
from featurestore.training.rule import KnownBy
from featurestore.training.training_set import TrainingSet
from featurestore.twins import documented_by

__all__ = ["FeatureRepository", "FeatureStore", "HistoricalFeatures", "Transaction"]


class HistoricalFeatures(Iterator[pa.RecordBatch]):
    """The rows of a training set batch by batch, memory bounded: an iterator, which may be left
    early (:meth:`close`). ``summary`` is there when it has ended."""

    def __init__(self, stream: read.HistoricalFeatures) -> None:
        self._stream = stream
        self._batches = iterate(stream)

    @property
    def summary(self) -> TrainingSet | None:
        """The set without its rows: columns, match rates, manifest; None before the end."""
        return self._stream.summary

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> pa.RecordBatch:
        return next(self._batches)

    def close(self) -> None:
        """Stop reading, and give the connection back."""
        self._batches.close()


@documented_by(calls.Calls)
class _Calls:
    """What the store and a transaction have in common."""

    _async: calls.Calls

    def ingest(
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
        """See :meth:`featurestore.FeatureStore.ingest`.

        Here ``progress`` is called in a thread beside the caller's."""
        return portal.call(
            self._async.ingest(
                view,
                source,
                on_invalid=on_invalid,
                force=force,
                progress=progress,
                commit_every=commit_every,
                files_at_once=files_at_once,
                max_bytes_in_flight=max_bytes_in_flight,
                max_decoded_bytes=max_decoded_bytes,
            )
        )

    def push(self, view: ViewName, rows: Any) -> PushReport:
        """See :meth:`featurestore.FeatureStore.push`."""
        return portal.call(self._async.push(view, rows))

    def push_stream(
        self,
        view: ViewName,
        source: Iterable[Any],
        *,
        max_rows: int = MAX_ROWS,
        max_seconds: float = MAX_SECONDS,
        on_invalid: OnInvalid = "raise",
        progress: OnStream | None = None,
    ) -> StreamReport:
        """See :meth:`featurestore.FeatureStore.push_stream`.

        Here ``source`` is an ordinary iterator, read in the caller's thread: rows that wait are
        written while it takes its time, and an error of the store is raised when it has given its
        next item. ``progress`` is called in a thread beside it."""
        return feed(
            lambda items: self._async.push_stream(
                view,
                items,
                max_rows=max_rows,
                max_seconds=max_seconds,
                on_invalid=on_invalid,
                progress=progress,
            ),
            source,
        )

    def repository(self, view: ViewName) -> FeatureRepository:
        """See :meth:`featurestore.FeatureStore.repository`.

        Here its calls are without ``await``, too."""
        return FeatureRepository(self._async.repository(view))

    def get_online_features(
        self,
        features: Features,
        entity_rows: Sequence[Mapping[str, Any]],
        *,
        full_feature_names: bool = False,
    ) -> OnlineFeatures:
        """See :meth:`featurestore.FeatureStore.get_online_features`."""
        return portal.call(
            self._async.get_online_features(
                features, entity_rows, full_feature_names=full_feature_names
            )
        )

    def get_historical_features(
        self,
        entity_df: Any,
        features: Features,
        *,
        timestamp_column: str = "event_timestamp",
        engine: Engine = "auto",
        full_feature_names: bool = False,
        as_of: AsOf = None,
        known_by: KnownBy | None = None,
        read_from: ReadFrom | Mapping[str, ReadFrom] = "history",
        memory_limit: int | str | None = None,
        progress: OnTraining | None = None,
    ) -> TrainingSet:
        """See :meth:`featurestore.FeatureStore.get_historical_features`.

        Here ``progress`` is called in a thread beside the caller's."""
        return portal.call(
            self._async.get_historical_features(
                entity_df,
                features,
                timestamp_column=timestamp_column,
                engine=engine,
                full_feature_names=full_feature_names,
                as_of=as_of,
                known_by=known_by,
                read_from=read_from,
                memory_limit=memory_limit,
                progress=progress,
            )
        )

    def stream_historical_features(
        self,
        entity_df: Any,
        features: Features,
        *,
        timestamp_column: str = "event_timestamp",
        engine: Engine = "auto",
        full_feature_names: bool = False,
        as_of: AsOf = None,
        known_by: KnownBy | None = None,
        read_from: ReadFrom | Mapping[str, ReadFrom] = "history",
        memory_limit: int | str | None = None,
        progress: OnTraining | None = None,
    ) -> HistoricalFeatures:
        """See :meth:`featurestore.FeatureStore.stream_historical_features`.

        Here it is an ordinary iterator, which may be left early (``close``), and ``progress`` is
        called in a thread beside the caller's."""
        return HistoricalFeatures(
            self._async.stream_historical_features(
                entity_df,
                features,
                timestamp_column=timestamp_column,
                engine=engine,
                full_feature_names=full_feature_names,
                as_of=as_of,
                known_by=known_by,
                read_from=read_from,
                memory_limit=memory_limit,
                progress=progress,
            )
        )

    def replay(
        self,
        manifest: Replayed,
        entity_df: Any = None,
        *,
        engine: Engine = "auto",
        memory_limit: int | str | None = None,
        progress: OnTraining | None = None,
    ) -> TrainingSet:
        """See :meth:`featurestore.FeatureStore.replay`.

        Here ``progress`` is called in a thread beside the caller's."""
        return portal.call(
            self._async.replay(
                manifest, entity_df, engine=engine, memory_limit=memory_limit, progress=progress
            )
        )

    def explain(
        self,
        view: ViewName,
        keys: Mapping[str, Any],
        at: dt.datetime | None = None,
        *,
        known_by: KnownBy | None = None,
        limit: int = 10,
    ) -> Explanation:
        """See :meth:`featurestore.FeatureStore.explain`."""
        return portal.call(self._async.explain(view, keys, at, known_by=known_by, limit=limit))


@documented_by(store_module.FeatureStore)
class FeatureStore(_Calls):
    """:class:`featurestore.FeatureStore` without ``await``: a project of features in a database; a
    context manager, for any number of threads.

    Example::

        with fs.sync.FeatureStore("postgresql://localhost/features") as store:
            store.apply([driver_stats])
            store.ingest(driver_stats)
            vectors = store.get_online_features(["driver_stats:*"], [{"driver_id": 7}])
    """

    _async: store_module.FeatureStore

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
        self._async = store_module.FeatureStore(
            url, engine=engine, project=project, clock_skew=clock_skew, limits=limits, cache=cache
        )
        self.project = project

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._async).replace("<FeatureStore", "<sync.FeatureStore", 1)

    @property
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's async engine beneath."""
        return self._async.engine

    @property
    def stats(self) -> StoreStats:
        """See :attr:`featurestore.FeatureStore.stats`."""
        return self._async.stats

    def close(self) -> None:
        """See :meth:`featurestore.FeatureStore.close`."""
        portal.call(self._async.close())

    def migrate(self) -> tuple[str | None, str]:
        """See :meth:`featurestore.FeatureStore.migrate`."""
        return portal.call(self._async.migrate())

    def plan(self, definitions: Definition | Iterable[Definition]) -> Plan:
        """See :meth:`featurestore.FeatureStore.plan`."""
        return portal.call(self._async.plan(definitions))

    def apply(
        self, definitions: Definition | Iterable[Definition], *, allow: Iterable[str] = ()
    ) -> Plan:
        """See :meth:`featurestore.FeatureStore.apply`."""
        return portal.call(self._async.apply(definitions, allow=allow))

    def list_entities(self) -> list[Entity]:
        """See :meth:`featurestore.FeatureStore.list_entities`."""
        return portal.call(self._async.list_entities())

    def list_views(self) -> list[FeatureView]:
        """See :meth:`featurestore.FeatureStore.list_views`."""
        return portal.call(self._async.list_views())

    def list_services(self) -> list[FeatureService]:
        """See :meth:`featurestore.FeatureStore.list_services`."""
        return portal.call(self._async.list_services())

    def get_entity(self, name: str) -> Entity:
        """See :meth:`featurestore.FeatureStore.get_entity`."""
        return portal.call(self._async.get_entity(name))

    def get_view(self, name: str) -> FeatureView:
        """See :meth:`featurestore.FeatureStore.get_view`."""
        return portal.call(self._async.get_view(name))

    def get_service(self, name: str) -> FeatureService:
        """See :meth:`featurestore.FeatureStore.get_service`."""
        return portal.call(self._async.get_service(name))

    def mark(self) -> Mark:
        """See :meth:`featurestore.FeatureStore.mark`."""
        return portal.call(self._async.mark())

    def materialize(
        self,
        views: ViewName | Iterable[ViewName] | None = None,
        *,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
    ) -> MaterializeReport:
        """See :meth:`featurestore.FeatureStore.materialize`."""
        return portal.call(self._async.materialize(views, start=start, end=end))

    def loads(
        self,
        view: ViewName | None = None,
        *,
        load_id: int | None = None,
        limit: int | None = None,
    ) -> list[Load]:
        """See :meth:`featurestore.FeatureStore.loads`."""
        return portal.call(self._async.loads(view, load_id=load_id, limit=limit))

    def rejected(
        self,
        load_id: int | None = None,
        view: ViewName | None = None,
        *,
        limit: int | None = None,
        after_row: int | None = None,
    ) -> list[QuarantinedRow]:
        """See :meth:`featurestore.FeatureStore.rejected`."""
        return portal.call(self._async.rejected(load_id, view, limit=limit, after_row=after_row))

    def undo_load(self, load_id: int) -> UndoReport:
        """See :meth:`featurestore.FeatureStore.undo_load`."""
        return portal.call(self._async.undo_load(load_id))

    def export_history(
        self,
        view: ViewName,
        path: str | os.PathLike[str],
        *,
        buckets: int | None = None,
        progress: OnExport | None = None,
    ) -> ExportReport:
        """See :meth:`featurestore.FeatureStore.export_history`.

        Here ``progress`` is called in a thread beside the caller's."""
        return portal.call(
            self._async.export_history(view, path, buckets=buckets, progress=progress)
        )

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """See :meth:`featurestore.FeatureStore.transaction`.

        Here it is ``with store.transaction() as tx:``, with calls without ``await``, too."""
        with entered(self._async.transaction()) as inner:
            yield Transaction(inner)


@documented_by(store_module.Transaction)
class Transaction(_Calls):
    """:class:`featurestore.Transaction` without ``await``: the calls of a store inside one
    transaction. Made by :meth:`FeatureStore.transaction`."""

    def __init__(self, inner: store_module.Transaction) -> None:
        self._async = inner


@documented_by(repository.FeatureRepository)
class FeatureRepository:
    """:class:`featurestore.FeatureRepository` without ``await``: one view. Made by
    ``store.repository(view)``.

    Example::

        drivers = store.repository("driver_stats")
        drivers.upsert([{"driver_id": 7, "event_timestamp": now, "conv_rate": 0.4}])
        drivers.get(driver_id=7)      # {"driver_id": 7, "conv_rate": 0.4}
    """

    def __init__(self, inner: repository.FeatureRepository) -> None:
        self._async = inner
        self.view = inner.view

    def get(self, **keys: Any) -> dict[str, Any] | None:
        """See :meth:`featurestore.FeatureRepository.get`."""
        return portal.call(self._async.get(**keys))

    def get_many(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
        """See :meth:`featurestore.FeatureRepository.get_many`."""
        return portal.call(self._async.get_many(rows))

    def upsert(self, rows: Any) -> PushReport:
        """See :meth:`featurestore.FeatureRepository.upsert`."""
        return portal.call(self._async.upsert(rows))

    def history(
        self, start: dt.datetime | None = None, end: dt.datetime | None = None, **keys: Any
    ) -> pa.Table:
        """See :meth:`featurestore.FeatureRepository.history`."""
        return portal.call(self._async.history(start, end, **keys))

    def scan(
        self,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
        batch_size: int = repository.SCAN_ROWS,
    ) -> Iterator[pa.RecordBatch]:
        """See :meth:`featurestore.FeatureRepository.scan`.

        Here it is an ordinary iterator."""
        return iterate(self._async.scan(start, end, batch_size))

    def count(self) -> int:
        """See :meth:`featurestore.FeatureRepository.count`."""
        return portal.call(self._async.count())

    def delete(self, **keys: Any) -> int:
        """See :meth:`featurestore.FeatureRepository.delete`."""
        return portal.call(self._async.delete(**keys))
