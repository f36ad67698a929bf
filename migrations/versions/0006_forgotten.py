"""Whom and what was forgotten; finding and expiring what a job left."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


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


def downgrade() -> None:
    op.drop_index("ix_cached_prompts_source_job", "cached_prompts")
    op.drop_table("forgotten")
