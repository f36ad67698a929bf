"""What a namespace has set for itself: whether it caches, how much, and what share is shadowed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from cache.database import transaction
from cache.errors import DatabaseUnreachable

REFRESH_S = 2.0

_READ = text("""
    SELECT is_cached, capacity_bytes, shadow_fraction
      FROM namespaces
     WHERE namespace = :namespace
""")

_CHANGE = text("""
    INSERT INTO namespaces (namespace, is_cached, capacity_bytes, shadow_fraction)
    VALUES (:namespace, COALESCE(:is_cached, true), :capacity_bytes, COALESCE(:shadow_fraction, 0))
        ON CONFLICT (namespace) DO UPDATE
       SET is_cached = COALESCE(:is_cached, namespaces.is_cached),
           capacity_bytes = COALESCE(:capacity_bytes, namespaces.capacity_bytes),
           shadow_fraction = COALESCE(:shadow_fraction, namespaces.shadow_fraction)
    RETURNING is_cached, capacity_bytes, shadow_fraction
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceRules:
    """Of one namespace; the defaults are those of one that has set nothing."""

    #: Off: its jobs look nothing up and store nothing. What is cached stays.
    is_cached: bool = True
    #: None: the setting's.
    capacity_bytes: int | None = None
    #: Share of its hits that are drawn once more without the cache.
    shadow_fraction: float = 0.0


def read_rules(connection: Connection, namespace: str) -> NamespaceRules:
    """Read a namespace's row; one without a row has set nothing."""
    row = connection.execute(_READ, {"namespace": namespace}).one_or_none()
    return NamespaceRules() if row is None else NamespaceRules(**row._mapping)


def change_rules(
    connection: Connection,
    namespace: str,
    *,
    is_cached: bool | None = None,
    capacity_bytes: int | None = None,
    shadow_fraction: float | None = None,
) -> NamespaceRules:
    """Change what is given and leave the rest; answers what holds now."""
    changes = {
        "namespace": namespace,
        "is_cached": is_cached,
        "capacity_bytes": capacity_bytes,
        "shadow_fraction": shadow_fraction,
    }
    return NamespaceRules(**connection.execute(_CHANGE, changes).one()._mapping)


class RulesInForce:
    """The rules as this process knows them, at most REFRESH_S old; safe to share."""

    def __init__(self, reader: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader = reader
        self._clock = clock
        self._known: dict[str, tuple[float, NamespaceRules]] = {}
        self._lock = threading.Lock()

    def of(self, namespace: str) -> NamespaceRules:
        """Read again what is too old; raises DatabaseUnreachable or BudgetExceeded."""
        now = self._clock()
        with self._lock:
            read_at, known = self._known.get(namespace, (None, NamespaceRules()))
        if read_at is not None and now - read_at < REFRESH_S:
            return known
        try:
            known = self._read(namespace)
        except DatabaseUnreachable:  # perhaps only this connection: then all were made anew
            known = self._read(namespace)
        with self._lock:
            self._known[namespace] = (now, known)
        return known

    def _read(self, namespace: str) -> NamespaceRules:
        with transaction(self._reader) as connection:
            return read_rules(connection, namespace)

    def last_known(self, namespace: str) -> NamespaceRules:
        """Without asking the database."""
        with self._lock:
            return self._known.get(namespace, (0.0, NamespaceRules()))[1]
