"""Where a call runs: on its own connection, or inside a transaction that the user opened.

The store's calls are written once, against :class:`Context`; :class:`StoreContext` gives each
call a connection of its own, :class:`TransactionContext` hands the same one to all.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import sqlalchemy as sa

from featurestore.errors import FeatureStoreError
from featurestore.storage import forks
from featurestore.storage.engine import Database
from featurestore.storage.marks import Mark, revision_and_mark
from featurestore.storage.notices import notice, tell
from featurestore.storage.registry import (
    Catalog,
    RegisteredView,
    load_catalog,
    project_revision,
)
from featurestore.storage.session import Session

OnWritten = Callable[[str, Sequence[tuple[Any, ...]] | None], None]
"""Called with a view's name and the keys whose rows a write may have changed, None where that may
be any; before the write returns, and where its outcome is not known as well."""


def _unheard(view: str, keys: Sequence[tuple[Any, ...]] | None) -> None:
    """What hears of writes where nobody has asked to."""


class Context(ABC):
    """Connections and the registry, for the calls of one project.

    ``skew`` is how far ahead of the database's clock a row still counts as now.
    """

    def __init__(self, project: str, skew: dt.timedelta) -> None:
        self.project = project
        self.skew = skew
        # The registry as this process last read it: who uses it must notice that it changed.
        self.known: Catalog | None = None
        self._reading: asyncio.Task[Catalog] | None = None
        self.on_written: OnWritten = _unheard

    @abstractmethod
    def connection(self) -> AbstractAsyncContextManager[Session]:
        """A session for one statement that reads."""

    @abstractmethod
    def snapshot(self, tables: Sequence[sa.Table] = ()) -> AbstractAsyncContextManager[Session]:
        """A session whose statements all read one state, and ``tables`` as they are shaped now."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[Session]:
        """A session that commits as one or leaves nothing."""

    def begin_anew(self) -> None:
        """In a forked process: wait for nothing that the parent has begun."""
        forks.keep(self._reading)
        self._reading = None

    def forget(self) -> None:
        """Read the registry again at the next call."""
        self.known = None

    async def known_catalog(self) -> Catalog:
        """The registry as this process last read it: who uses it must notice that it changed."""
        return self.known or await self.newer_catalog(None)

    async def newer_catalog(self, than: Catalog | None) -> Catalog:
        """The registry as it is, for who has found ``than`` out of date: callers that find so
        together read it once, and none of them that is cancelled takes that from the others."""
        if self.known is None or self.known is than:
            if self._reading is None:
                self._reading = asyncio.create_task(self._read_registry())
                # Where all were cancelled, nobody looks at how it ends.
                self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
            self.known = await asyncio.shield(self._reading)
        return self.known

    async def _read_registry(self) -> Catalog:
        try:
            async with self.snapshot() as session:
                return await load_catalog(session, self.project)
        finally:
            self._reading = None

    async def catalog(self, session: Session) -> Catalog:
        """The registry as it is in the session."""
        known = self.known
        revision = None if known is None else await project_revision(session, self.project)
        return await self._at_revision(session, revision)

    async def _at_revision(self, session: Session, revision: int | None) -> Catalog:
        known = self.known
        if known is None or known.revision != revision:
            self.known = known = await load_catalog(session, self.project)
        return known

    def writing(self, name: str) -> AbstractAsyncContextManager[tuple[Session, RegisteredView]]:
        """A transaction that writes to a view, beside others that do; apply, undo and erasure
        wait for its end."""
        return self._locked(name, exclusive=False)

    def exclusive(self, name: str) -> AbstractAsyncContextManager[tuple[Session, RegisteredView]]:
        """A transaction that has a view to itself: writers wait, readers see what was before."""
        return self._locked(name, exclusive=True)

    @asynccontextmanager
    async def _locked(
        self, name: str, *, exclusive: bool
    ) -> AsyncIterator[tuple[Session, RegisteredView]]:
        try:
            async with self.transaction() as session:
                known = self.known
                if known is None or name not in known.views:  # another process may have added it
                    known = await self.catalog(session)
                await session.dialect.lock_view(session, known.view(name).id, exclusive=exclusive)
                # What the lock was waited for may have changed the view.
                view = (await self.catalog(session)).view(name)
                if exclusive:
                    await session.dialect.lock_history(session, view.history)
                yield session, view
                if view.view.notify:
                    await tell(session, notice(self.project, name, view.view.join_keys))
        finally:
            self.on_written(name, None)

    @asynccontextmanager
    async def reading(self, names: Iterable[str]) -> AsyncIterator[tuple[Session, Catalog]]:
        """A snapshot to read the history of views in, with the registry as it is there.

        Their tables cannot be rewritten meanwhile: to a snapshot from before, a rewritten table
        looks empty.
        """
        async with self.snapshot(await self._histories(names)) as session:
            yield session, await self.catalog(session)

    @asynccontextmanager
    async def reading_marked(
        self, names: Iterable[str]
    ) -> AsyncIterator[tuple[Session, Catalog, Mark]]:
        """As :meth:`reading`, with the mark of the snapshot."""
        async with self.snapshot(await self._histories(names)) as session:
            if self.known is None:
                await self.catalog(session)  # the database may lack what has the marks
            revision, mark = await revision_and_mark(session, self.project)
            yield session, await self._at_revision(session, revision), mark

    async def _histories(self, names: Iterable[str]) -> list[sa.Table]:
        known = await self.known_catalog()
        return [known.views[name].history for name in names if name in known.views]


class StoreContext(Context):
    """Each call on a connection of its own."""

    def __init__(self, database: Database, project: str, skew: dt.timedelta) -> None:
        super().__init__(project, skew)
        self.database = database

    def connection(self) -> AbstractAsyncContextManager[Session]:
        return self.database.session()

    def snapshot(self, tables: Sequence[sa.Table] = ()) -> AbstractAsyncContextManager[Session]:
        return self.database.snapshot(tables)

    def transaction(self) -> AbstractAsyncContextManager[Session]:
        return self.database.transaction()


class TransactionContext(Context):
    """All calls on one connection, inside one transaction. ``wrote`` is called with each view
    that they may have changed."""

    def __init__(
        self,
        session: Session,
        project: str,
        skew: dt.timedelta,
        wrote: Callable[[str], None],
    ) -> None:
        super().__init__(project, skew)
        self.on_written = lambda view, keys: wrote(view)
        self._session: Session | None = session
        self._process = os.getpid()
        self._calls: set[asyncio.Task[Any]] = set()
        self._owner = asyncio.current_task()
        forks.renew_after_fork(self, TransactionContext.begin_anew)

    def begin_anew(self) -> None:
        """In a forked process: the transaction is the parent's."""
        super().begin_anew()
        forks.keep(vars(self).copy())
        self._session = None
        self._calls = set()

    async def close(self) -> None:
        """End the transaction's calls and refuse further ones.

        Calls that other tasks still have under way are cancelled and waited for: they would go on
        outside of the transaction.
        """
        self._session = None
        strays = self._calls - {self._owner}
        for task in strays:
            task.cancel()
        await asyncio.gather(*strays, return_exceptions=True)

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[Session]:
        forks.check_process(self._process, "The transaction")
        if self._session is None:
            raise FeatureStoreError("The transaction has ended; open another for further calls.")
        task = asyncio.current_task()
        assert task is not None
        first = task not in self._calls
        self._calls.add(task)
        try:
            yield self._session
        finally:
            if first:
                self._calls.discard(task)

    def connection(self) -> AbstractAsyncContextManager[Session]:
        return self._call()

    def snapshot(self, tables: Sequence[sa.Table] = ()) -> AbstractAsyncContextManager[Session]:
        return self._call()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        # A call that fails takes its own work back, and the user may go on.
        async with self._call() as session, session.savepoint():
            yield session
