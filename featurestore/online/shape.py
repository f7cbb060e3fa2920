"""From the rows that a database found to feature vectors.

A *found row* is flat: see :data:`featurestore.storage.dialect.Found`. Most callers read a vector
once, as a dict, so the rest of an answer is worked out when it is asked for.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from featurestore.online.keys import INTEGERS, Key, entity_keys
from featurestore.online.vectors import OnlineFeatures, Status
from featurestore.selection import Request
from featurestore.types import ArrayType, FeatureType, Json

FoundRow = Sequence[Any]
Finish = Callable[[Any], Any]
_Output = tuple[str, int, int, int, Finish | None]
"""Its name; where its view's time, what says that it is fresh, and its value stand; see _finish."""


class Shape:
    """Where the outputs of a request stand in the rows that are found for it."""

    def __init__(self, request: Request) -> None:
        self.key_types: Mapping[str, FeatureType] = request.key_columns
        self.feature_types = {output.name: output.type for output in request.outputs}
        self.key_names = tuple(self.key_types)
        self.names = (*self.key_names, *self.feature_types)
        places: list[tuple[int, int]] = []  # of the event time, and of what says that it is fresh
        firsts: list[int] = []  # of the features
        at = 1
        for join in request.joins:
            has_ttl = join.view.ttl is not None
            # A row is as fresh as it is there where nothing says more: no time is False.
            places.append((at, at + has_ttl))
            firsts.append(at + 1 + has_ttl)
            at = firsts[-1] + len(join.features)
        self.views = [(join.name, at) for join, (at, _) in zip(request.joins, places, strict=True)]
        self.outputs: list[_Output] = [
            (
                output.name,
                *places[output.join],
                firsts[output.join] + output.position,
                _finish(output.type),
            )
            for output in request.outputs
        ]
        # The outputs of a single view are its columns, in their order.
        plain = all(output[-1] is None for output in self.outputs)
        self._as_found = firsts[0] if len(firsts) == 1 and plain else 0
        self._fresh = places[0][1]
        self._nothing = (None,) * len(self.outputs)
        names = list(self.key_types)
        limit = INTEGERS.get(self.key_types[names[0]]) if len(names) == 1 else None
        self._integer = None if limit is None else (names[0], limit)

    def keys(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Key]:
        """The keys to look up; see :func:`entity_keys`."""
        if (
            self._integer is not None and len(rows) == 1
        ):  # what services ask for, thousands a second
            name, limit = self._integer
            value = rows[0].get(name) if type(rows[0]) is dict else None
            if type(value) is int and -limit <= value < limit:
                return [(value,)]
        return entity_keys(rows, self.key_types)

    def vector(self, row: FoundRow) -> Sequence[Any]:
        """The values of one row, in the order of the outputs."""
        if self._as_found:
            return row[self._as_found :] if row[self._fresh] else self._nothing
        return [
            None
            if not row[fresh] or (value := row[at]) is None
            else (value if finish is None else finish(value))
            for _, _, fresh, at, finish in self.outputs
        ]

    def dicts(self, keys: Sequence[Key], rows: Sequence[Any]) -> list[dict[str, Any]]:
        """For each row its keys and values, by name."""
        names, first, fresh, nothing = self.names, self._as_found, self._fresh, self._nothing
        if not first:
            vector = self.vector
            return [
                dict(zip(names, (*key, *vector(row)), strict=True))
                for key, row in zip(keys, rows, strict=True)
            ]
        # All names have their values: checking that would be a fifth of the time.
        return [
            dict(zip(names, key + (row[first:] if row[fresh] else nothing)))  # noqa: B905
            for key, row in zip(keys, rows, strict=True)
        ]

    def statuses(self, row: FoundRow) -> dict[str, Status]:
        """Why each value of a row is there or not."""
        statuses = {}
        for name, event, fresh, at, _ in self.outputs:
            if row[event] is None:
                statuses[name] = Status.NOT_FOUND
            elif not row[fresh]:
                statuses[name] = Status.OUTSIDE_MAX_AGE
            else:
                statuses[name] = Status.NULL_VALUE if row[at] is None else Status.PRESENT
        return statuses


def _finish(kind: FeatureType) -> Finish | None:
    """What each caller has to itself: one found row may answer several."""
    if kind == Json:
        return json.loads
    return list if isinstance(kind, ArrayType) else None


class FoundFeatures(OnlineFeatures):
    """:class:`OnlineFeatures` over found rows."""

    def __init__(self, shape: Shape, keys: Sequence[Key], rows: Sequence[FoundRow]) -> None:
        self.key_types = shape.key_types
        self.feature_types = shape.feature_types
        self._shape = shape
        self._keys = keys
        self._rows = rows

    def __len__(self) -> int:
        return len(self._keys)

    @cached_property
    def keys(self) -> Sequence[Mapping[str, Any]]:  # type: ignore[override]
        return [dict(zip(self._shape.key_names, key, strict=True)) for key in self._keys]

    @cached_property
    def values(self) -> Sequence[Mapping[str, Any]]:  # type: ignore[override]
        names, vector = tuple(self.feature_types), self._shape.vector
        return [dict(zip(names, vector(row), strict=True)) for row in self._rows]

    @cached_property
    def statuses(self) -> Sequence[dict[str, Status]]:  # type: ignore[override]
        return [self._shape.statuses(row) for row in self._rows]

    @cached_property
    def event_timestamps(self) -> Sequence[dict[str, dt.datetime | None]]:  # type: ignore[override]
        views = self._shape.views
        return [{name: row[start] for name, start in views} for row in self._rows]

    def to_dicts(self) -> list[dict[str, Any]]:
        return self._shape.dicts(self._keys, self._rows)
