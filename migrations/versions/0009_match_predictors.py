"""Match predictors of scopes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "match_predictors",
        sa.Column("scope_id", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("sha256", sa.Text, nullable=False, comment="of weights, and their version"),
        sa.Column("weights", sa.LargeBinary, nullable=False, comment="safetensors"),
        sa.Column("num_prompts", sa.BigInteger, nullable=False, comment="it was fitted on"),
        sa.Column("fitted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("scope_id", name="pk_match_predictors"),
        sa.ForeignKeyConstraint(
            ["scope_id"],
            ["scopes.id"],
            name="fk_match_predictors_scope_id",
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    op.drop_table("match_predictors")
