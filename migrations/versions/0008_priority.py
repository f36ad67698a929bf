"""What eviction asks for: its order, indexed, and the bytes that each scope holds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_COPIED = ("namespace", "scope_id", "num_bytes", "priority")

_PRIORITISE = """
    UPDATE state_uses u
       SET namespace = c.namespace,
           scope_id = c.id,
           num_bytes = s.num_bytes,
           priority = u.inflation
                    + (u.uses + 1) * c.num_inference_steps * COALESCE(c.seconds_per_step, 1)
                    / s.num_bytes
      FROM cached_states s
      JOIN cached_prompts p ON p.id = s.prompt_id
      JOIN scopes c ON c.id = p.scope_id
     WHERE s.id = u.state_id
"""

_COUNT_BYTES = """
    UPDATE scopes c
       SET live_bytes = held.num_bytes
      FROM (SELECT scope_id, sum(num_bytes) AS num_bytes FROM state_uses GROUP BY scope_id) held
     WHERE c.id = held.scope_id
"""

_TAKE_BACK = """
    UPDATE state_uses u
       SET inflation = GREATEST(0, u.priority
                     - (u.uses + 1) * c.num_inference_steps * COALESCE(c.seconds_per_step, 1)
                     / u.num_bytes)
      FROM scopes c
     WHERE c.id = u.scope_id
"""


def upgrade() -> None:
    copied = "copied, never changes"
    op.add_column("state_uses", sa.Column("namespace", sa.Text, comment=copied))
    op.add_column("state_uses", sa.Column("scope_id", sa.BigInteger, comment=copied))
    op.add_column("state_uses", sa.Column("num_bytes", sa.BigInteger, comment=copied))
    op.add_column(
        "state_uses",
        sa.Column(
            "priority",
            sa.Float(53),
            comment="of Greedy-Dual-Size-Frequency, when this was stored or last used",
        ),
    )
    op.execute(_PRIORITISE)
    for name in _COPIED:
        op.alter_column("state_uses", name, nullable=False)
    op.drop_column("state_uses", "inflation")
    op.create_index("ix_state_uses_priority", "state_uses", ["namespace", "priority", "state_id"])
    op.add_column(
        "scopes",
        sa.Column(
            "live_bytes",
            sa.BigInteger,
            nullable=False,
            server_default="0",
            comment="of its states; changes in their transactions",
        ),
    )
    op.execute(_COUNT_BYTES)


def downgrade() -> None:
    op.drop_column("scopes", "live_bytes")
    op.add_column(
        "state_uses",
        sa.Column(
            "inflation",
            sa.Float(53),
            comment="the namespace's inflation when this was stored or last used",
        ),
    )
    op.execute(_TAKE_BACK)
    op.alter_column("state_uses", "inflation", nullable=False)
    op.drop_index("ix_state_uses_priority", "state_uses")
    for name in reversed(_COPIED):
        op.drop_column("state_uses", name)
