"""The cache's rows (docs/state.md, section 5).

namespaces 1-* scopes 1-* cached_prompts 1-* cached_states 1-1 state_uses
match_predictors: at most one of a scope
evictions: what made room, by namespace and hour
doomed_objects: objects whose rows are gone, until the object store has deleted them too
forgotten: hashes of whom and what was forgotten, until nothing of theirs can be under way
"""

from __future__ import annotations

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
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
_IS_KIND = "IN ('intermediate', 'final')"

namespaces = Table(
    "namespaces",
    metadata,
    Column("namespace", Text, primary_key=True),
    Column("capacity_bytes", BigInteger, comment="null: the setting's"),
    Column(
        "inflation",
        Float(53),
        nullable=False,
        server_default="0",
        comment="L of Greedy-Dual-Size-Frequency: the score of the last state evicted",
    ),
    Column(
        "is_cached",
        Boolean,
        nullable=False,
        server_default=text("true"),
        comment="off: no lookup, no store",
    ),
    Column(
        "shadow_fraction",
        Float(53),
        nullable=False,
        server_default=text("0"),
        comment="of hits, drawn once more without the cache",
    ),
    CheckConstraint("capacity_bytes >= 0", name="capacity_bytes"),
    CheckConstraint("shadow_fraction BETWEEN 0 AND 1", name="shadow_fraction"),
)

calibrations = Table(
    "calibrations",
    metadata,
    Column("version", Text, primary_key=True),
    Column("state_kind", Text, primary_key=True),
    Column("revision", Text, nullable=False, comment="of the weights measured"),
    Column("embedder", Text, nullable=False),
    Column("thresholds", JSONB, nullable=False, comment="[fraction of N, least similarity] rows"),
    Column("measured", JSONB, nullable=False, comment="how"),
    Column("installed_at", _INSTANT, nullable=False, server_default=text("now()")),
    CheckConstraint(f"state_kind {_IS_KIND}", name="state_kind"),
    Index(None, "revision", "embedder", "state_kind"),
)

scopes = Table(
    "scopes",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("fingerprint", Text, nullable=False, unique=True),
    Column("namespace", Text, ForeignKey("namespaces.namespace"), nullable=False),
    Column("spec", JSONB, nullable=False, comment="what the fingerprint is made of"),
    Column("embedder", Text, nullable=False),
    Column("embedding_dimension", Integer, nullable=False),
    Column("num_inference_steps", Integer, nullable=False),
    Column("state_kind", Text, nullable=False, comment="what new entries keep"),
    Column("k_set", ARRAY(Integer), nullable=False),
    Column("thresholds_version", Text, nullable=False),
    Column("seconds_per_step", Float(53), comment="measured; null until then"),
    Column("bytes_per_state", BigInteger, comment="null until one is stored"),
    Column(
        "live_bytes",
        BigInteger,
        nullable=False,
        server_default="0",
        comment="of its states; changes in their transactions",
    ),
    Column("created_at", _INSTANT, nullable=False, server_default=text("now()")),
    CheckConstraint(f"state_kind {_IS_KIND}", name="state_kind"),
    CheckConstraint("seconds_per_step > 0", name="seconds_per_step"),
    CheckConstraint("embedding_dimension BETWEEN 1 AND 4000", name="embedding_dimension"),
    Index("ix_scopes_namespace", "namespace"),
)

cached_prompts = Table(
    "cached_prompts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("scope_id", BigInteger, ForeignKey("scopes.id"), nullable=False),
    Column("owner", Text, nullable=False, comment="the job's user, or '' for an anonymous job"),
    Column(
        "is_shared",
        Boolean,
        nullable=False,
        comment="stored under namespace sharing: others of the namespace may start from it",
    ),
    # Without a dimension: scopes differ in theirs. Index and query cast it.
    Column("embedding", HALFVEC, nullable=False),
    Column("prompt_hash", Text, nullable=False),
    Column("source_job_id", Text),
    Column("created_at", _INSTANT, nullable=False),
    Column("expires_at", _INSTANT, comment="null: until evicted"),
    # The exact search of user sharing, and what a refresh replaces.
    Index("ix_cached_prompts_scope_owner", "scope_id", "owner", "prompt_hash"),
    # The newest of one's own, under namespace sharing.
    Index(
        "ix_cached_prompts_own_newest",
        "scope_id",
        "owner",
        "created_at",
        postgresql_where=text("is_shared AND owner <> ''"),
    ),
    Index("ix_cached_prompts_source_job", "source_job_id"),
    Index(
        "ix_cached_prompts_expiring", "expires_at", postgresql_where=text("expires_at IS NOT NULL")
    ),
)

cached_states = Table(
    "cached_states",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column(
        "prompt_id",
        BigInteger,
        ForeignKey("cached_prompts.id", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("kind", Text, nullable=False),
    Column("k", Integer, nullable=False, comment="steps behind it; N for a final one"),
    Column("num_bytes", BigInteger, nullable=False),
    # In the order of S3 listings, so that the sweep can walk both side by side.
    Column("key", Text(collation="C"), nullable=False, unique=True),
    Column("sha256", Text, nullable=False),
    Column("created_at", _INSTANT, nullable=False),
    UniqueConstraint("prompt_id", "kind", "k"),
    CheckConstraint(f"kind {_IS_KIND}", name="kind"),
    CheckConstraint("k > 0", name="k"),
    CheckConstraint("num_bytes > 0", name="num_bytes"),
)

_COPIED = "copied, never changes"

# Apart from the vector: counting a use beside it would rewrite the vector and its index entries.
# With all that eviction asks for, so that its choice reads this table alone.
state_uses = Table(
    "state_uses",
    metadata,
    Column(
        "state_id",
        BigInteger,
        ForeignKey("cached_states.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("namespace", Text, nullable=False, comment=_COPIED),
    Column("scope_id", BigInteger, nullable=False, comment=_COPIED),
    Column("num_bytes", BigInteger, nullable=False, comment=_COPIED),
    Column("uses", BigInteger, nullable=False, server_default="0"),
    Column("steps_saved", BigInteger, nullable=False, server_default="0"),
    Column(
        "priority",
        Float(53),
        nullable=False,
        comment="of Greedy-Dual-Size-Frequency, when this was stored or last used",
    ),
    Column("last_used_at", _INSTANT, nullable=False, comment="or stored, before its first use"),
    # LCBFU's score (NIRVANA): uses x k for an intermediate state.
    Column("benefit", BigInteger, Computed("steps_saved", persisted=True), nullable=False),
    # The order in which the default policy evicts.
    Index("ix_state_uses_priority", "namespace", "priority", "state_id"),
    # Counters change, nothing else does: room on the page keeps a row's versions together.
    postgresql_with={"fillfactor": "80"},
)

match_predictors = Table(
    "match_predictors",
    metadata,
    Column(
        "scope_id",
        BigInteger,
        ForeignKey("scopes.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("sha256", Text, nullable=False, comment="of weights, and their version"),
    Column("weights", LargeBinary, nullable=False, comment="safetensors"),
    Column("num_prompts", BigInteger, nullable=False, comment="it was fitted on"),
    Column("fitted_at", _INSTANT, nullable=False),
)

doomed_objects = Table(
    "doomed_objects",
    metadata,
    Column("key", Text(collation="C"), primary_key=True),
    Column("doomed_at", _INSTANT, nullable=False),
    Index("ix_doomed_objects_doomed_at", "doomed_at"),
)

forgotten = Table(
    "forgotten",
    metadata,
    Column("subject_hash", LargeBinary, primary_key=True, comment="SHA-256: see cache.forgotten"),
    Column("forgotten_at", _INSTANT, nullable=False),
)

# A row an hour, however many runs: for `nirvana report`.
evictions = Table(
    "evictions",
    metadata,
    Column("namespace", Text, ForeignKey("namespaces.namespace", ondelete="CASCADE")),
    Column("hour", _INSTANT, nullable=False),
    Column("num_states", BigInteger, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    PrimaryKeyConstraint("namespace", "hour"),
)
