"""The small contract behind which the two databases differ.

Both keep the same tables (``tables.py``) and obey the same rule (``rule.py``); a dialect says
how values are kept, how rows go in fast, how a write begins, and how the newest row of a key is
found. A third database is one more module like ``postgresql.py`` and ``sqlite.py``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pyarrow as pa
import sqlalchemy as sa

from featurestore.storage.queries import UserQuery
from featurestore.types import FeatureType

if TYPE_CHECKING:
    from featurestore.storage.push import Pushed, PushPlan, Rows
    from featurestore.storage.session import Session

T = TypeVar("T")

Types = Mapping[str, FeatureType]
Match = Callable[[sa.FromClause], Sequence[sa.ColumnElement[bool]]]

BLOCK = 1 << 20
"""Arrivals are handed out in blocks of this many; 2**43 blocks fit a bigint. A load's number is
that of its first block, so the upper bits of an arrival lead to its load."""


@dataclass(frozen=True)
class Lookup:
    """The online rows to find in one table: which columns, by which keys, how old at most.

    ``keys`` pairs the table's key columns with positions in each row of keys that is asked for.
    """

    table: sa.Table
    features: tuple[tuple[str, FeatureType], ...]
    keys: tuple[tuple[str, int], ...]
    ttl: dt.timedelta | None


@dataclass(frozen=True)
class Lookups:
    """What one online read looks up, compiled once and kept with its request."""

    project: str
    revision: int
    key_types: tuple[FeatureType, ...]
    lookups: tuple[Lookup, ...]
    cache: dict[str, Any] = field(default_factory=dict, compare=False)


Found = Sequence[Sequence[Any]] | None
"""The row that was found for each row of keys; None where the registry is at another revision than
the lookups.

A found row is flat: something of the database's own, then for each lookup its row's event time
(None where there is none), with a ttl whether that has not passed, and the features. Their values
are those of :mod:`featurestore.types`, but Json is text."""


class Stage(Protocol):
    """The newest rows of a load's keys, on their way into an online table."""

    async def fill(self, rows: pa.Table) -> None:
        """Put the first rows into an online table that is empty, and nobody else writes to."""

    async def add(self, rows: pa.Table) -> None:
        """Bring rows, one of each key; further calls may bring the same keys again."""

    async def finish(self) -> None:
        """Take over what is newer than what is online."""


class Dialect(Protocol):
    """What the library asks of a database. Sessions are in a transaction unless said."""

    single_writer: bool
    """Whether the database lets one transaction write at a time."""

    sorts_rows: bool
    """Whether rows in the order of their keys go into an indexed table faster."""

    keeps_temporary_tables: bool
    """Whether a temporary table outlives the transaction that made it."""

    notifies: bool
    """Whether a transaction can tell other processes something with its commit (NOTIFY)."""

    failure_ends_transaction: bool
    """Whether a statement that fails takes its transaction with it."""

    commit_seconds: float | None
    """How long an answer to a COMMIT is waited for; None where nothing can keep it back."""

    async def prepare(self, driver: Any) -> None:
        """Make a connection just checked out fit for use; without a transaction."""

    async def release(self, driver: Any) -> None:
        """Leave a borrowed connection as it came, before it goes back to its pool."""

    async def is_alive(self, driver: Any) -> bool:
        """Whether a connection on which a call failed can be used further."""

    def is_closed(self, driver: Any) -> bool:
        """Whether a connection is gone, as far as is known without asking."""

    async def interrupt(self, driver: Any) -> None:
        """Ask for the end of what a connection runs; it need not run anything."""

    def terminate(self, driver: Any) -> None:
        """End a connection that does not answer."""

    async def finish(self, driver: Any, work: Coroutine[Any, Any, T]) -> T:
        """Await a call of SQLAlchemy's; a caller that is cancelled stops its statement first."""

    async def begin(self, session: Session) -> None:
        """Begin a transaction to write."""

    async def begin_snapshot(self, session: Session, tables: Sequence[sa.Table]) -> None:
        """Begin a transaction that reads one state; ``tables`` are not rewritten meanwhile."""

    def in_transaction(self, driver: Any) -> bool:
        """Whether the transaction that was begun on a connection is still under way."""

    async def lock_view(self, session: Session, view_id: int, *, exclusive: bool) -> None:
        """Until the end of the transaction keep undo, erasure and apply (exclusive) apart from
        writes (shared, beside each other)."""

    async def lock_history(self, session: Session, history: sa.Table) -> None:
        """Until the end of the transaction keep pushes out, which do not lock their view."""

    async def lock_name(self, session: Session, name: str) -> None:
        """Until the end of the transaction, the only holder of ``name`` in this database."""

    async def now(self, session: Session) -> dt.datetime:
        """The database's clock, aware, at this moment."""

    async def begin_load(self, session: Session, index: sa.Index) -> tuple[dt.datetime, bool]:
        """The database's clock, and whether ``index`` is still to be made.

        Where it is, no other load of its table is under way until this transaction ends.
        """

    async def allocate(self, session: Session, blocks: int) -> int:
        """The number of the first of ``blocks`` consecutive blocks of arrivals."""

    async def insert(
        self,
        session: Session,
        table: sa.Table,
        batches: AsyncIterator[pa.RecordBatch],
        types: Types,
    ) -> int:
        """Bulk-insert record batches (columns as in ``types``); how many rows went in."""

    async def rows(
        self, session: Session, sql: str, values: Sequence[Any]
    ) -> Sequence[Sequence[Any]]:
        """All rows of a query as the driver gives them; with or without a transaction."""

    def stream(
        self, session: Session, sql: str, values: Sequence[Any], size: int
    ) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
        """The rows of a query, ``size`` at a time."""

    def rows_inline(self, types: Types) -> sa.FromClause | None:
        """A few rows as part of a statement, its parameters the columns (:meth:`inline_values`);
        None where a temporary table is as quick. The first column counts the rows from 0."""

    def inline_values(self, rows: pa.Table, types: Types) -> dict[str, Sequence[Any]]:
        """The parameters of :meth:`rows_inline` for some rows."""

    def extract(
        self,
        session: Session,
        table: sa.Table,
        types: Types,
        where: Sequence[sa.ColumnElement[bool]],
        mark: str,
        *,
        inside: bool,
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        """The columns ``types`` of the rows that meet ``where``, in any order, as fast as they
        can be had; ``mark`` is put before the statement. ``inside`` a transaction that may have
        written they come by its own connection."""

    async def estimate_rows(self, session: Session, table: sa.Table) -> int:
        """About how many rows a table has, found out in a few milliseconds."""

    async def describe(self, session: Session, sql: str) -> UserQuery:
        """The columns of a query that was given as text, and how it is to be run."""

    def read_only(self, session: Session) -> AbstractAsyncContextManager[None]:
        """Statements inside cannot write: what the user gave as a query is none that does."""

    async def analyze(self, session: Session, table: sa.Table) -> None:
        """Refresh the planner's statistics of a table that has grown much."""

    def column_type(self, kind: FeatureType) -> sa.types.TypeEngine[Any]:
        """How columns of ``kind`` are declared."""

    def bind(self, kind: FeatureType, value: Any) -> sa.ColumnElement[Any]:
        """A bound value that compares exactly with a column of ``kind``."""

    def within(
        self, event: sa.ColumnElement[Any], at: sa.ColumnElement[Any], ttl: dt.timedelta
    ) -> sa.ColumnElement[bool]:
        """Whether ``event >= at - ttl``, exact to the microsecond."""

    def read(self, kind: FeatureType, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """A column of ``kind`` as it is selected for :meth:`decode` and :meth:`arrow`."""

    def decode(self, kind: FeatureType, value: Any) -> Any:
        """A driver's value (not null) as the Python value of ``kind``."""

    def arrow(self, kind: FeatureType, values: Sequence[Any]) -> pa.Array:
        """A column of driver's values, nulls among them, as an Arrow array of ``kind``."""

    def join_latest(
        self, left: sa.FromClause, history: sa.Table, match: Match
    ) -> tuple[sa.FromClause, sa.FromClause]:
        """``left`` joined with the newest row of ``history`` that meets ``match``, or nulls.

        Returns the join and the element whose columns are the matched row's.
        """

    def stage_online(
        self, session: Session, online: sa.Table, keys: Mapping[str, FeatureType], types: Types
    ) -> Stage:
        """A way for a load's newest rows (columns as in ``types``) into an online table."""

    def keys_arrived(
        self, history: sa.Table, keys: Mapping[str, FeatureType], rows: pa.Table
    ) -> sa.Select[tuple[Any, ...]]:
        """The distinct keys of rows, few of them, that were just written to history."""

    async def find_online(
        self,
        driver: Any,
        lookups: Lookups,
        keys: Sequence[Sequence[Any]],
    ) -> Found:
        """Look up online rows for rows of keys, all as of one moment, in one round trip.

        A caller that is cancelled stops its statement first.
        """

    async def push(
        self,
        driver: Any,
        plan: PushPlan,
        callers: Sequence[Rows],
        *,
        due: bool,
        begun: bool,
    ) -> Pushed:
        """Write rows of callers in one round trip; see :func:`featurestore.storage.push.push`.

        It is a transaction of its own, or part of the one that has ``begun``.
        """

    def upsert(self, table: sa.Table) -> Any:
        """An INSERT that knows ``on_conflict_do_update`` and ``excluded``."""


def compiled(
    statement: sa.sql.ClauseElement,
    dialect: sa.Dialect,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[str, list[Any]]:
    """A statement as the driver takes it: its text, and its values by position."""
    result: Any = statement.compile(dialect=dialect)
    values = result.construct_params(parameters) or {}
    return str(result), [values[name] for name in getattr(result, "positiontup", None) or ()]
