"""What all routes of a server share, from its start to its end."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from featurestore.definitions import FeatureView
from featurestore.errors import DefinitionError, FeatureStoreError, NotFoundError
from featurestore.selection import resolve
from featurestore.server.answers import Refused, log
from featurestore.server.auth import Keys
from featurestore.server.calls import Call
from featurestore.server.limits import ServerLimits
from featurestore.server.metrics import Family, Metrics
from featurestore.server.peers import Peers
from featurestore.server.watch import Watch
from featurestore.storage.api_keys import ApiKey, list_keys
from featurestore.storage.freshness import newest_loads
from featurestore.storage.migrations import check_revision, database_revision
from featurestore.store import FeatureStore
from featurestore.types import FeatureType
from featurestore.wire import decoder

Auth = Literal["required", "if-keys", "none"]
"""Whether a key is demanded: always, from the first key on that the project has, or never."""

KINDS = 256
"""How many kinds of read are remembered; services ask for a handful."""

READY_SECONDS = 2.0
"""How long the database may take to answer before the server counts as not ready."""

READY_FOR_SECONDS = 0.5
"""How long an answer about readiness counts: anybody may ask for it, as often as they like."""

FRESHNESS_FOR_SECONDS = 30.0
"""How long the newest loads are remembered: to find them the whole ledger is read."""

FRESHNESS_SECONDS = 3.0


@dataclass(frozen=True)
class Asked:
    """What a read asks for: the types of its keys, and of its outputs by their full names.
    ``plain`` says that the keys are in JSON what they are in Python."""

    key_types: Mapping[str, FeatureType]
    types: Mapping[str, FeatureType]
    plain: bool


class ServerState:
    """A store that is served, and what is known of it and of the requests under way.

    Entered (``async with state.running()``) by the application's lifespan.
    """

    def __init__(
        self, store: FeatureStore, limits: ServerLimits, auth: Auth, peers: Peers | None = None
    ) -> None:
        self.store = store
        self.limits = limits
        self.metrics = Metrics(lambda: len(self.watch.calls))
        self.watch = Watch(limits.seconds, self.metrics.lag)
        self.keys = None if auth == "none" else Keys(self._list_keys, always=auth == "required")
        self.ending = False
        self.training_reads = 0
        self._peers = peers
        self._bytes = 0
        self._asked: OrderedDict[Hashable, Asked] = OrderedDict()
        self._ready = (float("-inf"), "")
        self._asking_ready = asyncio.Lock()
        self._newest: tuple[float, dict[str, dt.datetime]] = (float("-inf"), {})
        self._reading_newest = asyncio.Lock()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look after requests; at the end, those still under way are stopped."""
        # pyarrow imports pandas, where there is one, with the first array that it makes: no
        # request shall wait for that.
        await asyncio.to_thread(pa.array, [0])
        watching = asyncio.create_task(self.watch.run())
        try:
            if self._peers is not None:
                await self._peers.open(self.figures)
            yield
        finally:
            self.watch.end_all()
            if self._peers is not None:
                await self._peers.close()
            if self.keys is not None:
                await self.keys.close()
            watching.cancel()
            await asyncio.wait([watching])

    # --- requests -------------------------------------------------------------------------

    def begin(self, call: Call) -> None:
        """A request has come."""
        self.watch.calls.add(call)

    def end(self, call: Call) -> None:
        """It has its answer, or needs none any more."""
        self.watch.calls.discard(call)
        self._bytes -= call.held

    async def body(self, call: Call) -> bytes:
        """A request's body, within the limits."""
        if stated := call.stated_length(self.limits.body_bytes):
            self._hold(call, stated)
        return await call.body(self.limits.body_bytes, lambda size: self._hold(call, size))

    def _hold(self, call: Call, size: int) -> None:
        if size <= call.held:
            return
        if self._bytes + size - call.held > self.limits.bytes_in_flight:
            raise Refused(503, "The bodies of the requests under way take all memory; come again.")
        self._bytes += size - call.held
        call.held = size

    # --- the registry ---------------------------------------------------------------------

    async def asked(self, features: str | Sequence[str]) -> Asked:
        """What a read asks for, by the registry as it is known here."""
        context = self.store._context
        catalog = await context.known_catalog()
        name = features if isinstance(features, str) else tuple(features)
        if (known := self._asked.get((catalog.revision, name))) is not None:
            return known
        try:
            request = resolve(features, catalog, full_feature_names=True)
        except (NotFoundError, DefinitionError):  # another process may have applied it
            newer = await context.newer_catalog(catalog)
            if newer.revision == catalog.revision:
                raise
            catalog = newer
            request = resolve(features, catalog, full_feature_names=True)
        keys = request.key_columns
        asked = Asked(
            keys,
            {output.name: output.type for output in request.outputs},
            not any(decoder(kind) for kind in keys.values()),
        )
        self._asked[catalog.revision, name] = asked
        if len(self._asked) > KINDS:
            self._asked.popitem(last=False)
        return asked

    async def view(self, name: str, *, than: FeatureView | None = None) -> FeatureView:
        """The registered view, by the registry as it is known here; where that has ``than``, as
        it is."""
        context = self.store._context
        catalog = await context.known_catalog()
        known = catalog.views.get(name)
        if known is None or known.view == than:
            catalog = await context.newer_catalog(catalog)
        return catalog.view(name).view

    async def _list_keys(self) -> Sequence[ApiKey]:
        async with self.store._context.snapshot() as session:
            check_revision(await database_revision(session), session.label)
            return await list_keys(session, self.store.project)

    # --- how it is ------------------------------------------------------------------------

    async def why_not_ready(self) -> str:
        """Why requests should go elsewhere; empty where they should come."""
        if self.ending:
            return "ending"
        async with self._asking_ready:
            checked_at, reason = self._ready
            if time.monotonic() - checked_at > READY_FOR_SECONDS:
                reason = await self._ask_database()
                self._ready = (time.monotonic(), reason)
            return reason

    async def _ask_database(self) -> str:
        # The error's name alone: everybody may read this.
        try:
            async with asyncio.timeout(READY_SECONDS), self.store._context.snapshot() as session:
                check_revision(await database_revision(session), session.label)
        except TimeoutError:
            return "the database does not answer"
        except FeatureStoreError as error:
            log.warning("not ready: %s", error)
            return type(error).__name__
        return ""

    async def figures(self) -> list[Family]:
        """The metrics of this worker."""
        return await asyncio.to_thread(self.metrics.families, self.store.stats)

    async def all_figures(self) -> dict[int, list[Family] | None]:
        """The metrics of all workers by their numbers."""
        if self._peers is None:
            return {0: await self.figures()}
        others = await self._peers.ask_others()
        return {self._peers.number: await self.figures(), **others}

    async def freshness(self) -> dict[str, float]:
        """View → age in seconds of the newest load that brought it rows; empty where the database
        does not tell in time."""
        async with self._reading_newest:
            read_at, newest = self._newest
            if time.monotonic() - read_at > FRESHNESS_FOR_SECONDS:
                newest = await self._read_newest()
                self._newest = (time.monotonic(), newest)
        now = dt.datetime.now(dt.UTC)
        return {name: max((now - at).total_seconds(), 0.0) for name, at in newest.items()}

    async def _read_newest(self) -> dict[str, dt.datetime]:
        try:
            async with asyncio.timeout(FRESHNESS_SECONDS):
                async with self.store._context.snapshot() as session:
                    return await newest_loads(session, self.store.project)
        except (TimeoutError, FeatureStoreError) as error:
            log.warning("freshness is not known: %s", str(error) or "the database takes too long")
            return {}
