"""Find the best state for a prompt, and put new ones in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from sqlalchemy import Connection, TextClause, text

from cache.entry import Hit, PromptRow, Scope, Sharing, StateKind
from cache.policies import priority
from cache.removal import lock_states, remove_states
from cache.selector import Allowance

_INSERT_PROMPT = text("""
    INSERT INTO cached_prompts (scope_id, owner, is_shared, embedding, prompt_hash,
                                source_job_id, created_at, expires_at)
    VALUES (:scope_id, :owner, :is_shared, CAST(:embedding AS halfvec), :prompt_hash,
            :source_job_id, :created_at, :expires_at)
    RETURNING id
""")

_INSERT_STATES = """
    WITH stored AS (
         INSERT INTO cached_states (prompt_id, kind, k, num_bytes, key, sha256, created_at)
         SELECT :prompt_id, kind, k, num_bytes, key, sha256, :created_at
           FROM unnest(CAST(:kinds AS text[]), CAST(:ks AS int[]), CAST(:sizes AS bigint[]),
                       CAST(:keys AS text[]), CAST(:hashes AS text[]))
                AS new (kind, k, num_bytes, key, sha256)
      RETURNING id, num_bytes
    ), counted AS (
         UPDATE scopes
            SET bytes_per_state = COALESCE(bytes_per_state, sizes.largest),
                live_bytes = live_bytes + sizes.total
           FROM (SELECT max(num_bytes) AS largest, COALESCE(sum(num_bytes), 0) AS total
                   FROM stored) sizes
          WHERE id = :scope_id
    )
    INSERT INTO state_uses (state_id, namespace, scope_id, num_bytes, priority, last_used_at)
    SELECT stored.id, c.namespace, c.id, stored.num_bytes,
           {priority}, :created_at
      FROM stored
     CROSS JOIN scopes c
      JOIN namespaces n ON n.namespace = c.namespace
     WHERE c.id = :scope_id
"""
_PRIORITY = priority(uses="0", num_bytes="stored.num_bytes")
_INSERT_PRIORITISED_STATES = text(_INSERT_STATES.format(priority=_PRIORITY))

_STATES_OF_PROMPT = text("""
    SELECT s.id
      FROM cached_states s
      JOIN cached_prompts p ON p.id = s.prompt_id
     WHERE p.scope_id = :scope_id
       AND p.owner = :owner
       AND p.prompt_hash = :prompt_hash
     ORDER BY s.id
     LIMIT 1000
""")

# Among the nearest prompts, the state that lets the job skip the most steps: an intermediate one
# at its own k, a final one at the largest k that its similarity allows.
_FIND = """
    WITH nearest AS MATERIALIZED (
         {nearest}
    )
    SELECT s.id AS state_id, s.prompt_id, s.kind, usable.k, 1 - n.distance AS similarity,
           s.key, s.sha256, s.num_bytes, n.source_job_id, n.owner
      FROM nearest n
     CROSS JOIN LATERAL (
           SELECT max(allowed.k) AS k_max
             FROM unnest(CAST(:ks AS int[]), CAST(:floors AS float8[])) AS allowed (k, floor)
            WHERE 1 - n.distance > allowed.floor) selector
      JOIN cached_states s ON s.prompt_id = n.id
     CROSS JOIN LATERAL (
           SELECT CASE s.kind WHEN 'final' THEN selector.k_max ELSE s.k END AS k) usable
     WHERE usable.k <= selector.k_max
     ORDER BY usable.k DESC, n.distance, s.id DESC
     LIMIT 1
"""

# By the index on (scope, owner), exactly, where the rows are few; by the scope's HNSW index where
# `cache.nearest_index` has built one, whose expression and predicate these are. The planner must
# see the scope's id to prove the predicate: the reader plans each lookup with its values.
_NEAREST = """
         SELECT p.id, p.owner, p.source_job_id,
                p.embedding::halfvec({dimension}) <=> CAST(:embedding AS halfvec({dimension}))
                AS distance
           FROM cached_prompts p
          WHERE p.scope_id = :scope_id
            AND {is_within_reach}
            AND (p.expires_at IS NULL OR p.expires_at > :now)
          ORDER BY distance
          LIMIT :neighbours
"""

_WITHIN_REACH = {Sharing.USER: "p.owner = :owner", Sharing.NAMESPACE: "p.is_shared"}


def find(
    connection: Connection,
    scope: Scope,
    embedding: str,
    *,
    owner: str,
    allowances: Sequence[Allowance],
    neighbours: int,
    now: datetime,
) -> Hit | None:
    """The state that skips the most steps, among the nearest prompts; one statement, read-only.

    `embedding` is from `embedding_text`. Ties go to the nearer prompt, then to the newer state.
    """
    wanted = {
        "scope_id": scope.id,
        "owner": owner,
        "embedding": embedding,
        "ks": [allowance.k for allowance in allowances],
        "floors": [allowance.floor for allowance in allowances],
        "neighbours": neighbours,
        "now": now,
    }
    row = connection.execute(find_statement(scope), wanted).one_or_none()
    return None if row is None else Hit(**{**row._mapping, "kind": StateKind(row.kind)})


def find_statement(scope: Scope) -> TextClause:
    """The lookup's SQL for the scope's sharing and dimension."""
    return _find_statement(scope.sharing, scope.spec.embedding_dimension)


def nearest_statement(scope: Scope) -> TextClause:
    """The part of the lookup that searches: (id, owner, source_job_id, distance) of the nearest."""
    return text(_nearest(scope.sharing, scope.spec.embedding_dimension))


@lru_cache
def _find_statement(sharing: Sharing, dimension: int) -> TextClause:
    return text(_FIND.format(nearest=_nearest(sharing, dimension)))


def _nearest(sharing: Sharing, dimension: int) -> str:
    reach = _WITHIN_REACH[sharing]
    return _NEAREST.format(dimension=int(dimension), is_within_reach=reach).strip()


def insert(connection: Connection, scope: Scope, prompt: PromptRow) -> int:
    """Insert a prompt with its states, whose objects must exist; answers the prompt's id."""
    row = {
        "scope_id": scope.id,
        "owner": prompt.owner,
        "is_shared": scope.sharing is Sharing.NAMESPACE,
        "embedding": prompt.embedding,
        "prompt_hash": prompt.prompt_hash,
        "source_job_id": prompt.source_job_id,
        "created_at": prompt.created_at,
        "expires_at": prompt.expires_at,
    }
    prompt_id: int = connection.execute(_INSERT_PROMPT, row).scalar_one()
    states = {
        "scope_id": scope.id,
        "prompt_id": prompt_id,
        "created_at": prompt.created_at,
        "kinds": [state.kind.value for state in prompt.states],
        "ks": [state.k for state in prompt.states],
        "sizes": [state.num_bytes for state in prompt.states],
        "keys": [state.key for state in prompt.states],
        "hashes": [state.sha256 for state in prompt.states],
    }
    connection.execute(_INSERT_PRIORITISED_STATES, states)
    return prompt_id


def replace(connection: Connection, scope: Scope, prompt: PromptRow) -> int:
    """Insert a prompt in place of what its owner has cached for the same text (`refresh`)."""
    same = {"scope_id": scope.id, "owner": prompt.owner, "prompt_hash": prompt.prompt_hash}
    old_ids = list(connection.execute(_STATES_OF_PROMPT, same).scalars())
    remove_states(connection, lock_states(connection, old_ids), now=prompt.created_at)
    return insert(connection, scope, prompt)
