"""The rows that workers own: jobs, endpoints, webhook deliveries (docs/state.md)."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_INSTANT = DateTime(timezone=True)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("namespace", Text, nullable=False),
    Column("owner", Text, nullable=False, comment="the job's user, or '' for an anonymous job"),
    Column("model", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("job", JSONB, nullable=False, comment="the wire form"),
    Column("payload_hash", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("attempt", Integer, nullable=False, comment="fencing token: writes carry it"),
    Column("worker", Text),
    Column("lease_expires_at", _INSTANT),
    Column("cancel_requested_at", _INSTANT),
    Column("submitted_at", _INSTANT, nullable=False),
    Column("claimed_at", _INSTANT),
    Column("finished_at", _INSTANT),
    Column("deadline_at", _INSTANT),
    Column("result", JSONB),
    Column("steps_asked", Integer),
    Column("steps_run", Integer),
    Column("announced_at", _INSTANT, comment="when the trace was told of the end"),
    Column("image_removed_at", _INSTANT, comment="when its retention had passed"),
    CheckConstraint(
        "status IN ('submitted', 'running', 'succeeded', 'failed', 'cancelled')", name="status"
    ),
    CheckConstraint(
        "(status = 'running') = (lease_expires_at IS NOT NULL)", name="only_running_jobs_are_leased"
    ),
    CheckConstraint(
        "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
        name="only_ended_jobs_have_finished",
    ),
    Index("ix_jobs_lapsing_lease", "lease_expires_at", postgresql_where=text("status = 'running'")),
    Index("ix_jobs_given_back", "claimed_at", postgresql_where=text("status = 'submitted'")),
    Index(
        "ix_jobs_unannounced",
        "finished_at",
        postgresql_where=text("finished_at IS NOT NULL AND announced_at IS NULL"),
    ),
    Index("ix_jobs_namespace_owner", "namespace", "owner"),
    Index("ix_jobs_ended", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    Index(
        "ix_jobs_with_image",
        "finished_at",
        postgresql_where=text("status = 'succeeded' AND image_removed_at IS NULL"),
    ),
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("namespace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("url", Text, comment="null: the row only names secrets for urls given by jobs"),
    Column("secrets", ARRAY(Text), nullable=False, comment="one, or two while one is rotated out"),
    Column("disabled_at", _INSTANT),
    Column("disabled_reason", Text),
    Column("created_at", _INSTANT, nullable=False, server_default=text("now()")),
    UniqueConstraint("namespace", "name"),
    CheckConstraint("cardinality(secrets) BETWEEN 1 AND 2", name="one_or_two_secrets"),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", Uuid, primary_key=True, comment="the webhook-id, the same on every attempt"),
    Column("job_id", Uuid, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("event", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("endpoint_name", Text, comment="where url and secrets are read at each attempt"),
    Column("url", Text, comment="given by the job itself; then endpoint_name names its secrets"),
    Column("receiver", Text, nullable=False, comment="whose deliveries share one bound at once"),
    Column("body", LargeBinary, nullable=False, comment="the exact bytes that are signed and sent"),
    Column("status", Text, nullable=False, server_default="pending"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column(
        "attempts_before",
        Integer,
        nullable=False,
        server_default="0",
        comment="attempts until the last replay: the retry table counts from there",
    ),
    Column("next_attempt_at", _INSTANT, nullable=False, server_default=text("now()")),
    Column("last_attempt_at", _INSTANT),
    Column("last_status_code", Integer),
    Column("last_error", Text),
    Column("last_latency_s", Float),
    Column("created_at", _INSTANT, nullable=False, server_default=text("now()")),
    Column("finished_at", _INSTANT),
    UniqueConstraint("job_id", "event"),
    CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="status"),
    Index(
        "ix_webhook_deliveries_due", "next_attempt_at", postgresql_where=text("status = 'pending'")
    ),
    Index("ix_webhook_deliveries_created_at", "created_at"),
    Index(
        "ix_webhook_deliveries_settled",
        "finished_at",
        postgresql_where=text("finished_at IS NOT NULL"),
    ),
)

webhook_attempts = Table(
    "webhook_attempts",
    metadata,
    Column(
        "delivery_id",
        Uuid,
        ForeignKey("webhook_deliveries.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("attempt", Integer, primary_key=True, comment="a gap is one whose sender died"),
    Column("attempted_at", _INSTANT, nullable=False),
    Column("status_code", Integer, comment="null: no answer"),
    Column("error_kind", Text, comment="null after a 2xx"),
    Column("error", Text),
    Column("latency_s", Float, nullable=False),
    Column("response", LargeBinary, nullable=False, comment="the first bytes of the answer's body"),
)

shadow_runs = Table(
    "shadow_runs",
    metadata,
    Column("job_id", Uuid, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("namespace", Text, nullable=False),
    Column("scope", Text, nullable=False, comment="fingerprint"),
    Column("k", Integer, nullable=False),
    Column("similarity", Float(53), nullable=False),
    Column("image_key", Text, nullable=False, comment="the hit's, as delivered"),
    Column("uncached_image_key", Text, nullable=False, comment="from noise, same seed"),
    Column("scores", JSONB, comment="by measure: [hit, uncached]; null until the report"),
    Column("drawn_at", _INSTANT, nullable=False),
    Index("ix_shadow_runs_drawn_at", "drawn_at"),
)
