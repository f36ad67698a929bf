"""Take states out: rows first, their objects by way of `doomed_objects`.

A crash in between leaves a doomed object for the next run, never a row that points at nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine, text

from cache.database import transaction
from cache.objects import ObjectStore

# Prompt, state and counters together: whoever holds one of the three has the state to itself.
# Rows that are locked are left for the next run, so nobody ever waits for a second lock.
_LOCK_STATES = text("""
    SELECT s.id
      FROM cached_states s
      JOIN cached_prompts p ON p.id = s.prompt_id
      JOIN state_uses u ON u.state_id = s.id
     WHERE s.id = ANY(:ids)
     ORDER BY s.id
     LIMIT :limit
       FOR UPDATE OF p, s, u SKIP LOCKED
""")

_DELETE_STATES = text("""
    WITH gone AS (
         DELETE FROM cached_states
          WHERE id = ANY(:ids)
      RETURNING prompt_id, key, num_bytes
    ), doomed AS (
         INSERT INTO doomed_objects (key, doomed_at)
         SELECT key, :now FROM gone
             ON CONFLICT (key) DO NOTHING
    )
    SELECT prompt_id, num_bytes FROM gone
""")

_DELETE_EMPTY_PROMPTS = text("""
    DELETE FROM cached_prompts p
     WHERE p.id = ANY(:ids)
       AND NOT EXISTS (SELECT FROM cached_states s WHERE s.prompt_id = p.id)
""")

_LOCK_DOOMED = text("""
    SELECT key
      FROM doomed_objects
     ORDER BY doomed_at, key
     LIMIT :limit
       FOR UPDATE SKIP LOCKED
""")

_FORGET_DOOMED = text("DELETE FROM doomed_objects WHERE key = ANY(:keys)")

# To the end of the line, so that one that cannot be deleted does not hold up the rest.
_POSTPONE_DOOMED = text("UPDATE doomed_objects SET doomed_at = :now WHERE key = ANY(:keys)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """Rows deleted, and the bytes of their objects."""

    num_states: int = 0
    num_bytes: int = 0

    def __add__(self, other: Removed) -> Removed:
        return Removed(
            num_states=self.num_states + other.num_states,
            num_bytes=self.num_bytes + other.num_bytes,
        )


def lock_states(connection: Connection, state_ids: Sequence[int]) -> list[int]:
    """Lock those of the states that nobody else has, until the end of the transaction."""
    wanted = {"ids": list(state_ids), "limit": len(state_ids)}
    return list(connection.execute(_LOCK_STATES, wanted).scalars())


def remove_states(connection: Connection, locked_ids: Sequence[int], *, now: datetime) -> Removed:
    """Delete locked states, and prompts that have none left; their objects become doomed."""
    gone = connection.execute(_DELETE_STATES, {"ids": list(locked_ids), "now": now}).all()
    prompt_ids = list({row.prompt_id for row in gone})
    connection.execute(_DELETE_EMPTY_PROMPTS, {"ids": prompt_ids})
    return Removed(num_states=len(gone), num_bytes=sum(row.num_bytes for row in gone))


def discard_states(engine: Engine, state_ids: Sequence[int], *, now: datetime) -> Removed:
    """Remove states whose objects turned out to be missing or damaged."""
    with transaction(engine) as connection:
        return remove_states(connection, lock_states(connection, state_ids), now=now)


def delete_doomed_objects(
    engine: Engine, objects: ObjectStore, *, now: datetime, limit: int
) -> int:
    """Delete doomed objects, the oldest first; answers how many are gone.

    Raises ObjectStoreError; deleting twice is harmless, so a crash anywhere costs a repetition.
    """
    with transaction(engine) as connection:
        keys = list(connection.execute(_LOCK_DOOMED, {"limit": limit}).scalars())
        remaining = objects.delete_many(keys) if keys else {}
        deleted = [key for key in keys if key not in remaining]
        connection.execute(_FORGET_DOOMED, {"keys": deleted})
        connection.execute(_POSTPONE_DOOMED, {"keys": list(remaining), "now": now})
    return len(deleted)
