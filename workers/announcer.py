"""Tells clients how a job ended. The ledger keeps what nobody could be told yet."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable

import redis
from sqlalchemy.exc import SQLAlchemyError

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
        """Show the end of a job; False where broker or database is away: `announce_due` is next.

        Never raises for either: the end is committed, and its task must not seem to have failed.
        """
        try:
            self._traces.mark_finished(result)
            self._show_end(result)
        except (redis.RedisError, BrokerAway) as error:
            logger.warning("end of job %s not announced yet: %s", result.job_id, error)
            return False
        return self._mark_announced(result.job_id)

    def _mark_announced(self, job_id: str) -> bool:
        try:
            self._ledger.mark_announced(uuid.UUID(job_id))
        except SQLAlchemyError as error:
            logger.warning("end of job %s will be announced again: %s", job_id, error)
            return False
        return True

    def announce_due(self, *, older_than_s: float, limit: int) -> list[JobResult]:
        """Announce ends that were committed a while ago and not announced; returns those told."""
        due = self._ledger.unannounced(older_than_s=older_than_s, limit=limit)
        return [result for result in due if self.announce(result)]
