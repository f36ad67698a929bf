"""HNSW indexes by scope, built by beat, in place of one a dimension."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_NEAREST = sa.text("""
    SELECT i.relname
      FROM pg_index x
      JOIN pg_class i ON i.oid = x.indexrelid
     WHERE x.indrelid = to_regclass('cached_prompts')
       AND starts_with(i.relname, 'ix_cached_prompts_nearest_')
""")


def upgrade() -> None:
    _drop_all()


def downgrade() -> None:
    _drop_all()


def _drop_all() -> None:
    """Drop those there are: either version makes its own where they are missing."""
    for name in op.get_bind().execute(_NEAREST).scalars().all():
        op.drop_index(name, "cached_prompts")
