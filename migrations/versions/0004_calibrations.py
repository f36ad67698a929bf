"""Thresholds measured for a model and an embedder."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "calibrations",
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("state_kind", sa.Text, nullable=False),
        sa.Column("revision", sa.Text, nullable=False, comment="of the weights measured"),
        sa.Column("embedder", sa.Text, nullable=False),
        sa.Column(
            "thresholds", JSONB, nullable=False, comment="[fraction of N, least similarity] rows"
        ),
        sa.Column("measured", JSONB, nullable=False, comment="how"),
        sa.Column(
            "installed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("now()"),
        ),
        sa.PrimaryKeyConstraint("version", "state_kind", name="pk_calibrations"),
        sa.CheckConstraint(
            "state_kind IN ('intermediate', 'final')", name="ck_calibrations_state_kind"
        ),
    )
    op.create_index(
        "ix_calibrations_revision_embedder_state_kind",
        "calibrations",
        ["revision", "embedder", "state_kind"],
    )


def downgrade() -> None:
    op.drop_table("calibrations")
