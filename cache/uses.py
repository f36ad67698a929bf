"""Count uses of states in batches, off the job's path."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from cache.database import transaction
from cache.errors import CacheError
from cache.policies import priority

logger = logging.getLogger(__name__)

PENDING_BATCHES_MAX = 10  # kept in memory while the database is away; more are dropped

# Locked in the order of ids, so that two batches cannot wait for each other.
_ADD_USES = """
    WITH used AS (
         SELECT *
           FROM unnest(CAST(:ids AS bigint[]), CAST(:uses AS bigint[]),
                       CAST(:steps AS bigint[]), CAST(:instants AS timestamptz[]))
                AS used (state_id, uses, steps_saved, last_used_at)
    ), locked AS (
         SELECT u.state_id, u.scope_id
           FROM state_uses u
          WHERE u.state_id = ANY(:ids)
          ORDER BY u.state_id
            FOR UPDATE
    )
    UPDATE state_uses u
       SET uses = u.uses + used.uses,
           steps_saved = u.steps_saved + used.steps_saved,
           last_used_at = GREATEST(u.last_used_at, used.last_used_at),
           priority = {priority}
      FROM used
      JOIN locked ON locked.state_id = used.state_id
      JOIN scopes c ON c.id = locked.scope_id
      JOIN namespaces n ON n.namespace = c.namespace
     WHERE u.state_id = used.state_id
"""
_PRIORITY = priority(uses="(u.uses + used.uses)", num_bytes="u.num_bytes")
_ADD_PRIORITISED_USES = text(_ADD_USES.format(priority=_PRIORITY))


@dataclass(frozen=True, slots=True, kw_only=True)
class Uses:
    """What a state was good for since the last batch."""

    uses: int
    steps_saved: int
    last_used_at: datetime

    def __add__(self, other: Uses) -> Uses:
        return Uses(
            uses=self.uses + other.uses,
            steps_saved=self.steps_saved + other.steps_saved,
            last_used_at=max(self.last_used_at, other.last_used_at),
        )


def add_uses(engine: Engine, uses: Mapping[int, Uses]) -> None:
    """Add to the counters by state id, in one statement; states gone meanwhile are passed over."""
    batch = {
        "ids": list(uses),
        "uses": [each.uses for each in uses.values()],
        "steps": [each.steps_saved for each in uses.values()],
        "instants": [each.last_used_at for each in uses.values()],
    }
    with transaction(engine) as connection:
        connection.execute(_ADD_PRIORITISED_USES, batch)


class UseCounter:
    """Uses by state, written when a batch is full, every `flush_s` seconds, and at close."""

    def __init__(self, engine: Engine, *, batch: int, flush_s: float) -> None:
        self._engine = engine
        self._batch = batch
        self._flush_s = flush_s
        self._pending: dict[int, Uses] = {}
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.num_dropped = 0

    def count(self, state_id: int, uses: Uses) -> None:
        """Add uses; writes nothing itself."""
        with self._lock:
            self._add(state_id, uses)
            if len(self._pending) >= self._batch:
                self._due.set()
            # Not earlier: a thread does not survive the fork of a worker.
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(
                    target=self._flush_when_due, name="cache-uses", daemon=True
                )
                self._thread.start()

    def flush(self) -> None:
        """Write what is pending now; keeps it for the next time where the database is away."""
        with self._lock:
            pending, self._pending = self._pending, {}
        if not pending:
            return
        try:
            add_uses(self._engine, pending)
        except (CacheError, SQLAlchemyError) as error:
            logger.warning("uses not written", extra={"num": len(pending), "error": str(error)})
            with self._lock:
                for state_id, uses in pending.items():
                    self._add(state_id, uses)

    def close(self, *, timeout_s: float) -> bool:
        """Stop the thread, which writes the rest; False where the database hangs for so long."""
        with self._lock:
            self._closed.set()
            thread = self._thread
        self._due.set()
        if thread is None:
            return True
        thread.join(timeout_s)
        return not thread.is_alive()

    def _add(self, state_id: int, uses: Uses) -> None:
        known = self._pending.get(state_id)
        if known is None and len(self._pending) >= self._batch * PENDING_BATCHES_MAX:
            self.num_dropped += 1
            return
        self._pending[state_id] = uses if known is None else known + uses

    def _flush_when_due(self) -> None:
        while not self._closed.is_set():
            self._due.wait(self._flush_s)
            self._due.clear()
            self.flush()
        self.flush()
