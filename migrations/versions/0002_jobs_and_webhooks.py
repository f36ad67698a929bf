"""The workers' rows: jobs, endpoints and webhook deliveries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)
NOW = sa.text("now()")


def upgrade() -> None:
    _create_jobs()
    _create_webhooks()


def downgrade() -> None:
    for table in ("webhook_deliveries", "endpoints", "jobs"):
        op.drop_table(table)


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column(
            "owner", sa.Text, nullable=False, comment="the job's user, or '' for an anonymous job"
        ),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("job", JSONB, nullable=False, comment="the wire form"),
        sa.Column("payload_hash", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False, comment="fencing token: writes carry it"),
        sa.Column("worker", sa.Text),
        sa.Column("lease_expires_at", INSTANT),
        sa.Column("cancel_requested_at", INSTANT),
        sa.Column("submitted_at", INSTANT, nullable=False),
        sa.Column("claimed_at", INSTANT),
        sa.Column("finished_at", INSTANT),
        sa.Column("deadline_at", INSTANT),
        sa.Column("result", JSONB),
        sa.Column("steps_asked", sa.Integer),
        sa.Column("steps_run", sa.Integer),
        sa.Column("announced_at", INSTANT, comment="when the trace was told of the end"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.CheckConstraint(
            "status IN ('submitted', 'running', 'succeeded', 'failed', 'cancelled')",
            name="ck_jobs_status",
        ),
        sa.CheckConstraint(
            "(status = 'running') = (lease_expires_at IS NOT NULL)",
            name="ck_jobs_only_running_jobs_are_leased",
        ),
        sa.CheckConstraint(
            "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name="ck_jobs_only_ended_jobs_have_finished",
        ),
    )
    op.create_index(
        "ix_jobs_lapsing_lease",
        "jobs",
        ["lease_expires_at"],
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_index(
        "ix_jobs_given_back",
        "jobs",
        ["claimed_at"],
        postgresql_where=sa.text("status = 'submitted'"),
    )
    op.create_index(
        "ix_jobs_unannounced",
        "jobs",
        ["finished_at"],
        postgresql_where=sa.text("finished_at IS NOT NULL AND announced_at IS NULL"),
    )
    op.create_index("ix_jobs_namespace_owner", "jobs", ["namespace", "owner"])


def _create_webhooks() -> None:
    op.create_table(
        "endpoints",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column(
            "url", sa.Text, comment="null: the row only names secrets for urls given by jobs"
        ),
        sa.Column(
            "secrets",
            ARRAY(sa.Text),
            nullable=False,
            comment="one, or two while one is rotated out",
        ),
        sa.Column("disabled_at", INSTANT),
        sa.Column("disabled_reason", sa.Text),
        sa.Column("created_at", INSTANT, nullable=False, server_default=NOW),
        sa.PrimaryKeyConstraint("id", name="pk_endpoints"),
        sa.UniqueConstraint("namespace", "name", name="uq_endpoints_namespace_name"),
        sa.CheckConstraint(
            "cardinality(secrets) BETWEEN 1 AND 2", name="ck_endpoints_one_or_two_secrets"
        ),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column(
            "id", sa.Uuid, nullable=False, comment="the webhook-id, the same on every attempt"
        ),
        sa.Column("job_id", sa.Uuid, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column(
            "endpoint_name", sa.Text, comment="where url and secrets are read at each attempt"
        ),
        sa.Column(
            "url",
            sa.Text,
            comment="given by the job itself; then endpoint_name names its secrets",
        ),
        sa.Column(
            "body",
            sa.LargeBinary,
            nullable=False,
            comment="the exact bytes that are signed and sent",
        ),
        sa.Column("status", sa.Text, nullable=False, server_default="pending"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_attempt_at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("last_attempt_at", INSTANT),
        sa.Column("last_status_code", sa.Integer),
        sa.Column("last_error", sa.Text),
        sa.Column("last_latency_s", sa.Float),
        sa.Column("created_at", INSTANT, nullable=False, server_default=NOW),
        sa.Column("finished_at", INSTANT),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_webhook_deliveries_job_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("job_id", "event", name="uq_webhook_deliveries_job_id_event"),
        sa.CheckConstraint(
            "status IN ('pending', 'delivered', 'failed')", name="ck_webhook_deliveries_status"
        ),
    )
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["next_attempt_at"],
        postgresql_where=sa.text("status = 'pending'"),
    )
