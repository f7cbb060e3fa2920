"""From the rows that a database found to feature vectors.

A *found row* is flat: the registry's revision, then for each view its event time (None where
there is no row), whether that is within the ttl, and its features. Most callers read a vector
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


class Shape:
    """Where the outputs of a request stand in the rows that are found for it."""

    def __init__(self, request: Request) -> None:
        self.key_types: Mapping[str, FeatureType] = request.key_columns
        self.feature_types = {output.name: output.type for output in request.outputs}
        self.key_names = tuple(self.key_types)
        self.names = (*self.key_names, *self.feature_types)
        starts, start = [], 1
        for join in request.joins:
            starts.append(start)
            start += 2 + len(join.features)
        self.views = [(join.name, at) for join, at in zip(request.joins, starts, strict=True)]
        self.outputs: list[tuple[str, int, int, Finish | None]] = [
            (
                output.name,
                starts[output.join],
                starts[output.join] + 2 + output.position,
                _finish(output.type),
            )
            for output in request.outputs
        ]
        # The outputs of a single view are its columns, in their order.
        self._as_found = len(starts) == 1 and all(out[3] is None for out in self.outputs)
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
            return row[3:] if row[1] is not None and row[2] else self._nothing
        return [
            None
            if row[start] is None or not row[start + 1] or (value := row[at]) is None
            else (value if finish is None else finish(value))
            for _, start, at, finish in self.outputs
        ]

    def statuses(self, row: FoundRow) -> dict[str, Status]:
        """Why each value of a row is there or not."""
        statuses = {}
        for name, start, at, _ in self.outputs:
            if row[start] is None:
                statuses[name] = Status.NOT_FOUND
            elif not row[start + 1]:
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
        names, vector = self._shape.names, self._shape.vector
        return [
            dict(zip(names, (*key, *vector(row)), strict=True))
            for key, row in zip(self._keys, self._rows, strict=True)
        ]
