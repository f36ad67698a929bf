"""Tells clients how a job ended. The ledger keeps what nobody could be told yet."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable

import redis

from producer.result import JobResult
from producer.trace import Traces
from workers.errors import BrokerAway
from workers.ledger import Claim, Ledger

logger = logging.getLogger(__name__)


class Announcer:
    """Shows a job's end after the commit: in its trace, then, if told how, to Celery's clients.

    A GPU worker needs no `show_end`: there the task's own return or exception is shown.
    """

    def __init__(
        self,
        ledger: Ledger,
        traces: Traces,
        *,
        show_end: Callable[[JobResult], None] = lambda result: None,
    ) -> None:
        self._ledger = ledger
        self._traces = traces
        self._show_end = show_end

    def announce_start(self, claim: Claim) -> None:
        """Show that the job runs; if the broker is away, only its end will be shown."""
        try:
            self._traces.mark_running(str(claim.job_id), claim.attempt)
        except redis.RedisError as error:
            logger.warning("start of job %s not announced: %s", claim.job_id, error)

    def announce(self, result: JobResult) -> bool:
        """Show the end of a job; False when the broker is away: then `announce_due` does it."""
        try:
            self._traces.mark_finished(result)
            self._show_end(result)
        except (redis.RedisError, BrokerAway) as error:
            logger.warning("end of job %s not announced yet: %s", result.job_id, error)
            return False
        self._ledger.mark_announced(uuid.UUID(result.job_id))
        return True

    def announce_due(self, *, older_than_s: float, limit: int) -> list[JobResult]:
        """Announce ends that were committed a while ago and not announced; returns those told."""
        due = self._ledger.unannounced(older_than_s=older_than_s, limit=limit)
        return [result for result in due if self.announce(result)]
