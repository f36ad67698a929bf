"""A user's newest prompts by an index: under namespace sharing they are compared exactly."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_INDEX = "ix_cached_prompts_own_newest"


def upgrade() -> None:
    op.create_index(
        _INDEX,
        "cached_prompts",
        ["scope_id", "owner", "created_at"],
        postgresql_where=sa.text("is_shared AND owner <> ''"),
    )


def downgrade() -> None:
    op.drop_index(_INDEX, "cached_prompts")
