"""Evict the states that save the least, until each namespace is within its capacity.

Run by beat, in bounded steps: victims are chosen in one statement, their rows deleted in batches,
and after that their objects.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Engine, text

from cache.database import transaction
from cache.errors import ObjectStoreError
from cache.objects import ObjectStore
from cache.policies import RULES, choose_victims
from cache.removal import Removed, delete_doomed_objects, lock_states, remove_states
from cache.settings import CacheSettings

logger = logging.getLogger(__name__)

NAMESPACES_MAX = 100_000

_NAMESPACES = text("""
    SELECT namespace, COALESCE(capacity_bytes, :capacity_bytes) AS capacity_bytes
      FROM namespaces
     ORDER BY namespace
     LIMIT :limit
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
       SET inflation = GREATEST(inflation, :score)
     WHERE namespace = :namespace
""")

_REMAINS = text("""
    SELECT (SELECT COALESCE(sum(num_bytes), 0) FROM cached_states) AS live_bytes,
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
    score: float


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
    for namespace, capacity_bytes in run.namespaces():
        evicted += run.evict(namespace, capacity_bytes, left - evicted.num_states)
    objects_removed = _delete_objects(engine, objects, settings, now=now)
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
    for each, _ in run.namespaces():
        while (
            namespace in (None, each)
            and (gone := run.evict(each, 0, settings.cache_evict_max)).num_states
        ):
            removed += gone
    _delete_objects(engine, objects, settings, now=now)
    return removed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    engine: Engine
    settings: CacheSettings
    now: datetime

    def namespaces(self) -> list[tuple[str, int]]:
        """Each with its capacity in bytes."""
        wanted = {"capacity_bytes": self.settings.cache_capacity_bytes, "limit": NAMESPACES_MAX}
        with transaction(self.engine) as connection:
            found = connection.execute(_NAMESPACES, wanted).all()
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

    def _choose(self, namespace: str, capacity_bytes: int, limit: int) -> list[_Victim]:
        wanted = {
            "namespace": namespace,
            "capacity_bytes": capacity_bytes,
            "limit": limit,
            "young_since": self.now - timedelta(seconds=self.settings.cache_evict_grace_s),
        }
        with transaction(self.engine) as connection:
            found = connection.execute(choose_victims(self.settings.cache_policy), wanted).all()
        return [_Victim(row.id, row.score) for row in found]

    def _remove(self, victims: Sequence[_Victim], *, namespace: str | None) -> Removed:
        """Delete the victims' rows in batches; with a namespace, its inflation follows them."""
        removed = Removed()
        for batch in _batches(victims, self.settings.cache_evict_batch):
            with transaction(self.engine) as connection:
                locked = lock_states(connection, [victim.id for victim in batch])
                removed += remove_states(connection, locked, now=self.now)
                if namespace is not None and locked:
                    # Of all that was chosen: what somebody else took meanwhile was no better.
                    score = {"namespace": namespace, "score": batch[-1].score}
                    connection.execute(_INFLATE, score)
        return removed


def _delete_objects(
    engine: Engine, objects: ObjectStore, settings: CacheSettings, *, now: datetime
) -> int:
    """Delete doomed objects in batches until none are left, or the store refuses some."""
    deleted, batch = 0, settings.cache_evict_batch
    for _ in range(0, settings.cache_evict_max, batch):
        try:
            num = delete_doomed_objects(engine, objects, now=now, limit=batch)
        except ObjectStoreError as error:
            logger.warning("doomed objects not deleted", extra={"error": str(error)})
            break
        deleted += num
        if num < batch:
            break
    return deleted


def _batches(victims: Sequence[_Victim], size: int) -> Iterator[Sequence[_Victim]]:
    return (victims[start : start + size] for start in range(0, len(victims), size))
