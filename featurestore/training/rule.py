"""The rule of time, in words, for every engine.

For an entity row with keys *k* at time *t*, a view gives the stored row of *k* with the greatest
(event time, created time, arrival) among those with ``event time <= t``; with a ttl it counts only
where ``event time >= t - ttl``. Both bounds are inclusive. The newest row decides: past its ttl it
does not uncover an older one, and a null in it is null. A null key matches nothing.

With ``known_by="created_timestamp"`` only rows with ``created time <= t`` are looked at, so that
what was filled in later does not leak. That is no join on the event time with a filter after it:
the newest row may have come too late and hide an older one that was known.

With ``as_of`` only rows that were there at a mark are looked at.

An engine is a function of a session, entities and a :class:`Question` that yields, for
consecutive entity rows in their order, one :class:`Matched` for each join of the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import sqlalchemy as sa

from featurestore.selection import Join, Request
from featurestore.storage.marks import Mark, Ranges, known_at
from featurestore.training.report import Report

KnownBy = Literal["created_timestamp"]

ROW = "__row"
AT = "__at"


@dataclass(frozen=True)
class Question:
    """What is asked of an engine beside the entities.

    ``mark`` is the state that is read; with ``as_of`` history is cut to it, ``hidden`` having for
    each view's number the ranges of arrivals that were not there. ``known`` is ``known_by``,
    ``inside`` whether the session is in a transaction that may have written, and ``from_source``
    has the views that are read from their files. ``report`` is for what the engine did.
    """

    request: Request
    report: Report
    mark: Mark | None = None
    as_of: bool = False
    hidden: Mapping[int, Ranges] = field(default_factory=dict)
    known: bool = False
    inside: bool = False
    from_source: frozenset[str] = frozenset()

    def seen(self, join: Join, history: sa.FromClause) -> list[sa.ColumnElement[bool]]:
        """The conditions on a row of history to be looked at, whatever the entity's time."""
        if not self.as_of or self.mark is None:
            return []
        return known_at(history, self.mark, self.hidden.get(join.view.id, ()))


@dataclass(frozen=True)
class Matched:
    """What one join found for consecutive entity rows.

    ``arrivals`` (int64) has the arrival of each row's match, null where there is none;
    ``leaked`` says how many plain matches, those without ``known_by``, were created after the
    entity's time; ``features`` are the values, in the order of the join's.
    """

    arrivals: pa.Array
    leaked: int
    features: tuple[pa.Array, ...]
