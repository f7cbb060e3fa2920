"""Found rows kept in the process, for reads that need not be of this very moment.

A row is kept with the moment before its read was sent, and serves until that is ``max_staleness``
ago: an answer from here is what a read not longer ago than that would have given. Writes of this
process, whichever of its stores makes them, take out what they may have changed before they
return. A read that was sent before that keeps nothing of what was changed since.

Plans are read and filled on their store's loop. Writers may be on other threads, so whatever
changes is changed under a lock; a hit takes none, since looking up a key is one step.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import math
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from featurestore.errors import DefinitionError
from featurestore.online.keys import Key
from featurestore.reports import CacheStats
from featurestore.selection import Request
from featurestore.storage.dialect import Found
from featurestore.storage.forks import ForkLock

T = TypeVar("T")

Domain = tuple[str, str]
"""A kind of database, and a project."""

Row = Sequence[Any]
Read = Callable[[Sequence[Key]], Awaitable[Found]]

INLINE_KEYS = 1_000
"""Keys up to this many are looked up on the loop, in a few tenths of a millisecond."""

STEP = 1_000
"""Rows that are put in before the lock is let go."""

CHANGES = 10_000
"""Keys that are remembered as changed while reads are under way. Beyond that the reads that began
before the oldest of them keep nothing."""


def _clock() -> Callable[[], float]:
    """A clock that goes on while the machine sleeps: what was kept before is old then."""
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):  # macOS' own goes on, without the first
        if hasattr(time, name):
            return partial(time.clock_gettime, getattr(time, name))
    return time.monotonic  # Windows' does


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What a store may answer online reads with by itself: rows that it has read before.

    ``max_staleness`` is the promise: whatever happens, an answer is what a read not longer ago
    than that would have given. Writes of the same process are seen at once, those of others
    when it has passed, or as soon as they tell (``notify`` of :class:`FeatureView`).
    ``max_entries`` vectors are kept at the most, those of unknown entities among them; the oldest
    go first. ``clock`` gives seconds, and never goes back: tests may have one of their own.
    """

    max_staleness: dt.timedelta
    max_entries: int = 100_000
    clock: Callable[[], float] = field(default=_clock(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.max_staleness, dt.timedelta) or self.max_staleness <= dt.timedelta():
            raise DefinitionError(
                f"max_staleness={self.max_staleness!r}: it is a timedelta above zero, how old an "
                f"answer may be."
            )
        whole = isinstance(self.max_entries, int) and not isinstance(self.max_entries, bool)
        if not whole or self.max_entries < 1:
            raise DefinitionError(
                f"max_entries={self.max_entries!r}: it is a number of vectors, 1 or more."
            )
        if not callable(self.clock):
            raise DefinitionError("clock must be a function that gives seconds.")


_numbers = itertools.count(1)


class Shelf:
    """The place of one plan's rows in a cache. With another ``number`` it is an empty one.

    ``views`` are those that the plan reads. For one whose keys are all of the plan's, in whatever
    order, it has the place among the view's keys of each of the plan's; None for the others.
    """

    __slots__ = ("__weakref__", "known", "notifies", "number", "reads", "views")

    def __init__(self, request: Request) -> None:
        columns = list(request.key_columns)
        self.views: dict[str, tuple[int, ...] | None] = {}
        for join in request.joins:
            given = [columns.index(column) for _, column in join.columns]
            order = None
            if sorted(given) == list(range(len(columns))):
                order = tuple(given.index(place) for place in range(len(columns)))
            name = join.view.name
            self.views[name] = order if self.views.get(name, order) == order else None
        self.notifies = any(join.view.view.notify for join in request.joins)
        self.number = next(_numbers)
        self.reads = 0  # under way
        self.known = False  # to the cache

    def clear(self) -> None:
        """Forget the rows; they take their room until it is needed."""
        self.number = next(_numbers)

    def keys(self, view: str, keys: Sequence[Sequence[Any]]) -> list[Key] | None:
        """The plan's keys for those of a view; None where there are others with them."""
        order = self.views[view]
        if order is None or any(len(key) != len(order) for key in keys):
            return None
        return [tuple([key[place] for place in order]) for key in keys]


class _Reading:
    """A read under way for a shelf: what it finds is as of ``sent`` or later."""

    __slots__ = ("_rows", "number", "sent", "sequence", "shelf")

    def __init__(self, rows: CachedRows, shelf: Shelf) -> None:
        self._rows = rows
        self.shelf = shelf
        self.number = self.sequence = 0
        self.sent = 0.0

    def __enter__(self) -> _Reading:
        self._rows._begin(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._rows._end(self)


class CachedRows:
    """The rows that a store has kept."""

    def __init__(self, cache: Cache) -> None:
        self._max_entries = cache.max_entries
        self._max_age = cache.max_staleness.total_seconds()
        self._clock = cache.clock
        self._lock = threading.Lock()
        # (number of the shelf, key) → when its read was sent, and the row; the oldest first.
        self._rows: OrderedDict[tuple[int, Key], tuple[float, Row]] = OrderedDict()
        self._shelves: dict[str, weakref.WeakSet[Shelf]] = {}
        self._reads = 0
        # Writes are counted; keys that were changed while reads were under way have the number.
        self._sequence = self._floor = 0
        self._changed: OrderedDict[tuple[int, Key], int] = OrderedDict()
        self._hits = self._misses = 0
        self._closed = False

    # --- reading --------------------------------------------------------------------------

    def look(self, shelf: Shelf, keys: Sequence[Key]) -> Sequence[Row] | None:
        """The rows of all keys; None where one is not there, or there are very many."""
        number, get = shelf.number, self._rows.get
        oldest = self._clock() - self._max_age
        if len(keys) == 1:
            entry = get((number, keys[0]))
            if entry is None or entry[0] < oldest:
                return None
            self._hits += 1
            return (entry[1],)
        if len(keys) > INLINE_KEYS:
            return None
        rows = []
        for key in keys:
            entry = get((number, key))
            if entry is None or entry[0] < oldest:
                return None
            rows.append(entry[1])
        self._hits += len(rows)
        return rows

    async def find(self, shelf: Shelf, keys: Sequence[Key], read: Read) -> Found:
        """As ``read``, which is asked only for the keys that are not here."""
        if len(keys) == 1:  # what services ask for, and it was looked for before
            return await self._find_one(shelf, keys, read)
        rows, since = await self._held(shelf, keys)
        here = [place for place, row in enumerate(rows) if row is not None]
        missing = [place for place, row in enumerate(rows) if row is None]

        async def fetch(places: Sequence[int]) -> bool:
            self._misses += len(places)
            found = await read([keys[place] for place in places])
            if found is not None:
                _put(rows, places, found)
            return found is not None

        with _Reading(self, shelf) as reading:
            if missing:
                if not await fetch(missing):
                    return None
                # Time has gone by, and writes may have come: what was here must still be.
                again, since = await self._held(shelf, [keys[place] for place in here])
                if any(row is None for row in again):
                    since = -math.inf
                _put(rows, here, again)
                await self._keep(reading, [(keys[place], rows[place]) for place in missing])
            if here and self._late(since):
                if not await fetch(here):
                    return None
                here = []
        self._hits += len(here)
        return [row for row in rows if row is not None]

    async def _find_one(self, shelf: Shelf, keys: Sequence[Key], read: Read) -> Found:
        self._misses += 1
        with _Reading(self, shelf) as reading:
            found = await read(keys)
            if found is not None:
                self._put_in(reading, [(keys[0], found[0])])
            return found

    def _late(self, since: float) -> bool:
        """Whether rows whose read was sent at that moment are too old by now."""
        return since < self._clock() - self._max_age

    async def _held(self, shelf: Shelf, keys: Sequence[Key]) -> tuple[list[Row | None], float]:
        """The rows that are here, None for the others, and when the oldest was read."""

        def collect() -> tuple[list[Row | None], float]:
            number, get = shelf.number, self._rows.get
            oldest = self._clock() - self._max_age
            entries = [get((number, key)) for key in keys]
            fresh = [None if one is None or one[0] < oldest else one for one in entries]
            since = min((one[0] for one in fresh if one is not None), default=math.inf)
            return [None if one is None else one[1] for one in fresh], since

        return await _worked(collect, len(keys))

    # --- keeping --------------------------------------------------------------------------

    def _begin(self, reading: _Reading) -> None:
        shelf = reading.shelf
        with self._lock:
            if not shelf.known:
                shelf.known = True
                for view in shelf.views:
                    self._shelves.setdefault(view, weakref.WeakSet()).add(shelf)
            shelf.reads += 1
            self._reads += 1
            reading.number, reading.sequence = shelf.number, self._sequence
        reading.sent = self._clock()

    def _end(self, reading: _Reading) -> None:
        with self._lock:
            reading.shelf.reads -= 1
            self._reads -= 1
            if not self._reads:
                self._changed.clear()

    async def _keep(self, reading: _Reading, found: Sequence[tuple[Key, Row | None]]) -> None:
        """Keep what a read has found, but for what was written since it began."""
        last = found[-self._max_entries :]

        def keep() -> None:
            for start in range(0, len(last), STEP):
                self._put_in(reading, last[start : start + STEP])

        await _worked(keep, len(last))

    def _put_in(self, reading: _Reading, found: Sequence[tuple[Key, Row | None]]) -> None:
        number, sequence, sent = reading.number, reading.sequence, reading.sent
        rows, changed = self._rows, self._changed
        with self._lock:
            if self._closed or reading.shelf.number != number or sequence < self._floor:
                return
            for key, row in found:
                place = (number, key)
                if row is None or (changed and changed.get(place, 0) > sequence):
                    continue
                known = rows.get(place)
                if known is not None:
                    if known[0] >= sent:
                        continue
                    rows.move_to_end(place)
                # A plain tuple: the garbage collector has nothing to look for in it.
                rows[place] = (sent, tuple(row))
                if len(rows) > self._max_entries:
                    rows.popitem(last=False)
            self._sweep(2 * len(found), self._clock() - self._max_age)

    def _sweep(self, most: int, oldest: float) -> None:
        """Let go of rows that are too old, so many at a time that it takes no time to speak of."""
        rows = self._rows
        for _ in range(most):
            first = next(iter(rows), None)
            if first is None or rows[first][0] >= oldest:
                return
            del rows[first]

    # --- writes ---------------------------------------------------------------------------

    def changed(self, view: str | None, keys: Sequence[Sequence[Any]] | None = None) -> None:
        """Take out what a write may have changed: rows of these keys of a view, all that were
        read from it, or, without a view, all. On any thread."""
        with self._lock:
            self._sequence += 1
            if view is None:
                for shelves in self._shelves.values():
                    _clear(shelves)
                return
            for shelf in self._shelves.get(view, ()):
                own = None if keys is None else shelf.keys(view, keys)
                if own is None:
                    shelf.clear()
                    continue
                for key in own:
                    self._rows.pop((shelf.number, key), None)
                    if shelf.reads:
                        self._remember((shelf.number, key))

    def _remember(self, place: tuple[int, Key]) -> None:
        self._changed[place] = self._sequence
        self._changed.move_to_end(place)
        if len(self._changed) > CHANGES:
            self._floor = self._changed.popitem(last=False)[1]

    def forget_notifying(self) -> None:
        """Take out all that was read from views whose writers tell: something may have been
        missed."""
        with self._lock:
            self._sequence += 1
            for shelves in self._shelves.values():
                _clear(shelf for shelf in shelves if shelf.notifies)

    # --- the whole ------------------------------------------------------------------------

    def stats(self) -> CacheStats:
        """What it holds, and what it has been good for so far."""
        return CacheStats(len(self._rows), self._hits, self._misses)

    def close(self) -> None:
        """Keep nothing more, and answer nothing."""
        with self._lock:
            self._closed = True
            for shelves in self._shelves.values():
                _clear(shelves)


def _clear(shelves: Iterable[Shelf]) -> None:
    for shelf in shelves:
        shelf.clear()


def _put(rows: list[Row | None], places: Sequence[int], given: Sequence[Row | None]) -> None:
    for place, row in zip(places, given, strict=True):
        rows[place] = row


async def _worked(work: Callable[[], T], keys: int) -> T:
    """Do ``work`` for so many keys: here, or in a thread."""
    return work() if keys <= INLINE_KEYS else await asyncio.to_thread(work)


class LiveCaches:
    """The caches of this process, by what they hold rows of.

    Two URLs may lead to one database, so a write counts for each project of its name on a
    database of its kind: too much is taken out then, never too little.
    """

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._caches: dict[Domain, weakref.WeakSet[CachedRows]] = {}

    def add(self, domain: Domain, rows: CachedRows) -> None:
        """From now on let ``rows`` know of writes."""
        with self._lock:
            self._caches.setdefault(domain, weakref.WeakSet()).add(rows)

    def remove(self, domain: Domain, rows: CachedRows) -> None:
        """Let it know no more."""
        with self._lock:
            caches = self._caches.get(domain, weakref.WeakSet())
            caches.discard(rows)
            if not caches:
                self._caches.pop(domain, None)

    def changed(
        self, domain: Domain, view: str | None, keys: Sequence[Sequence[Any]] | None = None
    ) -> None:
        """A write has come to its end, see :meth:`CachedRows.changed`. On any thread."""
        if domain not in self._caches:  # as in most processes
            return
        with self._lock:
            caches = list(self._caches.get(domain, ()))
        for rows in caches:
            rows.changed(view, keys)


LIVE = LiveCaches()
