"""What DuckDB is asked. Names of views and features are quoted; all others are our own.

``entity`` has r (row), asked (time), and keys k0, k1 …; ``history`` has keys, t (event time),
c (created time), a (arrival) and id, by which its rows are found again. Times are microseconds.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

from featurestore.selection import Join
from featurestore.storage.tables import ARRIVAL, CREATED, EVENT
from featurestore.types import FeatureType, Timestamp

_MICROSECOND = dt.timedelta(microseconds=1)


def short_names(keys: Sequence[str] | Mapping[str, object]) -> dict[str, str]:
    """The columns of history that decide, and what the statements call them."""
    return {**{key: f"k{i}" for i, key in enumerate(keys)}, EVENT: "t", CREATED: "c", ARRIVAL: "a"}


def history_view(names: Mapping[str, str], keys: Mapping[str, FeatureType]) -> str:
    """``history``, of rows that lie in a file (``rows_of_history``)."""
    times = {EVENT, CREATED, *(key for key, kind in keys.items() if kind == Timestamp)}
    columns = ", ".join(
        f'epoch_us("{column}") AS {name}' if column in times else f'"{column}" AS {name}'
        for column, name in names.items()
    )
    # A feature may have the name a: the arrival by its own.
    found = f'"{ARRIVAL}" AS id'
    return f"CREATE OR REPLACE TEMP VIEW history AS SELECT {columns}, {found} FROM rows_of_history"


def leaks(plain: str) -> str:
    """How many of the matches in ``plain`` were created after their entity row's time."""
    return (
        f'SELECT count(*) FROM {plain} w JOIN rows_of_history h ON h."{ARRIVAL}" = w.id '
        f'WHERE epoch_us(h."{CREATED}") > w.asked'
    )


def in_order(target: str, features: Sequence[str]) -> str:
    """The matches in ``target`` with their features, in the order of the entity rows."""
    columns = "".join(f', h."{name}"' for name in features)
    return (
        f"SELECT w.id{columns} FROM {target} w "
        f'LEFT JOIN rows_of_history h ON h."{ARRIVAL}" = w.id ORDER BY w.r'
    )


def kept(name: str, query: str) -> str:
    """The rows of a query, kept in a table."""
    return f"CREATE OR REPLACE TABLE {name} AS {query}"


class Statements:
    """The statements of one join; its matches are rows of r, asked, and id or null."""

    def __init__(self, join: Join) -> None:
        self._keys = [f"k{index}" for index in range(len(join.columns))]
        self._listed = "".join(f"{key}, " for key in self._keys)
        ttl = join.view.ttl
        micros = None if ttl is None else ttl // _MICROSECOND
        self._counts = "true" if micros is None else f"h.t >= e.asked - {micros}"

    def _same_keys(self, one: str, other: str) -> str:
        return "".join(f"{one}.{key} = {other}.{key} AND " for key in self._keys)

    @property
    def ties(self) -> str:
        """Keys and times that have several rows: an ASOF join would take any of them."""
        return (
            f"CREATE OR REPLACE TABLE ties AS SELECT {self._listed}t FROM history "
            f"GROUP BY ALL HAVING count(*) > 1"
        )

    @property
    def hashes(self) -> str:
        """A number for each row of history that rows of the same keys and time have in common."""
        return f"SELECT hash({self._listed}t) AS hash FROM history"

    @property
    def best(self) -> str:
        """Which of the rows of each tie counts."""
        return (
            f"CREATE OR REPLACE TABLE best AS SELECT {self._listed}t, "
            f"arg_max(id, row(c, a)) AS id "
            f"FROM history h SEMI JOIN ties USING ({self._listed}t) GROUP BY ALL"
        )

    def plain(self, *, tied: bool) -> str:
        """The matches by the plain rule; ``tied`` where ``best`` is there."""
        found, settled = "h.id", ""
        if tied:
            found = "coalesce(b.id, h.id)"
            settled = f"LEFT JOIN best b ON {self._same_keys('b', 'h')}b.t = h.t"
        return (
            f"SELECT e.r, e.asked, CASE WHEN {self._counts} THEN {found} END AS id "
            f"FROM entity e "
            f"ASOF LEFT JOIN history h ON {self._same_keys('e', 'h')}e.asked >= h.t "
            f"{settled}"
        )

    @property
    def known(self) -> str:
        """A row can be seen from v on, when it had happened and was created. Of those seen by
        then the greatest counts: a running maximum, the same for all rows of one v."""
        by = f"PARTITION BY {', '.join(self._keys)} " if self._keys else ""
        frame = f"OVER ({by}ORDER BY v RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)"
        seen = (
            f"SELECT {self._listed}v, "
            f"arg_max(id, row(t, c, a)) {frame} AS id, max(t) {frame} AS t "
            f"FROM (SELECT *, greatest(t, c) AS v FROM history)"
        )
        return (
            f"SELECT e.r, e.asked, CASE WHEN {self._counts} THEN h.id END AS id "
            f"FROM entity e ASOF LEFT JOIN ({seen}) h "
            f"ON {self._same_keys('e', 'h')}e.asked >= h.v"
        )
