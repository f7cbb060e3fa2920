"""The tables: the registry, which Alembic's revisions make, and two for each view.

A view has a *history* table (join keys, event time, created time, arrival, features; one row
per version) and, when it is online, an *online* table (the same columns, one row per key).
System columns begin with ``__``, which no name of a definition may hold.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

from featurestore.types import FeatureType, Int64, Timestamp

if TYPE_CHECKING:
    from featurestore.storage.dialect import Dialect

SCHEMA_REVISION = "0004"
"""The Alembic revision that this code works with; a test holds it equal to the newest."""

VERSION_TABLE = "featurestore_version"

EVENT = "__event_time"
CREATED = "__created_time"
ARRIVAL = "__arrival"
SINGLE = "__single"
"""The key of the one online row of a global view."""

SYSTEM_TYPES: dict[str, FeatureType] = {EVENT: Timestamp, CREATED: Timestamp, ARRIVAL: Int64}

_MAX_IDENTIFIER = 63  # PostgreSQL's NAMEDATALEN - 1


class UtcDateTime(sa.types.TypeDecorator[dt.datetime]):
    """Aware UTC datetimes on both databases: SQLite's come back naive and are given their zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: sa.Dialect) -> Any:
        return value if value is None else value.astimezone(dt.UTC)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> dt.datetime | None:
        if value is None or value.tzinfo is not None:
            return value  # type: ignore[no-any-return]
        return value.replace(tzinfo=dt.UTC)  # type: ignore[no-any-return]


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class _TransactionId(sa.sql.functions.GenericFunction[int]):
    """The transaction that writes a row; null on SQLite, which has one at a time."""

    inherit_cache = True
    name = "transaction_id"


@compiles(_TransactionId, "postgresql")
def _on_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return "(pg_current_xact_id())::text::bigint"


@compiles(_TransactionId, "sqlite")
def _on_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return "NULL"


def _transaction_id() -> sa.Column[Any]:
    return sa.Column("transaction_id", sa.BigInteger, server_default=_TransactionId())


_BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _described() -> list[sa.Column[Any]]:
    return [
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
    ]


counter = sa.Table(
    # SQLite's stand-in for the sequence below: the number of the next block of arrivals.
    "featurestore_counter",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

arrival_sequence = sa.Sequence("featurestore_arrival", start=1, metadata=metadata)

project = sa.Table(
    "featurestore_project",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    # Counts the applies: a process whose copy of the registry is older reads it again.
    sa.Column("revision", sa.BigInteger, nullable=False),
)

entity = sa.Table(
    "featurestore_entity",
    metadata,
    sa.Column("project", sa.ForeignKey(project.c.name), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("join_keys", sa.JSON, nullable=False),
    *_described(),
)

view = sa.Table(
    "featurestore_view",
    metadata,
    sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
    sa.Column("project", sa.ForeignKey(project.c.name), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("entities", sa.JSON, nullable=False),
    sa.Column("timestamp_field", sa.Text, nullable=False),
    sa.Column("created_timestamp_field", sa.Text),
    # Days, seconds, microseconds, as a timedelta has them; null is unlimited.
    sa.Column("ttl", sa.JSON(none_as_null=True)),
    sa.Column("online", sa.Boolean, nullable=False),
    sa.Column("source", sa.JSON(none_as_null=True)),
    sa.Column("history_table", sa.Text, nullable=False, unique=True),
    sa.Column("online_table", sa.Text, nullable=False, unique=True),
    *_described(),
    # Whether writes tell the caches of other processes.
    sa.Column("notify", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.UniqueConstraint("project", "name"),
)

field = sa.Table(
    "featurestore_field",
    metadata,
    sa.Column("view_id", sa.ForeignKey(view.c.id), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),
)

service = sa.Table(
    "featurestore_service",
    metadata,
    sa.Column("project", sa.ForeignKey(project.c.name), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("features", sa.JSON, nullable=False),
    *_described(),
)

load = sa.Table(
    "featurestore_load",
    metadata,
    sa.Column("id", _BigId, primary_key=True, autoincrement=False),
    # Of a view, which are never taken out: a foreign key would be a fifth of a push's work.
    sa.Column("view_id", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    # A footer's hash finds files that may be the same, the content's decides.
    sa.Column("footer_hash", sa.Text),
    sa.Column("content_hash", sa.Text),
    sa.Column("first_arrival", sa.BigInteger),
    sa.Column("last_arrival", sa.BigInteger),
    sa.Column("rows_read", sa.BigInteger, nullable=False),
    sa.Column("rows_written", sa.BigInteger, nullable=False),
    sa.Column("rows_rejected", sa.BigInteger, nullable=False),
    sa.Column("rows_future", sa.BigInteger, nullable=False),
    # The latest event time among rows that were too far ahead to be online, until a
    # materialize has seen it pass.
    sa.Column("future_until", UtcDateTime),
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("finished_at", UtcDateTime, nullable=False),
    sa.Column("undone_at", UtcDateTime),
    # What its file holds; a load in steps is done when all of them were read. Null where the
    # source did not say.
    sa.Column("rows_total", sa.BigInteger),
    # A mark tells by it which loads were still in flight. Null in rows from before revision 0004.
    _transaction_id(),
    # Pushes have no footer, and are by far the most.
    sa.Index(
        None,
        "view_id",
        "footer_hash",
        postgresql_where=sa.text("footer_hash IS NOT NULL"),
        sqlite_where=sa.text("footer_hash IS NOT NULL"),
    ),
)

_due = sa.text("future_until IS NOT NULL AND undone_at IS NULL")
# A push asks each time whether rows of its view are still to come online: pushes are many.
sa.Index("ix_featurestore_load_pending", load.c.view_id, postgresql_where=_due, sqlite_where=_due)

_partial = sa.text("rows_read < rows_total AND undone_at IS NULL")
# A mark asks each time which loads in steps are under way: hardly ever one.
sa.Index(
    "ix_featurestore_load_partial", load.c.id, postgresql_where=_partial, sqlite_where=_partial
)

removal = sa.Table(
    # What undo and erasure have taken out of a view's history, and fields that have lost values.
    # Its number is a block of arrivals, so that it has a place among the loads. Whose rows were
    # erased it does not say.
    "featurestore_removal",
    metadata,
    sa.Column("id", _BigId, primary_key=True, autoincrement=False),
    sa.Column("view_id", sa.Integer, nullable=False, index=True),
    sa.Column("load_id", sa.BigInteger),  # of an undo
    sa.Column("field", sa.Text),  # that was dropped or narrowed
    # Ranges of arrivals, [[first, last], …], both inclusive.
    sa.Column("arrivals", sa.JSON, nullable=False),
    sa.Column("rows_removed", sa.BigInteger, nullable=False),
    sa.Column("removed_at", UtcDateTime, nullable=False),
    _transaction_id(),
)

export = sa.Table(
    # Parquet copies of history, and the mark that each has come to.
    "featurestore_export",
    metadata,
    sa.Column("view_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("path", sa.Text, primary_key=True),
    sa.Column("mark", sa.Text, nullable=False),
    sa.Column("exported_at", UtcDateTime, nullable=False),
)

quarantine = sa.Table(
    "featurestore_quarantine",
    metadata,
    sa.Column("load_id", sa.ForeignKey(load.c.id), primary_key=True),
    sa.Column("row", _BigId, primary_key=True),
    sa.Column("view_id", sa.ForeignKey(view.c.id), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    # The row's keys as canonical JSON, null where they do not fit: erasure goes by it.
    sa.Column("entity", sa.Text),
    sa.Column("row_values", sa.JSON, nullable=False),
    sa.Index(None, "view_id", "entity"),
)


api_key = sa.Table(
    # Keys of the HTTP server. The secret itself is nowhere; a key may also be one of a project
    # that has no definitions yet.
    "featurestore_api_key",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("revoked_at", UtcDateTime),
    sa.UniqueConstraint("project", "name"),
)


def table_names(project: str, view: str) -> tuple[str, str]:
    """The names of a view's history and online tables, cut with a hash where too long."""
    return _fit(f"{project}__{view}__history"), _fit(f"{project}__{view}__online")


def index_name(table: str) -> str:
    """The name of the index on a history table's keys and times."""
    return _fit(f"{table}__keys")


def key_index(history: sa.Table) -> sa.Index:
    """The index on the keys and times of a history table."""
    return next(index for index in history.indexes if index.name == index_name(history.name))


def arrival_index_name(table: str) -> str:
    """The name of the index that finds a load's rows in a history table."""
    return _fit(f"{table}__arrival")


def _fit(name: str) -> str:
    if len(name) <= _MAX_IDENTIFIER:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    return f"{name[: _MAX_IDENTIFIER - 11]}_{digest}"


def history_table(
    name: str,
    keys: Mapping[str, FeatureType],
    features: Mapping[str, FeatureType],
    dialect: Dialect,
) -> sa.Table:
    """The declaration of a view's history table.

    The index on keys and event time serves point-in-time reads (:func:`key_index`; made by the
    first load, after its rows). The arrival, which is SQLite's row number and has an index of its
    own on PostgreSQL, finds a load's rows.
    """
    sqlite = dialect.single_writer
    table = sa.Table(
        name,
        sa.MetaData(),
        # SQLite's BIGINT PRIMARY KEY is no alias of the row number; INTEGER is.
        sa.Column(
            ARRIVAL,
            sa.Integer() if sqlite else sa.BigInteger(),
            primary_key=sqlite,
            nullable=False,
            autoincrement=False,
        ),
        *_key_columns(keys, dialect, primary_key=False),
        *(_system_column(column, dialect) for column in (EVENT, CREATED)),
        *_feature_columns(features, dialect),
    )
    # Names end as no table's does: they share one namespace.
    # Equal event times are rare: PostgreSQL sorts the few, SQLite reads them off the index.
    times = [EVENT, CREATED] if sqlite else [EVENT]
    sa.Index(index_name(name), *(table.c[column] for column in [*keys, *times]))
    if not sqlite:
        # Rows of a load lie together: a range of blocks finds them, and costs a load nothing.
        sa.Index(arrival_index_name(name), table.c[ARRIVAL], postgresql_using="brin")
    return table


def online_table(
    name: str,
    keys: Mapping[str, FeatureType],
    features: Mapping[str, FeatureType],
    dialect: Dialect,
) -> sa.Table:
    """The declaration of a view's online table: one row per key, the newest by the rule."""
    single = (
        [] if keys else [sa.Column(SINGLE, sa.Integer(), primary_key=True, autoincrement=False)]
    )
    return sa.Table(
        name,
        sa.MetaData(),
        *single,
        *_key_columns(keys, dialect, primary_key=True),
        *(_system_column(column, dialect) for column in (EVENT, CREATED, ARRIVAL)),
        *_feature_columns(features, dialect),
        sqlite_with_rowid=False,
    )


def _key_columns(
    keys: Mapping[str, FeatureType], dialect: Dialect, *, primary_key: bool
) -> Iterable[sa.Column[Any]]:
    for name, kind in keys.items():
        yield sa.Column(
            name,
            dialect.column_type(kind),
            primary_key=primary_key,
            nullable=False,
            autoincrement=False,
        )


def _system_column(name: str, dialect: Dialect) -> sa.Column[Any]:
    return sa.Column(name, dialect.column_type(SYSTEM_TYPES[name]), nullable=False)


def _feature_columns(
    features: Mapping[str, FeatureType], dialect: Dialect
) -> Iterable[sa.Column[Any]]:
    for name, kind in features.items():
        yield sa.Column(name, dialect.column_type(kind), nullable=True)


def revision_mark(revision: int) -> str:
    """A comment that makes a statement another one after each apply.

    Prepared statements are kept by their text, and those of tables that have changed since can
    no longer be run inside a transaction.
    """
    return f"/* {revision:d} */"


def newest_first(rows: sa.FromClause) -> list[sa.ColumnElement[Any]]:
    """The order of the rule: greatest event time, then created time, then arrival."""
    return [rows.c[name].desc() for name in (EVENT, CREATED, ARRIVAL)]


def oldest_first(rows: sa.FromClause) -> list[sa.ColumnElement[Any]]:
    """The order of the rule, turned round."""
    return [rows.c[name].asc() for name in (EVENT, CREATED, ARRIVAL)]
