"""What was evicted, by the hour."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "evictions",
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("num_states", sa.BigInteger, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("namespace", "hour", name="pk_evictions"),
        sa.ForeignKeyConstraint(
            ["namespace"],
            ["namespaces.namespace"],
            name="fk_evictions_namespace",
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    op.drop_table("evictions")
