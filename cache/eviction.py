"""Evict the states that save the least, until each namespace is within its capacity.

Run by beat, in bounded steps: victims are chosen in one statement, their rows deleted in batches,
and after that their objects.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine, Row, text

from cache.database import transaction
from cache.errors import ObjectStoreError
from cache.live_bytes import NAMESPACES_MAX, by_namespace
from cache.objects import ObjectStore
from cache.policies import RULES, choose_victims
from cache.removal import (
    Removed,
    batches,
    delete_doomed_batches,
    lock_states,
    remove_states,
)
from cache.settings import CacheSettings

logger = logging.getLogger(__name__)

_IN_PARTS: Final = {"yield_per": 1_000}  # read no more of the worst than are needed

_OVER_CAPACITY = text("""
    SELECT n.namespace, COALESCE(n.capacity_bytes, :capacity_bytes) AS capacity_bytes
      FROM namespaces n
      JOIN scopes c ON c.namespace = n.namespace
     GROUP BY n.namespace
    HAVING sum(c.live_bytes) > COALESCE(n.capacity_bytes, :capacity_bytes)
     ORDER BY n.namespace
     LIMIT :limit
""")

_LIVE_BYTES = text("""
    SELECT COALESCE(sum(live_bytes), 0)
      FROM scopes
     WHERE namespace = :namespace
""")

# Excess and victims are of one snapshot, so that two runs at once choose the same and not twice as
# many. The plan depends on the limit; policies without an index sort in memory.
_CHOOSING = text("""
    SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;
    SET LOCAL plan_cache_mode = force_custom_plan;
    SET LOCAL work_mem = '64MB'
""")

_EXPIRED = text("""
    SELECT s.id
      FROM cached_prompts p
      JOIN cached_states s ON s.prompt_id = p.id
     WHERE p.expires_at <= :now
     ORDER BY p.expires_at, s.id
     LIMIT :limit
""")

_INFLATE = text("""
    UPDATE namespaces
       SET inflation = GREATEST(inflation, :priority)
     WHERE namespace = :namespace
""")

_RECORD = text("""
    INSERT INTO evictions (namespace, hour, num_states, num_bytes)
    VALUES (:namespace, date_trunc('hour', CAST(:now AS timestamptz), 'UTC'),
            :num_states, :num_bytes)
        ON CONFLICT (namespace, hour) DO UPDATE
       SET num_states = evictions.num_states + excluded.num_states,
           num_bytes = evictions.num_bytes + excluded.num_bytes
""")

_REMAINS = text("""
    SELECT (SELECT COALESCE(sum(live_bytes), 0) FROM scopes) AS live_bytes,
           (SELECT count(*) FROM doomed_objects) AS objects_left
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictionReport:
    """What one run did."""

    expired_states: int
    evicted_states: int
    #: Bytes of both.
    evicted_bytes: int
    objects_removed: int
    #: Objects whose rows are gone and which the object store still has, for the next run.
    objects_left: int
    #: Bytes of the states that stay.
    live_bytes: int


class _Victim(NamedTuple):
    id: int
    priority: float


def evict(
    engine: Engine, objects: ObjectStore, settings: CacheSettings, *, now: datetime
) -> EvictionReport:
    """Remove expired states, then the worst of each namespace that is over its capacity.

    At most `cache_evict_max` states; those that somebody else holds are left for the next run. An
    object store that is away keeps its objects, and they stay doomed. Raises DatabaseUnreachable.
    """
    run = _Run(engine=engine, settings=settings, now=now)
    expired = run.remove_expired(settings.cache_evict_max)
    left = settings.cache_evict_max - expired.num_states
    evicted = Removed()
    for namespace, capacity_bytes in run.over_capacity():
        removed = run.evict(namespace, capacity_bytes, left - evicted.num_states)
        run.record(namespace, removed)
        evicted += removed
    objects_removed = _delete_objects(engine, objects, now=now, limit=settings.cache_evict_max)
    with transaction(engine) as connection:
        remains = connection.execute(_REMAINS).one()
    return EvictionReport(
        expired_states=expired.num_states,
        evicted_states=evicted.num_states,
        evicted_bytes=expired.num_bytes + evicted.num_bytes,
        objects_removed=objects_removed,
        objects_left=remains.objects_left,
        live_bytes=int(remains.live_bytes),
    )


def clear(
    engine: Engine,
    objects: ObjectStore,
    settings: CacheSettings,
    *,
    now: datetime,
    namespace: str | None = None,
) -> Removed:
    """Remove all states of a namespace, or of all, with their objects. Raises like `evict`."""
    run = _Run(engine=engine, settings=settings, now=now)
    removed = Removed()
    for each in [namespace] if namespace else by_namespace(engine):
        while (gone := run.evict(each, 0, settings.cache_evict_max)).num_states:
            removed += gone
    _delete_objects(engine, objects, limit=None, now=now)
    return removed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    engine: Engine
    settings: CacheSettings
    now: datetime

    def over_capacity(self) -> list[tuple[str, int]]:
        """Namespaces that hold more than they may, each with its capacity in bytes."""
        wanted = {"capacity_bytes": self.settings.cache_capacity_bytes, "limit": NAMESPACES_MAX}
        with transaction(self.engine) as connection:
            found = connection.execute(_OVER_CAPACITY, wanted).all()
        return [(row.namespace, row.capacity_bytes) for row in found]

    def remove_expired(self, limit: int) -> Removed:
        with transaction(self.engine) as connection:
            expired = connection.execute(_EXPIRED, {"now": self.now, "limit": limit}).scalars()
            victims = [_Victim(state_id, 0.0) for state_id in expired]
        return self._remove(victims, namespace=None)

    def evict(self, namespace: str, capacity_bytes: int, limit: int) -> Removed:
        victims = self._choose(namespace, capacity_bytes, limit)
        inflates = RULES[self.settings.cache_policy].inflates
        removed = self._remove(victims, namespace=namespace if inflates else None)
        if removed.num_states:
            logger.info(
                "states evicted",
                extra={
                    "namespace": namespace,
                    "num_states": removed.num_states,
                    "num_bytes": removed.num_bytes,
                },
            )
        return removed

    def record(self, namespace: str, removed: Removed) -> None:
        """Add what was evicted to the hour's; a crash before this loses the count, nothing else."""
        if removed.num_states:
            row = {
                "namespace": namespace,
                "now": self.now,
                "num_states": removed.num_states,
                "num_bytes": removed.num_bytes,
            }
            with transaction(self.engine) as connection:
                connection.execute(_RECORD, row)

    def _choose(self, namespace: str, capacity_bytes: int, limit: int) -> list[_Victim]:
        """The worst states, each of those before which less than the excess is freed."""
        statement = choose_victims(self.settings.cache_policy)
        wanted = {
            "namespace": namespace,
            "limit": limit,
            "young_since": self.now - timedelta(seconds=self.settings.cache_evict_grace_s),
        }
        with transaction(self.engine) as connection:
            connection.execute(_CHOOSING)
            live_bytes = int(connection.execute(_LIVE_BYTES, {"namespace": namespace}).scalar_one())
            with connection.execute(statement, wanted, execution_options=_IN_PARTS) as worst:
                return _until_freed(worst, live_bytes - capacity_bytes)

    def _remove(self, victims: Sequence[_Victim], *, namespace: str | None) -> Removed:
        """Delete the victims' rows in batches; with a namespace, its inflation follows them."""
        removed = Removed()
        for batch in batches(victims, self.settings.cache_evict_batch):
            with transaction(self.engine) as connection:
                locked = lock_states(connection, [victim.id for victim in batch])
                removed += remove_states(connection, locked, now=self.now)
                if namespace is not None and locked:
                    # Of all that was chosen: what somebody else took meanwhile was no better.
                    reached = {"namespace": namespace, "priority": batch[-1].priority}
                    connection.execute(_INFLATE, reached)
        return removed


def _until_freed(worst: Iterable[Row[Any]], excess_bytes: int) -> list[_Victim]:
    victims, freed = [], 0
    for state in worst:
        if freed >= excess_bytes:
            break
        victims.append(_Victim(state.id, state.priority))
        freed += state.num_bytes
    return victims


def _delete_objects(
    engine: Engine, objects: ObjectStore, *, now: datetime, limit: int | None
) -> int:
    """Delete doomed objects; where the store is away they stay doomed, and the next run goes on."""
    num_deleted = 0
    try:
        for num in delete_doomed_batches(engine, objects, now=now, limit=limit):
            num_deleted += num
    except ObjectStoreError as error:
        logger.warning("doomed objects not deleted", extra={"error": str(error)})
    return num_deleted
