"""The bytes that each scope holds, counted in the transactions that change them.

`scopes.live_bytes` spares eviction a look at millions of rows every few seconds. `cache.index` adds
what it inserts, `cache.removal` subtracts what it deletes, and the sweep holds the count against
the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Engine, text

from cache.database import transaction

NAMESPACES_MAX = 100_000

# Locks and changes in one: a row locked by one part of a statement and changed by another can wait
# for somebody who waits for the lock.
_SUBTRACT = text("UPDATE scopes SET live_bytes = live_bytes - :num_bytes WHERE id = :scope_id")

_BY_NAMESPACE = text("""
    SELECT n.namespace, COALESCE(sum(c.live_bytes), 0) AS num_bytes
      FROM namespaces n
      LEFT JOIN scopes c ON c.namespace = n.namespace
     GROUP BY n.namespace
     ORDER BY n.namespace
     LIMIT :limit
""")

_MISCOUNTED = text("""
    SELECT c.id
      FROM scopes c
      LEFT JOIN (SELECT u.scope_id, sum(u.num_bytes) AS num_bytes
                   FROM state_uses u
                  GROUP BY u.scope_id) held ON held.scope_id = c.id
     WHERE c.live_bytes <> COALESCE(held.num_bytes, 0)
     ORDER BY c.id
     LIMIT :limit
""")

# Who has changed states of the scope, and not yet committed, has the lock or waits for it: what the
# next statement does not see will be counted on top of it.
_LOCK = text("SELECT id FROM scopes WHERE id = :scope_id FOR NO KEY UPDATE")

_RECOUNT = text("""
    UPDATE scopes
       SET live_bytes = (SELECT COALESCE(sum(u.num_bytes), 0)
                           FROM state_uses u
                          WHERE u.scope_id = :scope_id)
     WHERE id = :scope_id
""")


def by_namespace(engine: Engine) -> dict[str, int]:
    """What each namespace holds."""
    with transaction(engine) as connection:
        found = connection.execute(_BY_NAMESPACE, {"limit": NAMESPACES_MAX}).all()
    return {row.namespace: int(row.num_bytes) for row in found}


def subtract(connection: Connection, freed: Mapping[int, int]) -> None:
    """Take bytes off scopes by their ids; stores into these wait until the transaction ends.

    In the order of ids, so that two cannot wait for each other.
    """
    for scope_id, num_bytes in sorted(freed.items()):
        connection.execute(_SUBTRACT, {"scope_id": scope_id, "num_bytes": num_bytes})


def miscounted(engine: Engine, *, limit: int) -> list[int]:
    """Ids of scopes whose count is not that of their states; reads all counters once."""
    with transaction(engine) as connection:
        return list(connection.execute(_MISCOUNTED, {"limit": limit}).scalars())


def recount(engine: Engine, scope_ids: Sequence[int]) -> None:
    """Set the counts right, one scope after the other; stores into it wait meanwhile."""
    for scope_id in scope_ids:
        with transaction(engine) as connection:
            connection.execute(_LOCK, {"scope_id": scope_id})
            connection.execute(_RECOUNT, {"scope_id": scope_id})
