"""Look up a prompt's best state and fetch its latents. Raises; `cache.approximate` does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import torch
from sqlalchemy import Engine

from cache import codec, index
from cache.database import transaction
from cache.entry import Hit, Miss, MissReason, Scope
from cache.errors import (
    BudgetExceeded,
    CacheError,
    ChecksumMismatch,
    DatabaseUnreachable,
    InvalidEmbedding,
    LatentsInvalid,
    LatentsMismatch,
    ObjectMissing,
    ObjectStoreError,
    ObjectTruncated,
    TooBusy,
)
from cache.objects import ObjectStore
from cache.removal import discard_states
from cache.selector import ChoiceRules

# The first that fits; a type before its base.
_REASONS: tuple[tuple[type[CacheError], MissReason], ...] = (
    (BudgetExceeded, MissReason.BUDGET_EXCEEDED),
    (TooBusy, MissReason.TOO_BUSY),
    (InvalidEmbedding, MissReason.INVALID_EMBEDDING),
    (DatabaseUnreachable, MissReason.DATABASE_UNREACHABLE),
    (ObjectMissing, MissReason.OBJECT_MISSING),
    (ObjectStoreError, MissReason.OBJECT_STORE_UNREACHABLE),
    (ObjectTruncated, MissReason.OBJECT_TRUNCATED),
    (ChecksumMismatch, MissReason.CHECKSUM_MISMATCH),
    (LatentsMismatch, MissReason.LATENTS_MISMATCH),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A usable state and its latents, on the CPU."""

    hit: Hit
    latents: torch.Tensor = field(repr=False)
    lookup_s: float
    fetch_s: float


def miss_reason(error: CacheError) -> MissReason:
    """How an error is counted."""
    fitting = (reason for kind, reason in _REASONS if isinstance(error, kind))
    return next(fitting, MissReason.INTERNAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks, for which words, and the die that decides among equals."""

    owner: str
    #: Tells whether the owner asked for the same words before; None never did.
    prompt_hash: str | None
    choice: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """What a lookup needs: connections that only read, and some that remove what is damaged."""

    reader: Engine
    writer: Engine
    objects: ObjectStore
    neighbours: int
    own_newest: int
    rules: ChoiceRules
    clock: Callable[[], datetime]

    def look_up_and_fetch(self, scope: Scope, embedding: str, asker: Asker) -> Found | Miss:
        """The best state with its latents; raises CacheError where that fails."""
        started = time.monotonic()
        hit = self._look_up(scope, embedding, asker)
        looked_up = time.monotonic()
        if hit is None:
            return Miss(reason=MissReason.NONE_SIMILAR)
        latents = self._fetch(scope, hit)
        fetched = time.monotonic()
        return Found(
            hit=hit, latents=latents, lookup_s=looked_up - started, fetch_s=fetched - looked_up
        )

    def _look_up(self, scope: Scope, embedding: str, asker: Asker) -> Hit | None:
        with transaction(self.reader) as connection:
            return index.find(
                connection,
                scope,
                embedding,
                owner=asker.owner,
                allowances=scope.selector.allowances(scope.spec.num_inference_steps),
                neighbours=self.neighbours,
                own_newest=self.own_newest,
                now=self.clock(),
                rules=self.rules,
                prompt_hash=asker.prompt_hash,
                choice=asker.choice,
            )

    def _fetch(self, scope: Scope, hit: Hit) -> torch.Tensor:
        try:
            return codec.decode(
                self.objects.get(hit.key),
                sha256=hit.sha256,
                num_bytes=hit.num_bytes,
                dtype=scope.spec.latent_dtype,
                shape=scope.spec.latent_shape,
            )
        except (ObjectMissing, LatentsInvalid):
            # Else every later job of this prompt would meet the same damage.
            discard_states(self.writer, [hit.state_id], now=self.clock())
            raise
