"""The same store without ``await``, for scripts and notebooks.

One thread runs an event loop for all stores of the process, and every call is handed to it: a
loop that runs already, as in a notebook, is not disturbed. What a call does stands in
:mod:`featurestore.store` and is not written twice.

Example::

    with fs.sync.FeatureStore() as store:
        training = store.get_historical_features(labels, "eta").to_pandas()
"""

from __future__ import annotations

import asyncio
import atexit
import datetime as dt
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from featurestore import calls, repository
from featurestore import store as store_module
from featurestore.calls import Engine, ViewName
from featurestore.definitions import Definition, Entity, FeatureService, FeatureView
from featurestore.ingest.progress import OnProgress
from featurestore.ingest.writer import OnInvalid
from featurestore.online.vectors import OnlineFeatures
from featurestore.reports import (
    IngestReport,
    Load,
    MaterializeReport,
    PushReport,
    QuarantinedRow,
    UndoReport,
)
from featurestore.selection import Features
from featurestore.storage.planning import Plan
from featurestore.training.training_set import TrainingSet

__all__ = ["FeatureRepository", "FeatureStore", "Transaction"]

T = TypeVar("T")

_STOP_SECONDS = 10.0


class _Portal:
    """A loop in a daemon thread, made at the first call; after a fork, made anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = 0

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._process != os.getpid():
                self._loop = asyncio.new_event_loop()
                self._process = os.getpid()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="featurestore-sync", daemon=True
                )
                self._thread.start()
                atexit.register(self._stop, self._loop, self._thread)
            return self._loop

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the portal's loop and wait; Ctrl-C cancels it and waits for its end."""
        loop = self._running()
        done = threading.Event()

        async def run() -> T:
            try:
                return await work
            finally:
                done.set()

        future = asyncio.run_coroutine_threadsafe(run(), loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            if future.cancel():
                done.wait(_STOP_SECONDS)
            raise

    @staticmethod
    def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        if thread.is_alive():
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_STOP_SECONDS)
        if not thread.is_alive():
            loop.close()


_portal = _Portal()


def _iterate(batches: AsyncIterator[T]) -> Iterator[T]:
    """An async iterator as a plain one; leaving it early closes it on its loop."""
    end = object()

    async def pull() -> Any:
        return await anext(batches, end)

    async def close() -> None:
        if hasattr(batches, "aclose"):
            await batches.aclose()

    try:
        while (item := _portal.call(pull())) is not end:
            yield item
    finally:
        _portal.call(close())


class _Left(Exception):
    """The block around an async context manager was left by an error."""


@contextmanager
def _entered(manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """An async context manager as a plain one.

    It is entered and left in one task: cancellation scopes and locks belong to a task.
    """

    async def start() -> tuple[asyncio.Future[Any], asyncio.Future[Any], asyncio.Task[None]]:
        loop = asyncio.get_running_loop()
        entered: asyncio.Future[Any] = loop.create_future()
        leave: asyncio.Future[Any] = loop.create_future()

        async def hold() -> None:
            try:
                async with manager as value:
                    entered.set_result(value)
                    await leave
            except BaseException as error:
                if not entered.done():
                    entered.set_exception(error)
                    return
                raise

        return entered, leave, loop.create_task(hold())

    entered, leave, task = _portal.call(start())

    async def value() -> T:
        result: T = await entered
        return result

    async def finish(*, failed: bool) -> None:
        if not failed:
            leave.set_result(None)
            await task
            return
        # The caller's own error stays in the caller's thread: SystemExit would end the loop.
        leave.set_exception(_Left())
        try:
            await task
        except _Left:
            return

    result = _portal.call(value())
    try:
        yield result
    except BaseException:
        _portal.call(finish(failed=True))
        raise
    _portal.call(finish(failed=False))


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
    ) -> IngestReport:
        """See :meth:`featurestore.FeatureStore.ingest`."""
        return _portal.call(
            self._async.ingest(view, source, on_invalid=on_invalid, force=force, progress=progress)
        )

    def push(self, view: ViewName, rows: Any) -> PushReport:
        """See :meth:`featurestore.FeatureStore.push`."""
        return _portal.call(self._async.push(view, rows))

    def repository(self, view: ViewName) -> FeatureRepository:
        """See :meth:`featurestore.FeatureStore.repository`."""
        return FeatureRepository(self._async.repository(view))

    def get_online_features(
        self,
        features: Features,
        entity_rows: Sequence[Mapping[str, Any]],
        *,
        full_feature_names: bool = False,
    ) -> OnlineFeatures:
        """See :meth:`featurestore.FeatureStore.get_online_features`."""
        return _portal.call(
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
    ) -> TrainingSet:
        """See :meth:`featurestore.FeatureStore.get_historical_features`."""
        return _portal.call(
            self._async.get_historical_features(
                entity_df,
                features,
                timestamp_column=timestamp_column,
                engine=engine,
                full_feature_names=full_feature_names,
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
    ) -> Iterator[pa.RecordBatch]:
        """See :meth:`featurestore.FeatureStore.stream_historical_features`."""
        return _iterate(
            self._async.stream_historical_features(
                entity_df,
                features,
                timestamp_column=timestamp_column,
                engine=engine,
                full_feature_names=full_feature_names,
            )
        )


class FeatureStore(_Calls):
    """:class:`featurestore.FeatureStore` without ``await``; a context manager."""

    _async: store_module.FeatureStore

    def __init__(
        self,
        url: str | sa.URL | None = None,
        *,
        engine: AsyncEngine | None = None,
        project: str = "default",
        clock_skew: dt.timedelta = dt.timedelta(seconds=60),
    ) -> None:
        self._async = store_module.FeatureStore(
            url, engine=engine, project=project, clock_skew=clock_skew
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

    def close(self) -> None:
        """See :meth:`featurestore.FeatureStore.close`."""
        _portal.call(self._async.close())

    def migrate(self) -> tuple[str | None, str]:
        """See :meth:`featurestore.FeatureStore.migrate`."""
        return _portal.call(self._async.migrate())

    def plan(self, definitions: Definition | Iterable[Definition]) -> Plan:
        """See :meth:`featurestore.FeatureStore.plan`."""
        return _portal.call(self._async.plan(definitions))

    def apply(
        self, definitions: Definition | Iterable[Definition], *, allow: Iterable[str] = ()
    ) -> Plan:
        """See :meth:`featurestore.FeatureStore.apply`."""
        return _portal.call(self._async.apply(definitions, allow=allow))

    def list_entities(self) -> list[Entity]:
        """See :meth:`featurestore.FeatureStore.list_entities`."""
        return _portal.call(self._async.list_entities())

    def list_views(self) -> list[FeatureView]:
        """See :meth:`featurestore.FeatureStore.list_views`."""
        return _portal.call(self._async.list_views())

    def list_services(self) -> list[FeatureService]:
        """See :meth:`featurestore.FeatureStore.list_services`."""
        return _portal.call(self._async.list_services())

    def get_entity(self, name: str) -> Entity:
        """See :meth:`featurestore.FeatureStore.get_entity`."""
        return _portal.call(self._async.get_entity(name))

    def get_view(self, name: str) -> FeatureView:
        """See :meth:`featurestore.FeatureStore.get_view`."""
        return _portal.call(self._async.get_view(name))

    def get_service(self, name: str) -> FeatureService:
        """See :meth:`featurestore.FeatureStore.get_service`."""
        return _portal.call(self._async.get_service(name))

    def materialize(
        self,
        views: ViewName | Iterable[ViewName] | None = None,
        *,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
    ) -> MaterializeReport:
        """See :meth:`featurestore.FeatureStore.materialize`."""
        return _portal.call(self._async.materialize(views, start=start, end=end))

    def loads(self, view: ViewName | None = None) -> list[Load]:
        """See :meth:`featurestore.FeatureStore.loads`."""
        return _portal.call(self._async.loads(view))

    def rejected(
        self, load_id: int | None = None, view: ViewName | None = None
    ) -> list[QuarantinedRow]:
        """See :meth:`featurestore.FeatureStore.rejected`."""
        return _portal.call(self._async.rejected(load_id, view))

    def undo_load(self, load_id: int) -> UndoReport:
        """See :meth:`featurestore.FeatureStore.undo_load`."""
        return _portal.call(self._async.undo_load(load_id))

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """See :meth:`featurestore.FeatureStore.transaction`."""
        with _entered(self._async.transaction()) as inner:
            yield Transaction(inner)


class Transaction(_Calls):
    """:class:`featurestore.Transaction` without ``await``."""

    def __init__(self, inner: store_module.Transaction) -> None:
        self._async = inner


class FeatureRepository:
    """:class:`featurestore.FeatureRepository` without ``await``."""

    def __init__(self, inner: repository.FeatureRepository) -> None:
        self._async = inner
        self.view = inner.view

    def get(self, **keys: Any) -> dict[str, Any] | None:
        """See :meth:`featurestore.FeatureRepository.get`."""
        return _portal.call(self._async.get(**keys))

    def get_many(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
        """See :meth:`featurestore.FeatureRepository.get_many`."""
        return _portal.call(self._async.get_many(rows))

    def upsert(self, rows: Any) -> PushReport:
        """See :meth:`featurestore.FeatureRepository.upsert`."""
        return _portal.call(self._async.upsert(rows))

    def history(
        self, start: dt.datetime | None = None, end: dt.datetime | None = None, **keys: Any
    ) -> pa.Table:
        """See :meth:`featurestore.FeatureRepository.history`."""
        return _portal.call(self._async.history(start, end, **keys))

    def scan(
        self,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
        batch_size: int = repository.SCAN_ROWS,
    ) -> Iterator[pa.RecordBatch]:
        """See :meth:`featurestore.FeatureRepository.scan`."""
        return _iterate(self._async.scan(start, end, batch_size))

    def count(self) -> int:
        """See :meth:`featurestore.FeatureRepository.count`."""
        return _portal.call(self._async.count())

    def delete(self, **keys: Any) -> int:
        """See :meth:`featurestore.FeatureRepository.delete`."""
        return _portal.call(self._async.delete(**keys))
