"""The ledger tells how many rows a load's file holds: a load in steps is done when all were read.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("featurestore_load", sa.Column("rows_total", sa.BigInteger()))


def downgrade() -> None:
    op.drop_column("featurestore_load", "rows_total")
