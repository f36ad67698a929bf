"""Tells clients how a job ended: its trace. The ledger keeps what nobody could be told yet."""

from __future__ import annotations

import logging
import uuid

import redis

from producer.result import JobResult
from producer.trace import Traces
from workers.ledger import Ledger

logger = logging.getLogger(__name__)


class Announcer:
    """Writes a job's end to its trace, after the commit."""

    def __init__(self, ledger: Ledger, traces: Traces) -> None:
        self._ledger = ledger
        self._traces = traces

    def announce(self, result: JobResult) -> bool:
        """Show the end of a job; False when the broker is away: then `announce_due` does it."""
        try:
            self._traces.mark_finished(result)
        except redis.RedisError as error:
            logger.warning("end of job %s not announced yet: %s", result.job_id, error)
            return False
        self._ledger.mark_announced(uuid.UUID(result.job_id))
        return True

    def announce_due(self, *, older_than_s: float, limit: int) -> list[JobResult]:
        """Announce ends that were committed a while ago and not announced; returns those told."""
        due = self._ledger.unannounced(older_than_s=older_than_s, limit=limit)
        return [result for result in due if self.announce(result)]
