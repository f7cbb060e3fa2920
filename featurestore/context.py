"""Where a call runs: on its own connection, or inside a transaction that the user opened.

The store's calls are written once, against :class:`Context`; :class:`StoreContext` gives each
call a connection of its own, :class:`TransactionContext` hands the same one to all.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from featurestore.errors import FeatureStoreError
from featurestore.storage.engine import Database, Session
from featurestore.storage.registry import (
    Catalog,
    RegisteredView,
    load_catalog,
    project_revision,
)


class Context(ABC):
    """Connections and the registry, for the calls of one project.

    ``skew`` is how far ahead of the database's clock a row still counts as now.
    """

    def __init__(self, project: str, skew: dt.timedelta) -> None:
        self.project = project
        self.skew = skew
        self._known: Catalog | None = None

    @abstractmethod
    def connection(self) -> AbstractAsyncContextManager[Session]:
        """A session for one statement that reads."""

    @abstractmethod
    def snapshot(self) -> AbstractAsyncContextManager[Session]:
        """A session whose statements all read one state."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[Session]:
        """A session that commits as one or leaves nothing."""

    def forget(self) -> None:
        """Read the registry again at the next call."""
        self._known = None

    async def known_catalog(self) -> Catalog:
        """The registry as this process last read it: who uses it must notice that it changed."""
        if self._known is None:
            async with self.snapshot() as session:
                self._known = await load_catalog(session, self.project)
        return self._known

    async def catalog(self, session: Session) -> Catalog:
        """The registry as it is in the session."""
        known = self._known
        if known is None or known.revision != await project_revision(session, self.project):
            self._known = known = await load_catalog(session, self.project)
        return known

    @asynccontextmanager
    async def writing(self, name: str) -> AsyncIterator[tuple[Session, RegisteredView]]:
        """A transaction that writes to a view, beside others that do; apply, undo and erasure
        wait for its end."""
        async with self.transaction() as session:
            if self._known is None:
                await self.catalog(session)
            assert self._known is not None
            if name not in self._known.views:  # another process may have added it
                await self.catalog(session)
            view = self._known.view(name)
            await session.dialect.lock_view(session, view.id, exclusive=False)
            # What the lock was waited for may have changed the view.
            yield session, (await self.catalog(session)).view(name)


class StoreContext(Context):
    """Each call on a connection of its own."""

    def __init__(self, database: Database, project: str, skew: dt.timedelta) -> None:
        super().__init__(project, skew)
        self.database = database

    def connection(self) -> AbstractAsyncContextManager[Session]:
        return self.database.session()

    def snapshot(self) -> AbstractAsyncContextManager[Session]:
        return self.database.transaction(snapshot=True)

    def transaction(self) -> AbstractAsyncContextManager[Session]:
        return self.database.transaction()


class TransactionContext(Context):
    """All calls on one connection, inside one transaction."""

    def __init__(self, session: Session, project: str, skew: dt.timedelta) -> None:
        super().__init__(project, skew)
        self._session: Session | None = session
        self._writer = asyncio.Lock()

    def close(self) -> None:
        """The transaction has ended: refuse what comes after."""
        self._session = None

    def _open(self) -> Session:
        if self._session is None:
            raise FeatureStoreError("The transaction has ended; open another for further calls.")
        return self._session

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Session]:
        yield self._open()

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Session]:
        yield self._open()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        # A call that fails takes its own work back, and the user may go on.
        async with self._writer:
            session = self._open()
            async with session.savepoint():
                yield session
