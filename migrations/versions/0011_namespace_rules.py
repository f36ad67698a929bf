"""A namespace's off switch and share of shadowed hits; what those showed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "namespaces",
        sa.Column(
            "is_cached",
            sa.Boolean,
            nullable=False,
            server_default=sa.text("true"),
            comment="off: no lookup, no store",
        ),
    )
    op.add_column(
        "namespaces",
        sa.Column(
            "shadow_fraction",
            sa.Float(53),
            nullable=False,
            server_default=sa.text("0"),
            comment="of hits, drawn once more without the cache",
        ),
    )
    op.create_check_constraint(
        "ck_namespaces_shadow_fraction", "namespaces", "shadow_fraction BETWEEN 0 AND 1"
    )
    op.create_table(
        "shadow_runs",
        sa.Column("job_id", sa.Uuid, nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("scope", sa.Text, nullable=False, comment="fingerprint"),
        sa.Column("k", sa.Integer, nullable=False),
        sa.Column("similarity", sa.Float(53), nullable=False),
        sa.Column("image_key", sa.Text, nullable=False, comment="the hit's, as delivered"),
        sa.Column("uncached_image_key", sa.Text, nullable=False, comment="from noise, same seed"),
        sa.Column("scores", JSONB, comment="by measure: [hit, uncached]; null until the report"),
        sa.Column("drawn_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_shadow_runs"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_shadow_runs_job_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_shadow_runs_drawn_at", "shadow_runs", ["drawn_at"])


def downgrade() -> None:
    op.drop_table("shadow_runs")
    op.drop_constraint("ck_namespaces_shadow_fraction", "namespaces")
    op.drop_column("namespaces", "shadow_fraction")
    op.drop_column("namespaces", "is_cached")
