"""Section 3 of the contract as plain Python: slow, small, and meant to be obviously right.

It knows no SQL, no Arrow and nothing of featurestore but the words of the contract. The
conformance tests feed the same writes to it and to a store, and compare.
"""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Keys = tuple[Any, ...]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Draft:
    """A row as a user writes it."""

    keys: Keys
    event: dt.datetime
    values: Values
    created: dt.datetime | None = None


@dataclass(frozen=True)
class Stored:
    """A row as the store keeps it."""

    keys: Keys
    event: dt.datetime
    created: dt.datetime
    arrival: int
    load: int
    values: Values

    @property
    def rank(self) -> tuple[dt.datetime, dt.datetime, int]:
        """What the point-in-time rule takes the greatest of."""
        return (self.event, self.created, self.arrival)


@dataclass(frozen=True)
class Vector:
    """What online answers for one view and one entity row."""

    values: dict[str, Any]
    statuses: dict[str, str]
    event: dt.datetime | None


class Oracle:
    """One feature view, its history and its online rows, by the contract's words."""

    def __init__(
        self,
        features: Sequence[str],
        *,
        ttl: dt.timedelta | None = None,
        clock_skew: dt.timedelta = dt.timedelta(seconds=60),
    ) -> None:
        self.features = tuple(features)
        self.ttl = ttl
        self.clock_skew = clock_skew
        self.rows: list[Stored] = []
        self.loads: list[int] = []
        self._online: dict[Keys, Stored] = {}
        self._arrivals = 0
        self._load_numbers = 0

    # --- writing ----------------------------------------------------------------------

    def write(self, drafts: Iterable[Draft], now: dt.datetime) -> int:
        """Store ``drafts`` in their order as one load, at ``now``; gives the load's number."""
        self._load_numbers += 1
        load = self._load_numbers
        touched = set()
        for draft in drafts:
            self._arrivals += 1
            created = now if draft.created is None else draft.created
            self.rows.append(
                Stored(draft.keys, draft.event, created, self._arrivals, load, draft.values)
            )
            touched.add(draft.keys)
        self.loads.append(load)
        self._refresh(touched, now)
        return load

    def undo(self, load: int, now: dt.datetime) -> int:
        """Take the rows of ``load`` back out; gives how many there were."""
        gone = [row for row in self.rows if row.load == load]
        self.rows = [row for row in self.rows if row.load != load]
        self.loads.remove(load)
        self._refresh({row.keys for row in gone}, now)
        return len(gone)

    def delete(self, keys: Keys) -> None:
        """Erase an entity."""
        self.rows = [row for row in self.rows if row.keys != keys]
        self._online.pop(keys, None)

    def materialize(
        self,
        now: dt.datetime,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
    ) -> None:
        """Set online to the rule, for all keys or for those with an event in [start, end]."""
        self._refresh(
            {
                row.keys
                for row in self.rows
                if (start is None or start <= row.event) and (end is None or row.event <= end)
            },
            now,
        )

    def _refresh(self, touched: Iterable[Keys], now: dt.datetime) -> None:
        for keys in touched:
            newest = self._newest(keys, now + self.clock_skew)
            if newest is None:
                self._online.pop(keys, None)
            else:
                self._online[keys] = newest

    def snapshot(self) -> Oracle:
        """A copy that later writes leave alone: what a rollback goes back to."""
        return copy.deepcopy(self)

    # --- reading ----------------------------------------------------------------------

    def _newest(
        self, keys: Keys, until: dt.datetime, known_by: dt.datetime | None = None
    ) -> Stored | None:
        candidates = [row for row in self.rows if row.keys == keys and row.event <= until]
        if known_by is not None:
            candidates = [row for row in candidates if row.created <= known_by]
        return max(candidates, key=lambda row: row.rank, default=None)

    def stored_at(self, keys: Keys, time: dt.datetime, *, known: bool = False) -> Stored | None:
        """The stored row that the point-in-time rule gives for ``keys`` at ``time``; with
        ``known``, among those that were created by then."""
        if any(key is None for key in keys):
            return None
        newest = self._newest(keys, time, time if known else None)
        if newest is None or (self.ttl is not None and newest.event < time - self.ttl):
            return None
        return newest

    def values_at(self, keys: Keys, time: dt.datetime, *, known: bool = False) -> dict[str, Any]:
        """The features of ``keys`` at ``time``; null where nothing matches."""
        row = self.stored_at(keys, time, known=known)
        return {name: None if row is None else row.values[name] for name in self.features}

    def online(self, keys: Keys, now: dt.datetime) -> Vector:
        """What online gives for ``keys`` at ``now``, as of the last write that touched them."""
        row = None if any(key is None for key in keys) else self._online.get(keys)
        if row is None:
            return self._vector(dict.fromkeys(self.features), "NOT_FOUND", None)
        if self.ttl is not None and row.event < now - self.ttl:
            return self._vector(dict.fromkeys(self.features), "OUTSIDE_MAX_AGE", row.event)
        return self._vector({name: row.values[name] for name in self.features}, None, row.event)

    def _vector(
        self, values: dict[str, Any], status: str | None, event: dt.datetime | None
    ) -> Vector:
        statuses = {
            name: status or ("NULL_VALUE" if value is None else "PRESENT")
            for name, value in values.items()
        }
        return Vector(values, statuses, event)

    def history(self, keys: Keys) -> list[Stored]:
        """All stored rows of ``keys``, oldest first."""
        return sorted((row for row in self.rows if row.keys == keys), key=lambda row: row.rank)
