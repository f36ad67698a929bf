"""Every attempt of a webhook, its replays, and whose deliveries share one bound."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _add_receivers()
    op.add_column(
        "webhook_deliveries",
        sa.Column(
            "attempts_before",
            sa.Integer,
            nullable=False,
            server_default="0",
            comment="attempts until the last replay: the retry table counts from there",
        ),
    )
    op.create_index("ix_webhook_deliveries_created_at", "webhook_deliveries", ["created_at"])
    op.create_table(
        "webhook_attempts",
        sa.Column("delivery_id", sa.Uuid, nullable=False),
        sa.Column(
            "attempt",
            sa.Integer,
            nullable=False,
            autoincrement=False,
            comment="a gap is one whose sender died",
        ),
        sa.Column("attempted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status_code", sa.Integer, comment="null: no answer"),
        sa.Column("error_kind", sa.Text, comment="null after a 2xx"),
        sa.Column("error", sa.Text),
        sa.Column("latency_s", sa.Float, nullable=False),
        sa.Column(
            "response",
            sa.LargeBinary,
            nullable=False,
            comment="the first bytes of the answer's body",
        ),
        sa.PrimaryKeyConstraint("delivery_id", "attempt", name="pk_webhook_attempts"),
        sa.ForeignKeyConstraint(
            ["delivery_id"],
            ["webhook_deliveries.id"],
            name="fk_webhook_attempts_delivery_id",
            ondelete="CASCADE",
        ),
    )


def _add_receivers() -> None:
    """As `workers.delivery.outbox.receiver_of` names them."""
    op.add_column(
        "webhook_deliveries",
        sa.Column("receiver", sa.Text, comment="whose deliveries share one bound at once"),
    )
    op.execute(
        """
        UPDATE webhook_deliveries
           SET receiver = namespace || ' '
                       || coalesce(lower(substring(url FROM '^[^/]*//(?:[^/?#]*@)?([^/?#]*)')),
                                   endpoint_name, '')
        """
    )
    op.alter_column("webhook_deliveries", "receiver", nullable=False)


def downgrade() -> None:
    op.drop_table("webhook_attempts")
    op.drop_index("ix_webhook_deliveries_created_at", "webhook_deliveries")
    op.drop_column("webhook_deliveries", "attempts_before")
    op.drop_column("webhook_deliveries", "receiver")
