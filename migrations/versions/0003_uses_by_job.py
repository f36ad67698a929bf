"""The ageing policy weighs uses alike, so a state's expected steps are not kept any more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_column("state_uses", "steps_per_use")


def downgrade() -> None:
    op.add_column(
        "state_uses",
        sa.Column("steps_per_use", sa.Integer, comment="what the next use should save"),
    )
    op.execute("""
        UPDATE state_uses u
           SET steps_per_use = LEAST(s.k, (SELECT max(k) FROM unnest(c.k_set) AS k))
          FROM cached_states s
          JOIN cached_prompts p ON p.id = s.prompt_id
          JOIN scopes c ON c.id = p.scope_id
         WHERE s.id = u.state_id
    """)
    op.alter_column("state_uses", "steps_per_use", nullable=False)
