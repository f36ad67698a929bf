"""What the cache holds and what a lookup answers. No torch: latents are in `cache.approximate`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeAlias

from cache.errors import InvalidEmbedding
from cache.selector import Selector

HALF_MAX = 65_504.0
HALF_MIN = 6.2e-05  # below this half precision is subnormal


class StateKind(StrEnum):
    """What a state's latents are."""

    INTERMEDIATE = "intermediate"  # after k of N steps, as in the paper
    FINAL = "final"  # after all N, to be noised again to any k


class Sharing(StrEnum):
    """Whose states a job may start from; never those of another namespace."""

    USER = "user"
    NAMESPACE = "namespace"


class ThresholdSource(StrEnum):
    """Which thresholds a scope gets."""

    CALIBRATED = "calibrated"  # the newest that were measured for its model, else the paper's
    PAPER = "paper"  # the paper's, whatever was measured


class MissReason(StrEnum):
    """Why a job starts from noise."""

    NONE_SIMILAR = "none_similar"  # nothing usable is cached
    PREDICTED = "predicted"  # the match predictor expected nothing, so nothing was looked for
    TOO_FEW_STEPS = "too_few_steps"  # N is too small to skip any
    DISABLED = "disabled"
    TOO_BUSY = "too_busy"
    BUDGET_EXCEEDED = "budget_exceeded"
    DATABASE_UNREACHABLE = "database_unreachable"
    OBJECT_STORE_UNREACHABLE = "object_store_unreachable"
    OBJECT_MISSING = "object_missing"
    OBJECT_TRUNCATED = "object_truncated"
    CHECKSUM_MISMATCH = "checksum_mismatch"
    LATENTS_MISMATCH = "latents_mismatch"
    INVALID_EMBEDDING = "invalid_embedding"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeSpec:
    """Within what states are interchangeable: two jobs share a scope only if all of it is equal."""

    namespace: str
    model: str
    #: Of the weights: a new one never reuses the old one's states.
    revision: str
    scheduler: str
    #: Fingerprint of the scheduler's configuration.
    scheduler_config: str
    num_inference_steps: int
    height: int
    width: int
    #: As torch names it: "float16".
    latent_dtype: str
    embedder: str
    embedding_dimension: int
    #: Shape of a stored tensor; None leaves it unchecked when it is read back.
    latent_shape: tuple[int, ...] | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all fields: the scope's identity in the database."""
        fields = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(fields.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """A registered scope: its row's id, and how this process uses it."""

    id: int
    spec: ScopeSpec
    sharing: Sharing
    state_kind: StateKind
    #: With the thresholds of the model's newest calibration, if there is one.
    selector: Selector = field(default_factory=Selector)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A usable state, and the step k to start at (for a `final` state: to noise it to)."""

    state_id: int
    prompt_id: int
    kind: StateKind
    k: int
    #: Cosine of the two prompts' embeddings.
    similarity: float
    key: str
    sha256: str
    num_bytes: int
    source_job_id: str | None
    #: Who stored it; `source_job_id` may be told to nobody else.
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """The job starts from noise."""

    reason: MissReason
    #: What it took to find out.
    lookup_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRow:
    """A state whose object is written; k is N for a `final` one."""

    kind: StateKind
    k: int
    key: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """A prompt with its states, as inserted in one transaction."""

    owner: str
    #: halfvec's text form, from `embedding_text`.
    embedding: str
    prompt_hash: str
    source_job_id: str | None
    created_at: datetime
    expires_at: datetime | None
    states: tuple[StateRow, ...]


#: A vector: a sequence of floats, a NumPy array or a tensor of one dimension.
Embedding: TypeAlias = Iterable[Any]


def embedding_text(embedding: Embedding, dimension: int) -> str:
    """Write a vector in pgvector's text form.

    Raises InvalidEmbedding for what cosine distance is not defined on, or halfvec cannot hold.
    """
    # Taking a tensor apart item by item is a hundred times slower.
    vector = embedding.tolist() if hasattr(embedding, "tolist") else embedding
    try:
        values = [float(value) for value in vector]
    except (TypeError, ValueError) as error:
        raise InvalidEmbedding(f"not a vector of numbers: {error}") from error
    if len(values) != dimension:
        raise InvalidEmbedding(f"{len(values)} dimensions where the scope has {dimension}")
    # Written so that NaN fails both.
    if not all(abs(value) <= HALF_MAX for value in values):
        raise InvalidEmbedding("a value is not finite, or too large for half precision")
    if not any(abs(value) >= HALF_MIN for value in values):
        raise InvalidEmbedding("all values are zero in half precision")
    return "[" + ",".join(map(repr, values)) + "]"
