"""Find the best state for a prompt, and put new ones in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from sqlalchemy import Connection, TextClause, text

from cache.entry import Hit, PromptRow, Scope, Sharing, StateKind
from cache.policies import priority
from cache.removal import lock_states, remove_states
from cache.selector import ANY_STATE, Allowance, ChoiceRules

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
# at its own k, a final one at the largest k that its similarity allows. Who asks for the same words
# again wants another picture: then no state, of whatever prompt, settles more than k_again (LEAST
# leaves out the null of everybody else).
# OFFSET keeps the planner from joining cached_states as a whole: a lookup reads the states of the
# nearest prompts alone, so that its time does not grow with those of other owners.
_FIND = """
    WITH nearest AS MATERIALIZED (
         {nearest}
    ), usable AS (
         SELECT s.id AS state_id, s.prompt_id, s.kind, start.k, n.distance,
                s.key, s.sha256, s.num_bytes, n.source_job_id, n.owner,
                min(n.distance) OVER (PARTITION BY start.k) AS nearest_distance
           FROM nearest n
          CROSS JOIN (
                SELECT CASE WHEN count(*) > 0 THEN CAST(:k_again AS int) END AS k_max
                  FROM nearest
                 WHERE owner = :owner
                   AND prompt_hash = CAST(:prompt_hash AS text)) again
          CROSS JOIN LATERAL (
                SELECT LEAST(max(allowed.k), again.k_max) AS k_max
                  FROM unnest(CAST(:ks AS int[]), CAST(:floors AS float8[])) AS allowed (k, floor)
                 WHERE 1 - n.distance > allowed.floor
                HAVING count(*) > 0 AND LEAST(max(allowed.k), again.k_max) > 0) selector
          CROSS JOIN LATERAL (
                SELECT *
                  FROM cached_states
                 WHERE prompt_id = n.id
                OFFSET 0) s
          CROSS JOIN LATERAL (
                SELECT CASE s.kind WHEN 'final' THEN selector.k_max ELSE s.k END AS k) start
          WHERE start.k <= selector.k_max
                {is_offered}
    )
    SELECT state_id, prompt_id, kind, k, 1 - distance AS similarity,
           key, sha256, num_bytes, source_job_id, owner
      FROM usable
     ORDER BY k DESC, distance > nearest_distance + :margin,
              hashint8extended(state_id, CAST(:choice AS bigint))
     LIMIT 1
"""

# Of an entry of several states, the uses of all count.
_IS_USED_LESS = """
            AND (SELECT sum(u.uses)
                   FROM cached_states other
                   JOIN state_uses u ON u.state_id = other.id
                  WHERE other.prompt_id = n.id) < :reuse_max
"""

# By the index on (scope, owner), exactly, where the rows are few; by the scope's HNSW index where
# `cache.nearest_index` has built one, whose expression and predicate these are. The planner must
# see the scope's id to prove the predicate: the reader plans each lookup with its values.
_NEAREST = """
         SELECT p.id, p.owner, p.prompt_hash, p.source_job_id,
                p.embedding::halfvec({dimension}) <=> CAST(:embedding AS halfvec({dimension}))
                AS distance
           FROM {rows} p
          WHERE {condition}
            AND (p.expires_at IS NULL OR p.expires_at > :now)
          ORDER BY distance
          LIMIT :neighbours
"""

# Who asks mostly starts from a prompt of their own, and from one of the last: those are compared
# exactly, so that the graph needs fewer candidates for everybody else's. The owner '' is all who
# gave no name. By time and not by id: that order the primary key has too, of everybody's rows.
_OWN_NEWEST = """(
                SELECT *
                  FROM cached_prompts
                 WHERE scope_id = :scope_id AND owner = :owner AND owner <> '' AND is_shared
                 ORDER BY created_at DESC
                 LIMIT :own_newest)"""

_NEAREST_OF_BOTH = """
         SELECT *
           FROM (({within_reach}) UNION ({own})) both_searches
          ORDER BY distance
          LIMIT :neighbours
"""

_WITHIN_REACH = {
    Sharing.USER: "p.scope_id = :scope_id AND p.owner = :owner",
    Sharing.NAMESPACE: "p.scope_id = :scope_id AND p.is_shared",
}


def find(
    connection: Connection,
    scope: Scope,
    embedding: str,
    *,
    owner: str,
    allowances: Sequence[Allowance],
    neighbours: int,
    own_newest: int,
    now: datetime,
    rules: ChoiceRules = ANY_STATE,
    prompt_hash: str | None = None,
    choice: int = 0,
) -> Hit | None:
    """The state that skips the most steps, among the nearest prompts; one statement, read-only.

    `embedding` is from `embedding_text`. Under namespace sharing the `own_newest` of the owner are
    compared exactly, beside a search of all. Among states that skip equally many and are about as
    near (`rules`), the number `choice` decides, as a die would; the same number decides the same.
    """
    wanted = {
        "scope_id": scope.id,
        "owner": owner,
        "embedding": embedding,
        "ks": [allowance.k for allowance in allowances],
        "floors": [allowance.floor for allowance in allowances],
        "neighbours": neighbours,
        "own_newest": own_newest,
        "now": now,
        "prompt_hash": prompt_hash,
        "k_again": rules.k_again(scope.spec.num_inference_steps),
        "margin": rules.margin,
        "reuse_max": rules.reuse_max,
        "choice": choice,
    }
    statement = find_statement(scope, is_capped=rules.reuse_max is not None)
    row = connection.execute(statement, wanted).one_or_none()
    return None if row is None else Hit(**{**row._mapping, "kind": StateKind(row.kind)})


def find_statement(scope: Scope, *, is_capped: bool = False) -> TextClause:
    """The lookup's SQL for the scope's sharing and dimension, with or without a cap on reuse."""
    return _find_statement(scope.sharing, scope.spec.embedding_dimension, is_capped=is_capped)


def nearest_statement(scope: Scope) -> TextClause:
    """The part of the lookup that searches: (id, owner, source_job_id, distance) of the nearest."""
    return text(_nearest(scope.sharing, scope.spec.embedding_dimension))


@lru_cache
def _find_statement(sharing: Sharing, dimension: int, *, is_capped: bool) -> TextClause:
    is_offered = _IS_USED_LESS if is_capped else ""
    nearest = _nearest(sharing, dimension)
    return text(_FIND.format(nearest=nearest, is_offered=is_offered.strip()))


def _nearest(sharing: Sharing, dimension: int) -> str:
    within_reach = _nearest_among("cached_prompts", _WITHIN_REACH[sharing], dimension)
    if sharing is Sharing.USER:
        return within_reach
    own = _nearest_among(_OWN_NEWEST, "true", dimension)
    return _NEAREST_OF_BOTH.format(within_reach=within_reach, own=own).strip()


def _nearest_among(rows: str, condition: str, dimension: int) -> str:
    return _NEAREST.format(rows=rows, condition=condition, dimension=int(dimension)).strip()


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
