"""The registry: projects, entities, views, fields, services, the ledger of loads, quarantine.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.schema import CreateSequence, DropSequence

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Written out, not taken from the library: a revision stays what it was.
_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_UTC = sa.DateTime(timezone=True)


def _described() -> list[sa.Column[str]]:
    return [
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
    ]


def upgrade() -> None:
    _create_arrivals()
    _create_definitions()
    _create_ledger()


def _create_arrivals() -> None:
    counter = op.create_table(
        "featurestore_counter",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_featurestore_counter"),
    )
    op.bulk_insert(counter, [{"name": "arrival", "value": 1}])
    if op.get_context().dialect.supports_sequences:
        op.execute(CreateSequence(sa.Sequence("featurestore_arrival", start=1)))


def _create_definitions() -> None:
    op.create_table(
        "featurestore_project",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_featurestore_project"),
    )
    op.create_table(
        "featurestore_entity",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("join_keys", sa.JSON(), nullable=False),
        *_described(),
        sa.PrimaryKeyConstraint("project", "name", name="pk_featurestore_entity"),
        sa.ForeignKeyConstraint(
            ["project"], ["featurestore_project.name"], name="fk_featurestore_entity_project"
        ),
    )
    op.create_table(
        "featurestore_view",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("entities", sa.JSON(), nullable=False),
        sa.Column("timestamp_field", sa.Text(), nullable=False),
        sa.Column("created_timestamp_field", sa.Text()),
        sa.Column("ttl", sa.JSON()),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("source", sa.JSON()),
        sa.Column("history_table", sa.Text(), nullable=False),
        sa.Column("online_table", sa.Text(), nullable=False),
        *_described(),
        sa.PrimaryKeyConstraint("id", name="pk_featurestore_view"),
        sa.ForeignKeyConstraint(
            ["project"], ["featurestore_project.name"], name="fk_featurestore_view_project"
        ),
        sa.UniqueConstraint("project", "name", name="uq_featurestore_view_project_name"),
        sa.UniqueConstraint("history_table", name="uq_featurestore_view_history_table"),
        sa.UniqueConstraint("online_table", name="uq_featurestore_view_online_table"),
    )
    op.create_table(
        "featurestore_field",
        sa.Column("view_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("view_id", "name", name="pk_featurestore_field"),
        sa.ForeignKeyConstraint(
            ["view_id"], ["featurestore_view.id"], name="fk_featurestore_field_view_id"
        ),
    )
    op.create_table(
        "featurestore_service",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("features", sa.JSON(), nullable=False),
        *_described(),
        sa.PrimaryKeyConstraint("project", "name", name="pk_featurestore_service"),
        sa.ForeignKeyConstraint(
            ["project"], ["featurestore_project.name"], name="fk_featurestore_service_project"
        ),
    )


def _create_ledger() -> None:
    op.create_table(
        "featurestore_load",
        sa.Column("id", _BIG_ID, autoincrement=False, nullable=False),
        sa.Column("view_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("footer_hash", sa.Text()),
        sa.Column("content_hash", sa.Text()),
        sa.Column("first_arrival", sa.BigInteger()),
        sa.Column("last_arrival", sa.BigInteger()),
        sa.Column("rows_read", sa.BigInteger(), nullable=False),
        sa.Column("rows_written", sa.BigInteger(), nullable=False),
        sa.Column("rows_rejected", sa.BigInteger(), nullable=False),
        sa.Column("rows_future", sa.BigInteger(), nullable=False),
        sa.Column("future_until", _UTC),
        sa.Column("started_at", _UTC, nullable=False),
        sa.Column("finished_at", _UTC, nullable=False),
        sa.Column("undone_at", _UTC),
        sa.PrimaryKeyConstraint("id", name="pk_featurestore_load"),
        sa.ForeignKeyConstraint(
            ["view_id"], ["featurestore_view.id"], name="fk_featurestore_load_view_id"
        ),
    )
    op.create_index(
        "ix_featurestore_load_view_id_footer_hash", "featurestore_load", ["view_id", "footer_hash"]
    )
    op.create_table(
        "featurestore_quarantine",
        sa.Column("load_id", _BIG_ID, nullable=False),
        sa.Column("row", _BIG_ID, nullable=False),
        sa.Column("view_id", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("entity", sa.Text()),
        sa.Column("row_values", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("load_id", "row", name="pk_featurestore_quarantine"),
        sa.ForeignKeyConstraint(
            ["load_id"], ["featurestore_load.id"], name="fk_featurestore_quarantine_load_id"
        ),
        sa.ForeignKeyConstraint(
            ["view_id"], ["featurestore_view.id"], name="fk_featurestore_quarantine_view_id"
        ),
    )
    op.create_index(
        "ix_featurestore_quarantine_view_id_entity",
        "featurestore_quarantine",
        ["view_id", "entity"],
    )


def downgrade() -> None:
    for table in ("quarantine", "load", "service", "field", "view", "entity", "project", "counter"):
        op.drop_table(f"featurestore_{table}")
    if op.get_context().dialect.supports_sequences:
        op.execute(DropSequence(sa.Sequence("featurestore_arrival")))
