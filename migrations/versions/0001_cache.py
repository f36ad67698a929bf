"""The cache's rows: scopes, prompts, states, their uses, doomed objects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)
NOW = sa.text("now()")


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    _create_scopes()
    _create_cached_prompts()
    _create_cached_states()


def downgrade() -> None:
    for table in (
        "doomed_objects",
        "state_uses",
        "cached_states",
        "cached_prompts",
        "scopes",
        "namespaces",
    ):
        op.drop_table(table)
    # The extension stays: other schemas of the database may use it.


def _create_scopes() -> None:
    op.create_table(
        "namespaces",
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("capacity_bytes", sa.BigInteger, comment="null: the setting's"),
        sa.Column(
            "inflation",
            sa.Float(53),
            nullable=False,
            server_default="0",
            comment="L of Greedy-Dual-Size-Frequency: the score of the last state evicted",
        ),
        sa.PrimaryKeyConstraint("namespace", name="pk_namespaces"),
        sa.CheckConstraint("capacity_bytes >= 0", name="ck_namespaces_capacity_bytes"),
    )
    op.create_table(
        "scopes",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("spec", JSONB, nullable=False, comment="what the fingerprint is made of"),
        sa.Column("embedder", sa.Text, nullable=False),
        sa.Column("embedding_dimension", sa.Integer, nullable=False),
        sa.Column("num_inference_steps", sa.Integer, nullable=False),
        sa.Column("state_kind", sa.Text, nullable=False, comment="what new entries keep"),
        sa.Column("k_set", ARRAY(sa.Integer), nullable=False),
        sa.Column("thresholds_version", sa.Text, nullable=False),
        sa.Column("seconds_per_step", sa.Float(53), comment="measured; null until then"),
        sa.Column("bytes_per_state", sa.BigInteger, comment="null until one is stored"),
        sa.Column("created_at", INSTANT, nullable=False, server_default=NOW),
        sa.PrimaryKeyConstraint("id", name="pk_scopes"),
        sa.UniqueConstraint("fingerprint", name="uq_scopes_fingerprint"),
        sa.ForeignKeyConstraint(
            ["namespace"], ["namespaces.namespace"], name="fk_scopes_namespace"
        ),
        sa.CheckConstraint("state_kind IN ('intermediate', 'final')", name="ck_scopes_state_kind"),
        sa.CheckConstraint("seconds_per_step > 0", name="ck_scopes_seconds_per_step"),
        sa.CheckConstraint(
            "embedding_dimension BETWEEN 1 AND 4000", name="ck_scopes_embedding_dimension"
        ),
    )
    op.create_index("ix_scopes_namespace", "scopes", ["namespace"])


def _create_cached_prompts() -> None:
    op.create_table(
        "cached_prompts",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("scope_id", sa.BigInteger, nullable=False),
        sa.Column(
            "owner", sa.Text, nullable=False, comment="the job's user, or '' for an anonymous job"
        ),
        sa.Column(
            "is_shared",
            sa.Boolean,
            nullable=False,
            comment="stored under namespace sharing: others of the namespace may start from it",
        ),
        sa.Column("embedding", HALFVEC, nullable=False),
        sa.Column("prompt_hash", sa.Text, nullable=False),
        sa.Column("source_job_id", sa.Text),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT, comment="null: until evicted"),
        sa.PrimaryKeyConstraint("id", name="pk_cached_prompts"),
        sa.ForeignKeyConstraint(["scope_id"], ["scopes.id"], name="fk_cached_prompts_scope_id"),
    )
    op.create_index(
        "ix_cached_prompts_scope_owner", "cached_prompts", ["scope_id", "owner", "prompt_hash"]
    )
    op.create_index(
        "ix_cached_prompts_expiring",
        "cached_prompts",
        ["expires_at"],
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )


def _create_cached_states() -> None:
    op.create_table(
        "cached_states",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("prompt_id", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("k", sa.Integer, nullable=False, comment="steps behind it; N for a final one"),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("key", sa.Text(collation="C"), nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_cached_states"),
        sa.ForeignKeyConstraint(
            ["prompt_id"],
            ["cached_prompts.id"],
            name="fk_cached_states_prompt_id",
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("key", name="uq_cached_states_key"),
        sa.UniqueConstraint("prompt_id", "kind", "k", name="uq_cached_states_prompt_id_kind_k"),
        sa.CheckConstraint("kind IN ('intermediate', 'final')", name="ck_cached_states_kind"),
        sa.CheckConstraint("k > 0", name="ck_cached_states_k"),
        sa.CheckConstraint("num_bytes > 0", name="ck_cached_states_num_bytes"),
    )
    op.create_table(
        "state_uses",
        sa.Column("state_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("uses", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("steps_saved", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column(
            "steps_per_use", sa.Integer, nullable=False, comment="what the next use should save"
        ),
        sa.Column(
            "inflation",
            sa.Float(53),
            nullable=False,
            comment="the namespace's inflation when this was stored or last used",
        ),
        sa.Column(
            "last_used_at", INSTANT, nullable=False, comment="or stored, before its first use"
        ),
        # PostgreSQL 18 would make it VIRTUAL, which cannot be indexed.
        sa.Column(
            "benefit", sa.BigInteger, sa.Computed("steps_saved", persisted=True), nullable=False
        ),
        sa.PrimaryKeyConstraint("state_id", name="pk_state_uses"),
        sa.ForeignKeyConstraint(
            ["state_id"], ["cached_states.id"], name="fk_state_uses_state_id", ondelete="CASCADE"
        ),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_table(
        "doomed_objects",
        sa.Column("key", sa.Text(collation="C"), nullable=False),
        sa.Column("doomed_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_doomed_objects"),
    )
    op.create_index("ix_doomed_objects_doomed_at", "doomed_objects", ["doomed_at"])
