"""Reads of many callers in few statements.

A request is sent at once while fewer than ``IN_FLIGHT`` statements of its kind are under way: a
lone caller waits for nobody, and runs its statement in its own task. Requests that come meanwhile
wait; when a statement ends, all of them go as the next ones, which are sent after the last of them
came: so each reads what was written before it. There is no timer to gather by. Callers that were
answered together tend to ask again together: after a statement for several, the next is sent when
all that the loop has to run by then has run.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any

from featurestore.errors import (
    FeatureStoreError,
    OverloadedError,
    StoreUnavailableError,
)
from featurestore.online.keys import Key
from featurestore.reports import GatherStats
from featurestore.storage.counts import Counts
from featurestore.storage.dialect import Found, Lookups
from featurestore.storage.engine import Database
from featurestore.storage.faults import copy_of

IN_FLIGHT = 2
"""Statements of one kind under way at once: while one is answered the next is worked on."""

SHARED_ROWS = 16
"""So many requests or fewer go as one statement, although there are connections for two."""

BATCH_ROWS = 1_000
"""Keys of one statement: what comes on top waits for the next."""

ALONE_ROWS = 250
"""A request of so many keys is a statement of its own: gathering it would save nothing, and small
ones would wait for it."""


class Lane:
    """The requests of one kind: those that wait, and how many statements are under way.

    It is ``crowded`` while requests wait, or when the last statement was for several; ``due``
    when those that wait are about to be sent.
    """

    __slots__ = ("crowded", "due", "in_flight", "timer", "waiting")

    def __init__(self) -> None:
        self.in_flight = 0
        self.crowded = self.due = False
        self.waiting: deque[_Request] = deque()
        self.timer: asyncio.TimerHandle | None = None


class _Request:
    """A caller that waits: its keys, until when, and where its rows go."""

    __slots__ = ("answer", "batch", "deadline", "keys", "lookups")

    def __init__(
        self,
        lookups: Lookups,
        keys: Sequence[Key],
        deadline: float,
        answer: asyncio.Future[Found],
    ) -> None:
        self.lookups = lookups
        self.keys = keys
        self.deadline = deadline
        self.answer = answer
        self.batch: _Batch | None = None


class _Batch:
    """Requests of one kind that one statement answers."""

    def __init__(self, requests: Sequence[_Request], task: asyncio.Task[Any] | None) -> None:
        self.requests = requests
        self.size = self._left = len(requests)
        self._task = task  # is cancelled when all callers were
        self._places: dict[Key, int] = {}
        for request in requests:
            request.batch = self
            for key in request.keys:
                self._places.setdefault(key, len(self._places))

    @property
    def lookups(self) -> Lookups:
        """What all of them ask for."""
        return self.requests[0].lookups

    @property
    def keys(self) -> list[Key]:
        """What is asked for, each key once."""
        return list(self._places)

    def leave(self) -> None:
        """A caller was cancelled; when all were, nobody wants the answer."""
        self._left -= 1
        if not self._left and self._task is not None:
            self._task.cancel()

    def answer(self, found: Found) -> None:
        """Give each caller its rows."""
        places = self._places
        for request in self._let_go():
            if not request.answer.done():
                rows = None if found is None else [found[places[key]] for key in request.keys]
                request.answer.set_result(rows)

    def end(self) -> None:
        """Cancel those that have no answer."""
        for request in self._let_go():
            request.answer.cancel()

    def fail(self, error: Exception) -> None:
        """Give each caller an error of its own: tracebacks grow where they are raised."""
        for request in self._let_go():
            if not request.answer.done():
                request.answer.set_exception(copy_of(error))

    def _let_go(self) -> Sequence[_Request]:
        """The requests, for the last time: they know their batch, and a circle of the two would
        wait for the garbage collector, which took a third of the time at 1,000 callers."""
        self._task = None
        requests, self.requests = self.requests, ()
        return requests


class Reads:
    """The online reads of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._in_flight = min(IN_FLIGHT, database.pool_size)
        self._large = Lane()
        self._large_in_flight = max(1, database.pool_size // 2)
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False
        self._counts = Counts(database.limits, database.label, "read", "not sent")

    def find(self, lane: Lane, lookups: Lookups, keys: Sequence[Key]) -> Awaitable[Found]:
        """The row found for each of ``keys``, in their order; None where the registry is at another
        revision.

        Raises :class:`OverloadedError` where too many wait, or one has waited too long.
        """
        if self.closed:
            raise StoreUnavailableError(f"The store on {self._counts.label} is closed.")
        self._counts.request(len(keys))
        if len(keys) >= ALONE_ROWS:
            lane = self._large
        if lane.crowded or lane.in_flight >= self._limit(lane):
            return self._wait(lane, lookups, keys)
        return self._query(lane, lookups, keys)

    async def _query(self, lane: Lane, lookups: Lookups, keys: Sequence[Key]) -> Found:
        """One caller's own statement."""
        lane.in_flight += 1
        self._counts.begin(1)
        try:
            return await self._database.find_online(lookups, keys)
        finally:
            self._counts.end()
            lane.in_flight -= 1
            if lane.waiting:
                self._send_soon(lane)

    def _limit(self, lane: Lane) -> int:
        return self._large_in_flight if lane is self._large else self._in_flight

    # --- waiting --------------------------------------------------------------------------

    async def _wait(self, lane: Lane, lookups: Lookups, keys: Sequence[Key]) -> Found:
        self._counts.enter()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._counts.limits.wait_seconds
        request = _Request(lookups, keys, deadline, loop.create_future())
        lane.waiting.append(request)
        lane.crowded = True
        if not lane.due and lane.in_flight < self._limit(lane):
            self._send_soon(lane)
        if lane.timer is None:
            lane.timer = loop.call_at(request.deadline, self._expire, lane)
        try:
            return await request.answer
        except asyncio.CancelledError:
            if request.batch is not None:
                request.batch.leave()
            elif request.answer.cancelled():
                self._counts.leave(1)  # it stays in the lane until those before it are gone
            if request.answer.done() and not request.answer.cancelled():
                request.answer.exception()  # it came too late to be raised
            raise

    def _expire(self, lane: Lane) -> None:
        """Tell those that have waited too long, who stand in front."""
        loop = asyncio.get_running_loop()
        lane.timer = None
        while lane.waiting:
            first = lane.waiting[0]
            if not first.answer.done():
                if first.deadline > loop.time():
                    lane.timer = loop.call_at(first.deadline, self._expire, lane)
                    return
                self._counts.leave(1)
                first.answer.set_exception(self._counts.late())
            lane.waiting.popleft()

    # --- batches --------------------------------------------------------------------------

    def _send_soon(self, lane: Lane) -> None:
        """Send those that wait after all that is to run before: more may come by it."""
        if not lane.due:
            lane.due = True
            asyncio.get_running_loop().call_soon(self._send_waiting, lane)

    def _send_waiting(self, lane: Lane) -> None:
        lane.due = False
        free = self._limit(lane) - lane.in_flight
        if len(lane.waiting) <= SHARED_ROWS and lane is not self._large:
            free = min(free, 1)
        for parts in range(free, 0, -1):
            if not lane.waiting:
                break
            lane.in_flight += 1
            share = 1 if lane is self._large else -(-len(lane.waiting) // parts)
            task = asyncio.get_running_loop().create_task(self._run(lane, share))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, lane: Lane, share: int) -> None:
        """Send ``share`` of those that wait, as one statement."""
        sent: list[_Batch] = []
        try:
            await self._database.on_driver(partial(self._send, lane, share, sent), again=True)
        except Exception as error:  # noqa: BLE001 - it is raised by each that waits for it
            # Without a connection nothing was sent: all that wait are told.
            batch = sent[0] if sent else _Batch(self._take(lane, len(lane.waiting)), None)
            passing = isinstance(error, StoreUnavailableError | OverloadedError)
            if passing or batch.size < 2:
                batch.fail(error)
            else:
                await self._one_by_one(lane, batch)
        finally:
            for batch in sent:
                batch.end()  # this task was cancelled, with its loop
            lane.in_flight -= 1
            lane.crowded = bool(lane.waiting) or any(batch.size > 1 for batch in sent)
            if lane.waiting:
                self._send_soon(lane)

    async def _send(self, lane: Lane, share: int, sent: list[_Batch], driver: Any) -> None:
        if not sent:  # taken when there is a connection: until then more may come
            requests = self._take(lane, share)
            if not requests:
                return
            sent.append(_Batch(requests, asyncio.current_task()))
        batch = sent[0]
        self._counts.begin(batch.size)
        try:
            batch.answer(await self._database.find_on(driver, batch.lookups, batch.keys))
        finally:
            self._counts.end()

    async def _one_by_one(self, lane: Lane, batch: _Batch) -> None:
        """What one caller's keys have broken must not break the others."""
        given_up: FeatureStoreError | None = None
        for request in batch.requests:
            if request.answer.done():
                continue
            # Cancelled, it takes back its own answer alone: this task goes on for the others.
            alone = _Batch([request], task=None)
            if given_up is not None:
                alone.fail(given_up)
                continue
            try:
                alone.answer(await self._query(lane, request.lookups, request.keys))
            except Exception as error:  # noqa: BLE001 - it is raised by the one that waits for it
                alone.fail(error)
                if isinstance(error, StoreUnavailableError | OverloadedError):
                    given_up = error  # nor would the database answer the next

    def _take(self, lane: Lane, share: int) -> list[_Request]:
        taken: list[_Request] = []
        rows = 0
        while lane.waiting and len(taken) < share and rows < BATCH_ROWS:
            request = lane.waiting.popleft()
            if request.answer.done():
                continue
            taken.append(request)
            rows += len(request.keys)
        self._counts.leave(len(taken))
        return taken

    # --- the whole ------------------------------------------------------------------------

    def stats(self) -> GatherStats:
        """What the reads have come to so far."""
        return self._counts.stats()

    async def close(self) -> None:
        """Refuse further reads, and wait for those that wait already: each has a deadline."""
        self.closed = True
        while self._tasks:
            await asyncio.wait(self._tasks)
