"""Take states out: rows first, their objects by way of `doomed_objects`.

A crash in between leaves a doomed object for the next run, never a row that points at nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from sqlalchemy import Connection, Engine, text

from cache import live_bytes
from cache.database import transaction
from cache.objects import ObjectStore

T = TypeVar("T")

OBJECTS_PER_REQUEST: Final = 100
PARALLEL_REQUESTS: Final = 8

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
    SELECT gone.prompt_id, gone.num_bytes, p.scope_id
      FROM gone
      JOIN cached_prompts p ON p.id = gone.prompt_id
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
    """Delete locked states, and prompts that have none left; their objects become doomed.

    Ends with the scopes' rows locked, which stores wait for: commit soon.
    """
    gone = connection.execute(_DELETE_STATES, {"ids": list(locked_ids), "now": now}).all()
    prompt_ids = list({row.prompt_id for row in gone})
    connection.execute(_DELETE_EMPTY_PROMPTS, {"ids": prompt_ids})
    freed: Counter[int] = Counter()
    for row in gone:
        freed[row.scope_id] += row.num_bytes
    live_bytes.subtract(connection, freed)
    return Removed(num_states=len(gone), num_bytes=freed.total())


def discard_states(engine: Engine, state_ids: Sequence[int], *, now: datetime) -> Removed:
    """Remove states whose objects turned out to be missing or damaged."""
    with transaction(engine) as connection:
        return remove_states(connection, lock_states(connection, state_ids), now=now)


def delete_doomed_objects(
    engine: Engine, objects: ObjectStore, *, now: datetime, limit: int | None = None
) -> int:
    """Delete doomed objects, the oldest first, until none is left, `limit` are gone or some stay.

    Answers how many are gone. Raises ObjectStoreError: what was not deleted stays doomed. Deleting
    twice is harmless, so a crash anywhere costs a repetition.
    """
    return sum(delete_doomed_batches(engine, objects, now=now, limit=limit))


def delete_doomed_batches(
    engine: Engine, objects: ObjectStore, *, now: datetime, limit: int | None = None
) -> Iterator[int]:
    """The same, lazily: yields how many of each batch are gone, for who counts up to an error."""
    num_deleted, batch = 0, OBJECTS_PER_REQUEST * PARALLEL_REQUESTS
    with ThreadPoolExecutor(PARALLEL_REQUESTS, thread_name_prefix="delete") as pool:
        while limit is None or num_deleted < limit:
            wanted = batch if limit is None else min(batch, limit - num_deleted)
            num = _delete_batch(engine, objects, pool, now=now, limit=wanted)
            yield num
            num_deleted += num
            if num < wanted:
                break


def _delete_batch(
    engine: Engine, objects: ObjectStore, pool: ThreadPoolExecutor, *, now: datetime, limit: int
) -> int:
    """One transaction, whose locks keep others from these keys; several requests at a time."""
    with transaction(engine) as connection:
        keys = list(connection.execute(_LOCK_DOOMED, {"limit": limit}).scalars())
        remaining: set[str] = set()
        for refused in pool.map(objects.delete_many, batches(keys, OBJECTS_PER_REQUEST)):
            remaining.update(refused)
        deleted = [key for key in keys if key not in remaining]
        connection.execute(_FORGET_DOOMED, {"keys": deleted})
        connection.execute(_POSTPONE_DOOMED, {"keys": list(remaining), "now": now})
    return len(deleted)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into pieces of `size`; the last may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))
