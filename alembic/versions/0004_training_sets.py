"""Training sets: which transaction wrote a load, what was taken out since, copies of history.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_PARTIAL = "ix_featurestore_load_partial"


def _transaction_id() -> sa.sql.elements.TextClause:
    """What a row is written by; SQLite has one writer, and no numbers of transactions."""
    if op.get_context().dialect.name == "postgresql":
        return sa.text("(pg_current_xact_id())::text::bigint")
    return sa.text("NULL")


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        # In two steps: the default of a new column would be put into each row that is there.
        op.add_column("featurestore_load", sa.Column("transaction_id", sa.BigInteger()))
        op.alter_column("featurestore_load", "transaction_id", server_default=_transaction_id())
    else:
        column = sa.Column("transaction_id", sa.BigInteger(), server_default=_transaction_id())
        op.add_column("featurestore_load", column)
    partial = sa.text("rows_read < rows_total AND undone_at IS NULL")
    op.create_index(
        _PARTIAL, "featurestore_load", ["id"], postgresql_where=partial, sqlite_where=partial
    )
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "featurestore_removal",
        sa.Column("id", big, autoincrement=False, nullable=False),
        sa.Column("view_id", sa.Integer(), nullable=False),
        sa.Column("load_id", sa.BigInteger()),
        sa.Column("field", sa.Text()),
        sa.Column("arrivals", sa.JSON(), nullable=False),
        sa.Column("rows_removed", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("transaction_id", sa.BigInteger(), server_default=_transaction_id()),
        sa.PrimaryKeyConstraint("id", name="pk_featurestore_removal"),
    )
    op.create_index("ix_featurestore_removal_view_id", "featurestore_removal", ["view_id"])
    op.create_table(
        "featurestore_export",
        sa.Column("view_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("mark", sa.Text(), nullable=False),
        sa.Column("exported_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("view_id", "path", name="pk_featurestore_export"),
    )


def downgrade() -> None:
    op.drop_table("featurestore_export")
    op.drop_table("featurestore_removal")
    op.drop_index(_PARTIAL, table_name="featurestore_load")
    op.drop_column("featurestore_load", "transaction_id")
