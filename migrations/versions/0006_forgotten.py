"""Whom and what was forgotten; finding and expiring what a job left."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_INDEXES = (
    ("ix_jobs_ended", "jobs", "finished_at IS NOT NULL"),
    ("ix_jobs_with_image", "jobs", "status = 'succeeded' AND image_removed_at IS NULL"),
    ("ix_webhook_deliveries_settled", "webhook_deliveries", "finished_at IS NOT NULL"),
)


def upgrade() -> None:
    op.create_table(
        "forgotten",
        sa.Column(
            "subject_hash", sa.LargeBinary, nullable=False, comment="SHA-256: see cache.forgotten"
        ),
        sa.Column("forgotten_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("subject_hash", name="pk_forgotten"),
    )
    op.create_index("ix_cached_prompts_source_job", "cached_prompts", ["source_job_id"])
    op.add_column(
        "jobs",
        sa.Column(
            "image_removed_at",
            sa.DateTime(timezone=True),
            comment="when its retention had passed",
        ),
    )
    for name, table, condition in _INDEXES:
        op.create_index(name, table, ["finished_at"], postgresql_where=sa.text(condition))


def downgrade() -> None:
    for name, table, _ in _INDEXES:
        op.drop_index(name, table)
    op.drop_column("jobs", "image_removed_at")
    op.drop_index("ix_cached_prompts_source_job", "cached_prompts")
    op.drop_table("forgotten")
