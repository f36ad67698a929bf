"""Cancels a job wherever it is: waiting, or running on some worker."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable

from producer.contract import GenerationJob
from producer.errors import UnknownJob
from producer.trace import Traces
from workers.ledger import Ledger
from workers.unclaimed import UnclaimedJobs

logger = logging.getLogger(__name__)


class Cancellation:
    """A running job is flagged in the ledger, and its worker told at once."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        traces: Traces,
        unclaimed: UnclaimedJobs,
        tell_workers: Callable[[str], object] = lambda job_id: None,
    ) -> None:
        """Without `tell_workers`, a worker sees the flag at its next heartbeat."""
        self._ledger = ledger
        self._traces = traces
        self._unclaimed = unclaimed
        self._tell_workers = tell_workers

    def cancel(self, job_id: str) -> bool:
        """Cancel the job; False when it is unknown or has ended."""
        if self._cancel_running(job_id):
            return True
        try:
            trace = self._traces.read(job_id)
        except UnknownJob:
            logger.info("cancel of an unknown job", extra={"job_id": job_id})
            return False
        if trace.status.is_terminal:
            return False
        job = GenerationJob.model_validate(trace.job)
        was_waiting = self._unclaimed.cancel(job_id, job, queue=trace.queue) is not None
        # Between the two looks a worker may have claimed it.
        return was_waiting or self._cancel_running(job_id)

    def _cancel_running(self, job_id: str) -> bool:
        is_running = self._ledger.request_cancel(uuid.UUID(job_id))
        if is_running:
            self._tell_workers(job_id)
        return is_running
