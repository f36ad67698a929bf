"""What the cache holds and what it has saved: `nirvana cache stats`."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine, RowMapping, text

from cache.database import transaction

SCOPES_MAX = 1_000  # the largest are shown

_BY_NAMESPACE = text("""
    SELECT n.namespace,
           COALESCE(n.capacity_bytes, :capacity_bytes) AS capacity_bytes,
           COALESCE(sum(c.live_bytes), 0) AS num_bytes
      FROM namespaces n
      LEFT JOIN scopes c ON c.namespace = n.namespace
     GROUP BY n.namespace
     ORDER BY num_bytes DESC, n.namespace
     LIMIT :limit
""")

_BY_SCOPE = text("""
    SELECT c.id AS scope_id, c.namespace, c.spec ->> 'model' AS model,
           c.num_inference_steps,
           CAST(c.spec ->> 'height' AS int) AS height,
           CAST(c.spec ->> 'width' AS int) AS width,
           c.state_kind, c.thresholds_version, c.seconds_per_step,
           count(DISTINCT p.id) AS num_prompts,
           count(s.id) AS num_states,
           COALESCE(sum(s.num_bytes), 0) AS num_bytes,
           COALESCE(sum(u.uses), 0) AS uses,
           COALESCE(sum(u.steps_saved), 0) AS steps_saved
      FROM scopes c
      LEFT JOIN cached_prompts p ON p.scope_id = c.id
      LEFT JOIN cached_states s ON s.prompt_id = p.id
      LEFT JOIN state_uses u ON u.state_id = s.id
     GROUP BY c.id
     ORDER BY num_bytes DESC, c.id
     LIMIT :limit
""")

_BY_K = text("""
    SELECT s.kind, s.k,
           count(*) AS num_states,
           sum(s.num_bytes) AS num_bytes,
           sum(u.uses) AS uses,
           sum(u.steps_saved) AS steps_saved
      FROM cached_states s
      JOIN state_uses u ON u.state_id = s.id
     GROUP BY s.kind, s.k
     ORDER BY s.kind, s.k
     LIMIT :limit
""")

_TOTALS = text("""
    SELECT (SELECT count(*) FROM cached_prompts) AS num_prompts,
           (SELECT count(*) FROM doomed_objects) AS num_doomed_objects,
           count(*) AS num_states,
           COALESCE(sum(s.num_bytes), 0) AS num_bytes,
           COALESCE(sum(u.uses), 0) AS uses,
           COALESCE(sum(u.steps_saved), 0) AS steps_saved
      FROM cached_states s
      JOIN state_uses u ON u.state_id = s.id
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceStats:
    """A namespace's bytes against its capacity."""

    namespace: str
    capacity_bytes: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeStats:
    """A scope's share."""

    scope_id: int
    namespace: str
    model: str
    num_inference_steps: int
    height: int
    width: int
    state_kind: str
    thresholds_version: str
    seconds_per_step: float | None
    num_prompts: int
    num_states: int
    num_bytes: int
    uses: int
    steps_saved: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """The states of one kind after one step."""

    kind: str
    k: int
    num_states: int
    num_bytes: int
    uses: int
    steps_saved: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """The whole cache; uses and steps saved are those of the states it still holds."""

    num_prompts: int
    num_states: int
    num_bytes: int
    uses: int
    steps_saved: int
    num_doomed_objects: int
    by_namespace: tuple[NamespaceStats, ...]
    by_scope: tuple[ScopeStats, ...]
    by_k: tuple[StepStats, ...]


def cache_stats(engine: Engine, *, capacity_bytes: int) -> CacheStats:
    """Count everything; `capacity_bytes` is the setting's, for namespaces without their own.

    Reads all rows but the vectors: seconds where there are millions. Raises DatabaseUnreachable.
    """
    limit = {"limit": SCOPES_MAX}
    with transaction(engine) as connection:
        namespaces = connection.execute(
            _BY_NAMESPACE, {**limit, "capacity_bytes": capacity_bytes}
        ).mappings()
        scopes = connection.execute(_BY_SCOPE, limit).mappings()
        steps = connection.execute(_BY_K, limit).mappings()
        totals = connection.execute(_TOTALS).mappings().one()
        return CacheStats(
            **_whole(totals),
            by_namespace=tuple(NamespaceStats(**_whole(row)) for row in namespaces),
            by_scope=tuple(ScopeStats(**_whole(row)) for row in scopes),
            by_k=tuple(StepStats(**_whole(row)) for row in steps),
        )


def _whole(row: RowMapping) -> dict[str, Any]:
    """Sums of bigints come as decimals, which JSON does not know."""
    return {
        name: int(value) if isinstance(value, Decimal) else value for name, value in row.items()
    }
