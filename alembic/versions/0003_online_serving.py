"""Online serving: keys of the HTTP server, views that tell of their writes, loads still due.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_PENDING = "ix_featurestore_load_pending"
_VIEW = "fk_featurestore_load_view_id"
_FOOTERS = "ix_featurestore_load_view_id_footer_hash"


def _can_change_constraints() -> bool:
    """SQLite makes the table anew, from what it looks like: a script cannot know that. There it
    keeps its key, which SQLite does not look at."""
    return not (op.get_context().as_sql and op.get_context().dialect.name == "sqlite")


def upgrade() -> None:
    op.add_column(
        "featurestore_view",
        sa.Column("notify", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    # The server looks at a foreign key once for each row: a fifth of what it does for a push. Views
    # are never taken out of the registry.
    if _can_change_constraints():
        with op.batch_alter_table("featurestore_load") as load:
            load.drop_constraint(_VIEW, type_="foreignkey")
    # A push asks each time whether rows of its view are still to come online: pushes are many.
    due = sa.text("future_until IS NOT NULL AND undone_at IS NULL")
    op.create_index(
        _PENDING, "featurestore_load", ["view_id"], postgresql_where=due, sqlite_where=due
    )
    # Pushes have no footer, and are by far the most: an index that leaves them out costs them none.
    files = sa.text("footer_hash IS NOT NULL")
    op.drop_index(_FOOTERS, table_name="featurestore_load")
    op.create_index(
        _FOOTERS,
        "featurestore_load",
        ["view_id", "footer_hash"],
        postgresql_where=files,
        sqlite_where=files,
    )
    op.create_table(
        "featurestore_api_key",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_featurestore_api_key"),
        sa.UniqueConstraint("project", "name", name="uq_featurestore_api_key_project_name"),
    )


def downgrade() -> None:
    op.drop_table("featurestore_api_key")
    op.drop_index(_FOOTERS, table_name="featurestore_load")
    op.create_index(_FOOTERS, "featurestore_load", ["view_id", "footer_hash"])
    if _can_change_constraints():
        with op.batch_alter_table("featurestore_load") as load:
            load.create_foreign_key(_VIEW, "featurestore_view", ["view_id"], ["id"])
    op.drop_index(_PENDING, table_name="featurestore_load")
    op.drop_column("featurestore_view", "notify")
