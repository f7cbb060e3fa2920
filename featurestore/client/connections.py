"""Pooled connections to one server: who may use one, and who closes them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from featurestore.errors import DefinitionError, FeatureStoreError, OverloadedError

MAX_WAITING = 10_000
"""Callers that may wait for a connection, as many as may wait for the store's."""

CONNECT_SECONDS = 5.0
"""For one connection; beyond that a packet was lost, and another try is better than waiting."""

KEEPALIVE_SECONDS = 4.0
"""Idle connections are closed before uvicorn by itself does it (5 s): a push on a connection that
the server is just closing would be lost, and could not be tried again."""

CLOSE_SECONDS = 5.0
"""Closing a connection takes no answer; this is for what should not be."""


@dataclass
class Way:
    """How far a call has come, for what is said and done when it fails."""

    tries: int = 0
    sent: bool = False
    """Whether a byte of the present try may have reached the server."""
    shares: bool = False
    """Whether it is on a connection that others use at the same time (HTTP/2)."""
    queued: bool = False
    last: FeatureStoreError | None = None

    async def note(self, event: str, info: Mapping[str, Any]) -> None:
        """httpcore's account of what it does."""
        if event.endswith("send_request_headers.started"):
            # A proxy is asked to CONNECT first: that is not yet the request.
            self.sent = self.sent or info["request"].method != b"CONNECT"
            self.shares = event.startswith("http2.")


@dataclass(eq=False)
class _Lane:
    """One connection: httpx's client, how many calls use it, and since when it is idle.

    Each connection is a client of its own: one client of httpx looks through all of its
    connections at every request, which with 20 of them takes twice as long as the request.
    """

    http: httpx.AsyncClient
    users: int = 0
    idle_since: float = 0.0
    spoiled: bool = False


@dataclass
class _Loop:
    """What belongs to one event loop.

    ``idle`` are the lanes for calls to come, the one used last at the end. Once a server has shown
    that it has HTTP/2, all calls share one lane. ``closing`` are the tasks that close lanes.
    """

    loop: asyncio.AbstractEventLoop
    slots: asyncio.Semaphore
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    lanes: set[_Lane] = field(default_factory=set)
    idle: deque[_Lane] = field(default_factory=deque)
    sharing: bool = False
    shared: _Lane | None = None
    closing: set[asyncio.Task[None]] = field(default_factory=set)
    waiting: int = 0

    def give_back(self, lane: _Lane, way: Way) -> None:
        """A call has ended on a lane."""
        lane.users -= 1
        if way.sent and not lane.spoiled:
            self.sharing = way.shares
            if way.shares:
                self.shared = self.shared or lane
            elif self.shared is lane:  # the server has HTTP/2 no more
                self.shared = None
        if lane.users or lane is self.shared:
            return
        if lane.spoiled or self.sharing:
            self.drop(lane)
            return
        now = self.loop.time()
        lane.idle_since = now
        self.idle.append(lane)
        while self.idle[0].idle_since < now - KEEPALIVE_SECONDS:
            self.drop(self.idle.popleft())

    def drop(self, lane: _Lane) -> None:
        """Close a lane."""
        if lane in self.lanes:
            self.lanes.discard(lane)
            task = self.loop.create_task(lane.http.aclose())
            self.closing.add(task)
            task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        # How it went does not matter: nobody uses the lane any more.
        self.closing.discard(task)
        if not task.cancelled():
            task.exception()


class Connections:
    """Connections to ``url``, for ``most`` calls at a time, made when they are needed."""

    def __init__(
        self, url: str, headers: Mapping[str, str], most: int, ssl_context: ssl.SSLContext | None
    ) -> None:
        self.url = url
        self.most = most
        self._headers = dict(headers)
        self._ssl_context = ssl_context
        self._prepared = False
        self._here: _Loop | None = None
        self._closed = False

    async def close(self) -> None:
        """Close them; calls under way fail."""
        self._closed = True
        here, self._here = self._here, None
        if here is None or here.loop is not asyncio.get_running_loop():
            return
        here.idle.clear()
        for lane in list(here.lanes):
            here.drop(lane)
        if here.closing:
            _, late = await asyncio.wait(here.closing, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()

    @asynccontextmanager
    async def one(self, way: Way) -> AsyncIterator[httpx.AsyncClient]:
        """A connection, when one is free; :class:`OverloadedError` where too many wait."""
        here = self._on_this_loop()
        if here.slots.locked() and here.waiting >= MAX_WAITING:
            raise OverloadedError(
                f"{here.waiting:,} callers wait for a connection to {self.url} already. Try again "
                f"later, or allow more connections (max_connections)."
            )
        here.waiting += 1
        way.queued = True
        try:
            await here.slots.acquire()
        finally:
            here.waiting -= 1
        way.queued = False
        try:
            lane = await self._lane(here)
            lane.users += 1
            try:
                yield lane.http
            except asyncio.CancelledError:
                if way.shares:
                    # httpx tells a server of HTTP/2 nothing of a cancelled call. It would count
                    # against the streams of the connection (100 mostly), and after the last of
                    # them the connection would be of no use: new calls take another one.
                    lane.spoiled = True
                    here.shared = None if here.shared is lane else here.shared
                raise
            finally:
                here.give_back(lane, way)
        finally:
            here.slots.release()

    def _on_this_loop(self) -> _Loop:
        if self._closed:
            raise self._is_closed()
        loop = asyncio.get_running_loop()
        if self._here is None or self._here.loop is not loop:
            # Connections of a loop that has ended, or of the process before a fork, are no use.
            self._here = _Loop(loop, asyncio.Semaphore(self.most))
        return self._here

    def _is_closed(self) -> DefinitionError:
        return DefinitionError(f"The client of {self.url} is closed: make another one.")

    async def _lane(self, here: _Loop) -> _Lane:
        if not self._prepared:
            async with here.opening:
                if not self._prepared:
                    await asyncio.to_thread(self._prepare)
        if self._closed:
            raise self._is_closed()
        if here.shared is not None:
            return here.shared
        if here.idle and not here.sharing:
            return here.idle.pop()
        lane = _Lane(self._client())
        here.lanes.add(lane)
        if here.sharing:
            here.shared = lane
        return lane

    def _prepare(self) -> None:
        """What takes long, for a thread: certificates are read in 0.1 s and more, and httpx
        imports as much at its first request."""
        if self._ssl_context is None:
            self._ssl_context = httpx.create_ssl_context()
        for module in ("h2.connection", "httpcore", "anyio._backends._asyncio"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        self._prepared = True

    def _client(self) -> httpx.AsyncClient:
        assert self._ssl_context is not None
        return httpx.AsyncClient(
            headers=self._headers,
            http2=True,
            verify=self._ssl_context,
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),  # the deadline is the call's
            limits=httpx.Limits(max_connections=1, keepalive_expiry=KEEPALIVE_SECONDS),
        )
